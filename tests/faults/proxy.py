"""A TCP proxy before Postgres that can lose the answer to a commit: the server has committed, the client can't know."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from urllib.parse import urlsplit, urlunsplit

_COMMIT = b"COMMIT\x00"


class LossyProxy:
    """Forwards to the server of ``url``; loses the answer to a share of all commits, and the connection with it."""

    def __init__(self, url: str, *, share: float, seed: int = 1, most: int | None = None) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "", parts.port or 5432)
        self._random = random.Random(seed)
        self.share, self.most = share, most
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        netloc = parts.netloc.rpartition("@")[0] + f"@127.0.0.1:{port}"
        self.url = urlunsplit(parts._replace(netloc=netloc))

    def __enter__(self) -> LossyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(self._server)
            losing = threading.Event()
            for pump in (self._to_server, self._to_client):
                threading.Thread(target=pump, args=(client, server, losing), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.endswith(_COMMIT) and self._random.random() < self.share and self.lost != self.most:
                    losing.set()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _to_client(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if losing.is_set():
                    # The server has answered: it has committed.
                    self.lost += 1
                    break
                client.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
