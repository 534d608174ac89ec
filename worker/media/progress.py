"""Reports the progress of the pass to the caller, who may stop it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .boundary import Stopped

#: Wall time between two calls.
_EVERY_S = 0.5


class Progress:
    """Calls back with a fraction 0..1 that never falls, about twice a second."""

    def __init__(
        self, duration_s: float, size_bytes: int, on_progress: Callable[[float], None] | None
    ) -> None:
        self._duration_s = duration_s
        self._size_bytes = size_bytes
        self._on_progress = on_progress
        self._told_s = time.monotonic()
        self._fraction = 0.0

    def tell(self, content_s: float, position_bytes: int | None) -> None:
        """Report the time reached, or where the header gives no duration, the place in the file."""
        if self._on_progress is None:
            return
        now_s = time.monotonic()
        if now_s - self._told_s < _EVERY_S:
            return
        self._told_s = now_s
        if self._duration_s > 0:
            fraction = content_s / self._duration_s
        else:
            fraction = (position_bytes or 0) / self._size_bytes
        self._fraction = max(self._fraction, min(0.99, fraction))
        self._call(self._fraction)

    def finish(self) -> None:
        """Report that all is done."""
        if self._on_progress is not None:
            self._on_progress(1.0)

    def _call(self, fraction: float) -> None:
        assert self._on_progress is not None
        try:
            self._on_progress(fraction)
        except BaseException as error:
            raise Stopped(error) from error
