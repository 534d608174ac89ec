"""A small HTTP server for probes and for Prometheus: GET requests only, one per connection, bounded in size, time and number.

It runs in threads of a process that forks or waits: a page takes no lock that a forked child would inherit locked.
"""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from .errors import Outage
from .logs import get_logger

log = get_logger(__name__)

#: Status, type and body.
Answer = tuple[int, str, bytes]
Page = Callable[[], Answer]
TEXT, JSON = "text/plain; charset=utf-8", "application/json"
#: Maximum size of a request's head, and time in which it must be there and the answer taken, seconds.
MAX_BYTES, LIMIT_S = 8 * 1024, 5.0
#: Connections at once; further ones are closed.
MAX_OPEN = 8
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class _Handler(socketserver.BaseRequestHandler):
    server: HttpServer

    def handle(self) -> None:
        try:
            status, kind, body = self._answer()
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n"
            )
            self.request.settimeout(LIMIT_S)
            self.request.sendall(head.encode() + body)
        except OSError:
            # The client has gone, or is too slow.
            return

    def _answer(self) -> Answer:
        parts = self._head().split(b"\r\n", 1)[0].split()
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return 400, TEXT, b"this is no HTTP request: send GET\n"
        if parts[0] != b"GET":
            return 405, TEXT, b"only GET is answered here\n"
        page = self.server.pages.get(parts[1].split(b"?", 1)[0].decode("latin-1"))
        if page is None:
            return 404, TEXT, f"there are {', '.join(self.server.pages)} here\n".encode()
        try:
            return page()
        except Exception:
            log.exception("page failed", path=parts[1][:100].decode("latin-1"))
            return 500, TEXT, b"internal error: the log says which\n"

    def _head(self) -> bytes:
        head, deadline_s = b"", time.monotonic() + LIMIT_S
        while b"\r\n\r\n" not in head:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or len(head) > MAX_BYTES:
                return b""
            self.request.settimeout(left_s)
            more = self.request.recv(4096)
            if not more:
                return b""
            head += more
        return head


class HttpServer(socketserver.ThreadingTCPServer):
    """Serves pages by path in daemon threads until the process ends.

    Args:
        port: 0: any free one. One that is taken: likewise, with a warning, since a node must work without its metrics.

    Raises:
        Outage: the address is not one of this machine.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        self.pages = dict(pages)
        self._serving: threading.Thread | None = None
        self._free = threading.BoundedSemaphore(MAX_OPEN)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            if not port:
                raise Outage(f"METRICS_HOST={host} can't be listened on ({error}): correct it") from error
            log.warning(
                "METRICS_PORT can't be listened on; another port is used", port=port, problem=error.strerror
            )
            super().__init__((host, 0), _Handler)
        # A child must not hold the port after this process has ended.
        os.register_at_fork(after_in_child=self.socket.close)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._serving = threading.Thread(target=self.serve_forever, args=(60.0,), name="http", daemon=True)
        self._serving.start()

    def server_close(self) -> None:
        """Answer no longer. Ends the thread first: it would go on polling the number of the closed socket, and keep open
        whatever file gets that number next, for up to a minute."""
        if self._serving is not None:
            stopping = threading.Thread(target=self.shutdown, daemon=True)
            stopping.start()
            while stopping.is_alive():
                # It looks when a connection comes.
                with suppress(OSError):
                    socket.create_connection((str(self.server_address[0]), self.port), timeout=1).close()
                stopping.join(0.05)
            self._serving = None
        super().server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("connection failed")


def own_address(host: str, towards: str) -> str:
    """The address under which others reach this machine, if it listens on all: the one from which it reaches ``towards``."""
    if host not in ("0.0.0.0", "::", ""):
        return host
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((towards or "192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
