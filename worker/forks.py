"""Keeps the forks of this process apart from the connections of its housekeeping thread, without a long wait for either.

A forked child must not inherit a live connection: it would keep the server from noticing that this process is gone,
and libraries are not made for threads that are in the middle of something when their process is copied. So a fork
waits while the thread has a connection open. That is milliseconds, unless a server or the network has stopped
answering: then the fork has the connections shut down, which ends the thread's wait. A fork that still can't have its
turn goes ahead, and the child closes what it was not meant to get; so a fork waits for ``2 * WAIT_S`` at most.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine, event

#: How long a fork waits for its turn before it interrupts, and again after that, seconds.
WAIT_S = 2.0


class Forks:
    """Holds forks off while connections are open; one per process."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        #: Guards ``_sockets``: what is in it is open.
        self._known = threading.Lock()
        #: Descriptor of the connection -> a duplicate of ours, which is that socket whatever becomes of the descriptor.
        self._sockets: dict[int, socket.socket] = {}
        self._forking = False

    def install(self) -> None:
        """From now on forks of this process wait for ``held_off`` blocks."""
        os.register_at_fork(
            before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child
        )

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """No fork while this block runs: for a use of a server that opens its connections and closes them again."""
        with self._turn:
            yield

    def watch(self, engine: Engine) -> Engine:
        """Let a fork that waits for too long shut down this engine's connections."""
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "close", self._closed)
        return engine

    def _opened(self, connection: Any, _: Any) -> None:
        with self._known:
            number = connection.fileno()
            self._sockets[number] = socket.socket(fileno=os.dup(number))

    def _closed(self, connection: Any, _: Any) -> None:
        with self._known, suppress(Exception):
            # A connection that broke has no number any more; its socket goes with the others.
            number = -1 if connection.closed else connection.fileno()
            for known in [number] if number in self._sockets else list(self._sockets):
                self._sockets.pop(known).close()

    def _before(self) -> None:
        self._forking = self._turn.acquire(timeout=WAIT_S)
        if not self._forking:
            with self._known:
                for duplicate in self._sockets.values():
                    with suppress(OSError):
                        duplicate.shutdown(socket.SHUT_RDWR)
            self._forking = self._turn.acquire(timeout=WAIT_S)

    def _in_parent(self) -> None:
        if self._forking:
            self._forking = False
            self._turn.release()

    def _in_child(self) -> None:
        for number, duplicate in self._sockets.items():
            with suppress(OSError):
                if os.fstat(number).st_ino == os.fstat(duplicate.fileno()).st_ino:
                    os.close(number)
                duplicate.close()
        self.__init__()  # type: ignore[misc]


forks = Forks()
