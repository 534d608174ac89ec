"""Keeps forks of this process apart from the connections of its housekeeping thread.

A forked child must not inherit a live connection: the server would not notice that this process has ended, and libraries
don't support a fork while their threads work. So a fork waits while the thread has a connection open. This takes
milliseconds, unless a server or the network does not answer: then the fork shuts the connections down, which ends the
thread's wait; those to Redis have short time limits. If that does not help, the fork continues and the child closes the
inherited connections. So a fork waits for at most ``WAIT_S + LAST_WAIT_S``.

A fork also waits until no other thread writes to the log: the child would inherit the lock of the stream, and hang at its
first line.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine, event

#: How long a fork waits before it shuts connections down, and after that, seconds.
WAIT_S, LAST_WAIT_S = 2.0, 6.0


class Forks:
    """Delays forks while connections are open; one per process."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        #: Guards ``_sockets``, whose sockets are open.
        # A garbage collection inside it may close a connection.
        self._known = threading.RLock()
        #: Descriptor of a connection -> our duplicate, which stays that socket if the descriptor is closed and reused.
        self._sockets: dict[int, socket.socket] = {}
        self._forking = False
        #: Log handlers whose locks this fork holds.
        self._quiet: list[logging.Handler] = []

    def install(self) -> None:
        """Let forks of this process wait for ``held_off`` blocks from now on."""
        os.register_at_fork(
            before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child
        )

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Delay forks while this block runs, which opens connections and closes them again."""
        with self._turn:
            yield

    def watch(self, engine: Engine) -> Engine:
        """Let a fork that has waited too long shut down this engine's connections."""
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "close", self._closed)
        return engine

    def _opened(self, connection: Any, _: Any) -> None:
        with self._known:
            number = connection.fileno()
            self._sockets[number] = socket.socket(fileno=os.dup(number))

    def _closed(self, connection: Any, _: Any) -> None:
        with self._known, suppress(Exception):
            # A broken connection has no number any more; its socket is closed with the others.
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
            self._forking = self._turn.acquire(timeout=LAST_WAIT_S)
        self._quiet = [handler for handler in logging.root.handlers if handler.lock is not None]
        for handler in self._quiet:
            handler.acquire()

    def _in_parent(self) -> None:
        for handler in self._quiet:
            handler.release()
        if self._forking:
            self._forking = False
            self._turn.release()

    def _in_child(self) -> None:
        # ``logging`` has given the handlers new locks.
        for number, duplicate in self._sockets.items():
            with suppress(OSError):
                if os.fstat(number).st_ino == os.fstat(duplicate.fileno()).st_ino:
                    os.close(number)
                duplicate.close()
        self.__init__()  # type: ignore[misc]


forks = Forks()
