"""What it takes to follow a video to its end: when to ask for its status, and which statuses are news.

Workers publish a note on a Redis channel when something has changed (worker/changes.py). A note may be lost, with Redis or the
connection to it, so the status is also asked for every ``POLL_S``: an end is seen late at worst.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

from .contracts import VideoStatus
from .errors import Outage

#: Seconds between two looks at the status: without a note, and at least.
POLL_S, COALESCE_S = 3.0, 0.2
#: How long the fleet may be away, seconds.
SILENCE_S = 300.0
ENDED = ("indexed", "partial", "failed", "cancelled", "deleted")


class Following:
    """One caller's view of one video."""

    def __init__(self, video_id: str, user_id: str, timeout_s: float | None) -> None:
        self._video_id, self._user_id, self._timeout_s = video_id, user_id, timeout_s
        self._began_s = self._looked_s = time.monotonic()
        self._due_s = float("-inf")
        self._answered_s: float | None = None
        self._last: VideoStatus | None = None

    @property
    def ended(self) -> bool:
        return self._last is not None and self._last.state in ENDED

    def pause_s(self) -> float:
        """Seconds until the next look; 0: now. Raises TimeoutError if the time limit has passed."""
        now_s = time.monotonic()
        end_s = float("inf") if self._timeout_s is None else self._began_s + self._timeout_s
        if now_s >= end_s:
            state = "not answered for" if self._last is None else self._last.state
            raise TimeoutError(
                f"video {self._video_id!r} is {state} after {self._timeout_s:g} s: follow it again"
            )
        return max(0.0, min(self._due_s, end_s) - now_s)

    def hear(self, note: bytes | None) -> None:
        """Take a note of the channel; None: none came."""
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            # A note names the video by its primary key, which callers don't know: any video of the user.
            if note is not None and json.loads(note).get("user_id") == self._user_id:
                self._due_s = min(self._due_s, self._looked_s + COALESCE_S)

    def look(self) -> None:
        """The status is asked for now."""
        self._looked_s = time.monotonic()
        self._due_s = self._looked_s + POLL_S

    def is_news(self, status: VideoStatus) -> bool:
        """Take a status; whether it differs from the one before."""
        self._answered_s = time.monotonic()
        news, self._last = status != self._last, status
        return news

    def missed(self, error: Outage) -> None:
        """Take an error instead of a status; raises it if no answer ever came, or none for ``SILENCE_S``."""
        if self._answered_s is None or time.monotonic() - self._answered_s > SILENCE_S:
            raise error
