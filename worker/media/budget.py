"""Limits the cost of decoding one file, in pixels and CPU time, whatever its header says.

A skipped block costs the sender nothing and the decoder a copy: 30 bytes can stand for 67 million pixels. So pixels are
allowed by the second of content and by the byte, and CPU time by the second of content; content counts as it comes, so
that a claimed length or a leap in time allows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.errors import LimitExceeded

from .limits import MediaLimits

#: Decoded pixels that any file may have: 38 s of 1920x1080 at 25 frames a second.
FREE_PIXELS = 2_000_000_000

#: The clock is read at every so many packets: reading it costs as much as all the rest here.
_CALLS = 8

#: A leap in time counts as this much content at most, seconds.
_LEAP_S = 10.0


class Budget:
    """Counts what one pass over a file costs; every method raises LimitExceeded past a limit.

    ``clock`` gives the CPU seconds of this process.
    """

    def __init__(self, limits: MediaLimits, clock: Callable[[], float] = time.process_time) -> None:
        self._limits = limits
        self._clock = clock
        self._started_s = clock()
        self._pixels = 0
        self._bytes = 0
        self._content_s = 0.0
        self._reached_s = 0.0
        self._calls = -1

    def charge(self, packet_bytes: int, pixels: int) -> None:
        """Count a compressed picture before it is decoded: its size, and width times height."""
        self._bytes += packet_bytes
        self._pixels += pixels
        limits = self._limits
        if self._pixels <= FREE_PIXELS:
            return
        if self._pixels > limits.max_pixels:
            raise self._too_many(f"more than {limits.max_pixels} (MAX_VIDEO_PIXELS)", "cut it up")
        extra = self._pixels - FREE_PIXELS
        if extra > limits.max_pixels_per_byte * self._bytes:
            raise self._too_many(
                f"more than {limits.max_pixels_per_byte} for each of {self._bytes} bytes (MAX_VIDEO_PIXELS_PER_BYTE)",
                "scale it down",
            )
        if extra > limits.max_pixels_per_s * self._content_s:
            raise self._too_many(
                f"more than {limits.max_pixels_per_s} for each of {self._content_s:.0f} s (MAX_VIDEO_PIXELS_PER_S)",
                "scale it down",
            )

    def reach(self, content_s: float) -> None:
        """Count the content up to ``content_s`` seconds, and the CPU time that it took."""
        if content_s > self._reached_s:
            self._content_s += min(_LEAP_S, content_s - self._reached_s)
            self._reached_s = content_s
        self._calls += 1
        if self._calls % _CALLS:
            return
        limits = self._limits
        allowed_s = limits.cpu_base_s + limits.cpu_per_s * self._content_s
        spent_s = self._clock() - self._started_s
        if spent_s > allowed_s:
            raise LimitExceeded(
                f"Decoding took {spent_s:.0f} s of CPU time for {self._content_s:.0f} s of content, the limit is "
                f"{limits.cpu_base_s:g} s and {limits.cpu_per_s:g} for each second (MEDIA_CPU_BASE_S, MEDIA_CPU_PER_S); "
                "scale it down or re-encode it"
            )

    def _too_many(self, over: str, remedy: str) -> LimitExceeded:
        return LimitExceeded(
            f"The pictures have {self._pixels} pixels in all, {over}; {remedy} or re-encode it"
        )
