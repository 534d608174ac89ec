"""When a call that failed is sent again."""

from __future__ import annotations

import random
import time

from .errors import BrokerUnavailable, Outage

#: Longest pause before the first retry, seconds; doubled for each later one up to the second value. Pauses are drawn evenly from
#: zero to the longest ("full jitter"), so that callers who failed together don't return together.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


class Attempts:
    """The attempts of one call, which share its time limit."""

    def __init__(self, retries: int, timeout_s: float, *, repeatable: bool = True) -> None:
        """``repeatable``: the call may be done twice."""
        self._retries, self._repeatable = retries, repeatable
        self._failed = 0
        self._deadline_s = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """What is left of the time limit."""
        return self._deadline_s - time.monotonic()

    def pause_s(self, error: Exception) -> float | None:
        """Seconds to wait before the next attempt; None: there is none, the error is the answer.

        An error that says when to return (``retry_after_s``) is retried no earlier. After a lost connection the request may
        have been sent; after any other outage the fleet has answered that it did nothing.
        """
        if isinstance(error, BrokerUnavailable) and not self._repeatable:
            return None
        asked_s: float | None = getattr(error, "retry_after_s", None)
        if self._failed == self._retries or not (isinstance(error, Outage) or asked_s is not None):
            return None
        jitter_s = random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failed))
        self._failed += 1
        pause_s = (asked_s or 0.0) + jitter_s
        return pause_s if pause_s < self.left_s else None
