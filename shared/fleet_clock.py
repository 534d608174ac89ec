"""The fleet's clock: Redis's, the one that callers and nodes can all ask, as a process estimates it between two readings.

Clocks of machines differ, by minutes and more. So what a message says about time (when it was sent, until when its caller
waits) is by this clock, and is compared with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError

#: The header of a message that says when it was sent, by this clock.
SENT_AT = "sent_at"

#: How long a reading is used, seconds: clocks differ by less than a millisecond more after this time.
_EVERY_S = 10.0
#: A reading that took longer is not used, seconds: it may be wrong by half of it.
_SLOW_S = 1.0


def _own_s() -> float:
    """Seconds of this machine, its sleep included, which nobody can set."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class FleetClock:
    """Seconds since 1970 by Redis's clock; by this machine's until it has been read. Safe to share between threads."""

    def __init__(self, ask: Callable[[], Any] | None = None) -> None:
        """``ask``: returns Redis's answer to TIME; raises if there is none. None: somebody calls ``read``."""
        self._ask = ask
        #: Redis's clock less this machine's, and when it was last asked.
        self._offset_s: float | None = None
        self._asked_s = float("-inf")

    def ask_with(self, ask: Callable[[], Any]) -> None:
        """Ask by this function from now on."""
        self._ask = ask

    def read(self, ask: Callable[[], Any]) -> None:
        """Read the clock; where there is no answer, the last reading is kept."""
        self._asked_s = began_s = _own_s()
        try:
            seconds, microseconds = ask()
        except (RedisError, OSError):
            return
        ended_s = _own_s()
        if ended_s - began_s < _SLOW_S or self._offset_s is None:
            self._offset_s = float(seconds) + float(microseconds) / 1e6 - (began_s + ended_s) / 2

    def now(self) -> float:
        """The time."""
        if self._ask is not None and _own_s() - self._asked_s > _EVERY_S:
            self.read(self._ask)
        offset_s = self._offset_s
        return time.time() if offset_s is None else _own_s() + offset_s

    def after(self, seconds: float) -> datetime:
        """The moment so many seconds from now, as Celery writes it into a message."""
        return datetime.fromtimestamp(self.now() + seconds, UTC)
