"""A TCP proxy before several servers: each connection goes to the next of them, as a simple load balancer does it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading


class RoundRobin:
    """Listens from the start; ``ports`` of servers on this machine may be added later."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        #: The port of each connection so far, in turn.
        self.taken: list[int] = []
        self._turns = itertools.count()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Connect with the next server, or the one after it if that does not answer."""
        for _ in self.ports:
            port = self.ports[next(self._turns) % len(self.ports)]
            try:
                server = socket.create_connection(("127.0.0.1", port))
            except OSError:
                continue
            self.taken.append(port)
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            _pump(server, client)
            break
        client.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
