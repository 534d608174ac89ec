"""A server that receives webhooks, and answers or misbehaves as a test says."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.webhooks import sign


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: Any
    is_signed: bool
    at_s: float


class Receiver:
    """Listens while its ``with`` block lasts. ``answers``: a status or a misbehaviour per request; then 200."""

    def __init__(self, secret: str = "") -> None:
        self.secret = secret
        self.received: list[Received] = []
        self.answers: list[int | str] = []
        self._ended = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def events(self) -> list[str]:
        return [one.body["type"] for one in self.received]

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["content-length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        sent_s = int(headers["webhook-timestamp"])
        wanted = sign(self.secret, headers["webhook-id"], sent_s, data) if self.secret else ""
        fits = headers["webhook-signature"] == wanted and abs(time.time() - sent_s) < 60
        self.received.append(Received(handler.path, headers, json.loads(data), fits, time.monotonic()))
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, int):
            handler.send_response(answer)
            handler.send_header("content-length", "0")
            if 300 <= answer < 400:
                handler.send_header("location", self.url)
            handler.end_headers()
            return
        handler.close_connection = True
        try:
            self._misbehave(handler, answer)
        except OSError:
            # The sender has gone, as it should.
            return

    def _misbehave(self, handler: BaseHTTPRequestHandler, how: str) -> None:
        first, more = {
            "silent": (b"", b""),
            "endless_headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
            "endless_line": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
            "endless_body": (b"HTTP/1.1 200 OK\r\n\r\n", b"z" * 1000),
        }[how]
        handler.wfile.write(first)
        while not self._ended.wait(0.02):
            handler.wfile.write(more)
            handler.wfile.flush()
