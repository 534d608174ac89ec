"""Watches a decode: the header may lie, so the limits are checked again on what really comes out.

Isolated damage is tolerated; a file that is mostly undecodable, or ends before its header says, is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import BadMedia, LimitExceeded

from .limits import MediaLimits
from .probe import check_size, check_sound
from .results import MediaInfo

#: Decoded pixels that any file may have: 38 s of 1920x1080 at 25 frames a second.
FREE_PIXELS = 2_000_000_000
#: The clock is read at every so many packets: reading it costs as much as all the rest of ``Budget``.
_CALLS = 8
#: A leap in time counts as this much content at most, seconds.
_LEAP_S = 10.0

#: Containers whose header tells the true duration, so that content ending early means a truncated file.
_HEADER_TELLS = {"mov", "matroska", "avi", "flv", "asf", "mxf"}
#: What may be missing at the end, in seconds and as a share of the duration: rounding, a last frame's length.
_MISSING_S, _MISSING_SHARE = 1.0, 0.03


@dataclass(kw_only=True)
class Counts:
    """What a pass has decoded of its part of a file, and the CPU time and the content of the whole pass."""

    frames: int = 0
    errors: int = 0
    pixels: int = 0
    bytes: int = 0
    cpu_s: float = 0.0
    content_s: float = 0.0


class Budget:
    """Limits the cost of one pass over a file, in pixels and CPU time, whatever its header says.

    A skipped block costs the sender nothing and the decoder a copy: 30 bytes can stand for 67 million pixels. So pixels
    are allowed by the second of content and by the byte, and CPU time by the second of content; content counts as it
    comes, so that a claimed length or a leap in time allows nothing. Every method raises LimitExceeded past a limit.
    """

    def __init__(
        self, limits: MediaLimits, clock: Callable[[], float] = time.process_time, *, from_s: float = 0.0
    ) -> None:
        """``clock`` gives the CPU seconds of this process; the content begins at ``from_s`` seconds."""
        self._limits = limits
        self._clock = clock
        self._started_s = clock()
        self._pixels = 0
        self._bytes = 0
        self.content_s = 0.0
        self._reached_s = from_s
        self._calls = -1

    @property
    def spent_s(self) -> float:
        """CPU time of the pass so far, seconds."""
        return self._clock() - self._started_s

    def charge(self, packet_bytes: int, pixels: int) -> None:
        """Count a compressed picture before it is decoded: its size, and width times height."""
        self._bytes += packet_bytes
        self._pixels += pixels
        limits, extra = self._limits, self._pixels - FREE_PIXELS
        if extra <= 0:
            return
        if self._pixels > limits.max_video_pixels:
            over, remedy = f"{limits.max_video_pixels} (MAX_VIDEO_PIXELS)", "cut it up"
        elif extra > limits.max_video_pixels_per_byte * self._bytes:
            allowed = limits.max_video_pixels_per_byte
            over = f"{allowed} for each of {self._bytes} bytes (MAX_VIDEO_PIXELS_PER_BYTE)"
            remedy = "scale it down"
        elif extra > limits.max_video_pixels_per_s * self.content_s:
            allowed = limits.max_video_pixels_per_s
            over = f"{allowed} for each of {self.content_s:.0f} s (MAX_VIDEO_PIXELS_PER_S)"
            remedy = "scale it down"
        else:
            return
        raise LimitExceeded(
            f"The pictures have {self._pixels} pixels in all, more than {over}; {remedy} or re-encode it"
        )

    def reach(self, content_s: float) -> None:
        """Count the content up to ``content_s`` seconds, and the CPU time that it took."""
        if content_s > self._reached_s:
            self.content_s += min(_LEAP_S, content_s - self._reached_s)
            self._reached_s = content_s
        self._calls += 1
        if self._calls % _CALLS == 0:
            self._check_time(self.spent_s)

    def add(self, counts: Counts) -> None:
        """Count what another pass over a part of the file has decoded."""
        self.content_s += counts.content_s
        self.charge(counts.bytes, counts.pixels)
        self._check_time(counts.cpu_s)

    def _check_time(self, spent_s: float) -> None:
        limits = self._limits
        allowed_s = limits.media_cpu_base_s + limits.media_cpu_per_s * self.content_s
        if spent_s > allowed_s:
            raise LimitExceeded(
                f"Decoding took {spent_s:.0f} s of CPU time for {self.content_s:.0f} s of content, the limit is "
                f"{limits.media_cpu_base_s:g} s and {limits.media_cpu_per_s:g} for each second (MEDIA_CPU_BASE_S, MEDIA_CPU_PER_S); "
                "scale it down or re-encode it"
            )


class Guard:
    """Counts what one pass over a file decodes."""

    def __init__(self, info: MediaInfo, limits: MediaLimits, *, from_s: float = 0.0) -> None:
        """``from_s``: where the pass begins, seconds."""
        self._info = info
        self._limits = limits
        self._from_s = from_s
        self.budget = Budget(limits, from_s=from_s)
        self._size_px = (0, 0)
        self._frames = 0
        self._errors = 0
        self._last_s = from_s
        #: Start of the last picture by its packet, decoded or not.
        self._pictures_s = 0.0
        #: End of everything the container holds, in any stream, in seconds.
        self.content_s = 0.0

    def count_error(self) -> None:
        """Note that a packet could not be read or decoded."""
        self._errors += 1

    def charge_picture(self, packet_bytes: int, pixels: int, ts_s: float | None) -> None:
        """Count a compressed picture before it is decoded; raises LimitExceeded."""
        self.budget.charge(packet_bytes, pixels)
        if ts_s is not None:
            self._pictures_s = max(self._pictures_s, min(ts_s, self._limits.max_video_duration_s))

    def check_sound(self, sound_s: float) -> None:
        """Check that sound up to ``sound_s`` belongs to the pictures; raises LimitExceeded."""
        check_sound(sound_s, self._pictures_s, self._limits)

    def check_frame(self, width: int, height: int, ts_s: float) -> None:
        """Count a decoded picture shown at ``ts_s``; raises BadMedia or LimitExceeded."""
        self._frames += 1
        self._last_s = max(self._last_s, ts_s)
        limits = self._limits
        if (width, height) != self._size_px:
            check_size(width, height, limits)
            self._size_px = (width, height)
        if ts_s > limits.max_video_duration_s:
            raise LimitExceeded(
                f"A picture is shown at {ts_s:.0f} s, the limit is {limits.max_video_duration_s:.0f} s; cut the file up"
            )
        self._check_rate()

    def add(self, counts: Counts, end_s: float) -> None:
        """Count what another pass has decoded, up to ``end_s``, of a part of the file; raises LimitExceeded."""
        self._frames += counts.frames
        self._errors += counts.errors
        self._last_s = max(self._last_s, end_s)
        self._check_rate()
        self.budget.add(counts)

    def _check_rate(self) -> None:
        limits, length_s = self._limits, self._last_s - self._from_s
        # A second's worth of slack: the rate of a few frames means little.
        if self._frames > limits.max_video_fps * (length_s + 1.0):
            raise LimitExceeded(
                f"There are {self._frames} pictures in {length_s:.1f} s, over the limit of "
                f"{limits.max_video_fps:g} frames a second; re-encode it at a usual frame rate"
            )

    def check_complete(self) -> None:
        """Judge the whole file once everything was read; raises BadMedia."""
        if self._frames == 0:
            raise BadMedia(
                f"No picture of the {self._info.video.codec} video stream could be decoded: it is empty or damaged; "
                "export it again"
            )
        if self._errors > self._frames:
            raise BadMedia(
                f"{self._errors} of {self._errors + self._frames} pictures could not be decoded; "
                "the file is damaged, export it again"
            )
        declared_s, found_s = self._info.duration_s, max(self.content_s, self._last_s)
        header_tells = not _HEADER_TELLS.isdisjoint(self._info.container.split(","))
        if header_tells and declared_s - found_s > max(_MISSING_S, _MISSING_SHARE * declared_s):
            raise BadMedia(
                f"The file is truncated: the header says {declared_s:.1f} s, content ends at {found_s:.1f} s; "
                "upload it again"
            )
