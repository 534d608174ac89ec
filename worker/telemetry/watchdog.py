"""Ends a node whose main process is stuck, so that its supervisor starts it again; its jobs are delivered again.

Two things are watched: the event loop, which must run a timer, and the consumer, which must take messages of its queues while
all its children are idle. Limits: a call that holds the interpreter's lock stops this thread too; the probe `/livez` then gets
no answer. While the broker is away Celery's loop does not run, and nothing is watched.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from shared.exit_status import ExitStatus
from shared.logs import get_logger

log = get_logger(__name__)

#: Interval of its looks, and how many of them in a row must find no progress: found within 30 s. Looks are counted, not
#: seconds: a process or machine that was stopped and continues makes no looks meanwhile.
LOOK_S, LOOKS = 5.0, 5
#: Likewise of looks at the queues after the first, about 6 s apart (worker/housekeeping.py).
QUEUE_LOOKS = 4


def _is_debugged() -> bool:
    """Whether somebody looks at this process with a debugger, which stops its loop. (A trace function may be coverage's.)"""
    return not {"bdb", "pydevd"}.isdisjoint(sys.modules)


class Watchdog:
    """Watches this process from a thread of its own; ``stopping`` says whether the node stops."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._beats = 0
        self._beat_at = time.monotonic()
        self._paused = True
        self._stale_looks = 0
        self._seen = -1
        #: (messages taken, looks since) while messages wait and all children are idle; and when it was looked last.
        self._idle: tuple[int, int] | None = None
        self._queue_looked_s = float("-inf")
        self._thread: threading.Thread | None = None

    @property
    def age_s(self) -> float:
        """Time since the loop has last run; 0 while it is not watched."""
        return 0.0 if self._paused else time.monotonic() - self._beat_at

    @property
    def alive(self) -> bool:
        return self.age_s < LOOK_S * LOOKS

    def beat(self) -> None:
        """Called by the event loop, more often than ``LOOK_S``."""
        self._beats += 1
        self._beat_at = time.monotonic()

    def resume(self) -> None:
        """Watch from now on: the loop runs."""
        self.beat()
        self._paused, self._stale_looks, self._idle = False, 0, None
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Watch no longer: Celery connects again, or stops."""
        self._paused = True

    def note_queue(self, waiting: int, idle: bool, taken: int) -> None:
        """Note how many messages wait, whether no child has a task, and how many messages were taken so far.

        A consumer that leaves messages to idle children is stuck. Calls sooner than ``LOOK_S`` after another count as one.
        """
        if self._paused or not waiting or not idle or self._stopping():
            self._idle = None
            return
        if self._idle is None or self._idle[0] != taken:
            self._idle, self._queue_looked_s = (taken, 0), time.monotonic()
        elif time.monotonic() - self._queue_looked_s >= 0.9 * LOOK_S:
            self._idle, self._queue_looked_s = (taken, self._idle[1] + 1), time.monotonic()
        if self._idle[1] >= QUEUE_LOOKS:
            self._end("the consumer takes no messages although its children are idle")

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Count looks that find no beat since the last one; after too many, end the process."""
        if self._paused or self._beats != self._seen or self._stopping() or _is_debugged():
            self._seen, self._stale_looks = self._beats, 0
            return
        self._stale_looks += 1
        if self._stale_looks >= LOOKS:
            self._end("the event loop does not run")

    def _end(self, reason: str) -> NoReturn:
        log.error("leaving: node is stuck", problem=reason, exit_status=ExitStatus.STUCK)
        # Where: the next reader of the log wants to know.
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        os._exit(ExitStatus.STUCK)
