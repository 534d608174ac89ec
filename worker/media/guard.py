"""Watches a decode: the header may lie, so the limits are checked again on what really comes out.

Isolated damage is tolerated; a file that is mostly undecodable, or ends before its header says, is not.
"""

from __future__ import annotations

from shared.errors import BadMedia, LimitExceeded

from .budget import Budget
from .limits import MediaLimits
from .probe import check_size, check_sound, no_picture
from .results import MediaInfo

#: Containers whose header tells the true duration, so that content ending early means a truncated file.
_HEADER_TELLS = ("mov", "matroska", "avi", "flv", "asf", "mxf")

#: What may be missing at the end, in seconds and as a share of the duration: rounding, a last frame's length.
_MISSING_S, _MISSING_SHARE = 1.0, 0.03


class Guard:
    """Counts what one pass over a file decodes."""

    def __init__(self, info: MediaInfo, limits: MediaLimits) -> None:
        self._info = info
        self._limits = limits
        self._size_px = (0, 0)
        self._frames = 0
        self._errors = 0
        self._last_s = 0.0
        self._budget = Budget(limits)
        #: Start of the last picture by its packet, decoded or not.
        self._pictures_s = 0.0
        #: End of everything the container holds, in any stream, in seconds.
        self.content_s = 0.0

    def count_error(self) -> None:
        """Note that a packet could not be read or decoded."""
        self._errors += 1

    def note_content(self, end_s: float) -> None:
        """Note that some stream has content until ``end_s``."""
        self.content_s = max(self.content_s, end_s)

    def charge_picture(self, packet_bytes: int, pixels: int, ts_s: float | None) -> None:
        """Count a compressed picture before it is decoded; raises LimitExceeded."""
        self._budget.charge(packet_bytes, pixels)
        if ts_s is not None:
            self._pictures_s = max(self._pictures_s, min(ts_s, self._limits.max_duration_s))

    def check_cost(self, content_s: float) -> None:
        """Check the CPU time spent for the content decoded so far; raises LimitExceeded."""
        self._budget.reach(content_s)

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
        if ts_s > limits.max_duration_s:
            raise LimitExceeded(
                f"A picture is shown at {ts_s:.0f} s, the limit is {limits.max_duration_s:.0f} s; cut the file up"
            )
        # A second's worth of slack: the rate of a few frames means little.
        if self._frames > limits.max_fps * (self._last_s + 1.0):
            raise LimitExceeded(
                f"There are {self._frames} pictures in {self._last_s:.1f} s, over the limit of "
                f"{limits.max_fps:g} frames a second; re-encode it at a usual frame rate"
            )

    def check_complete(self) -> None:
        """Judge the whole file once everything was read; raises BadMedia."""
        if self._frames == 0:
            raise no_picture(self._info)
        if self._errors > self._frames:
            raise BadMedia(
                f"{self._errors} of {self._errors + self._frames} pictures could not be decoded; "
                "the file is damaged, export it again"
            )
        declared_s, found_s = self._info.duration_s, max(self.content_s, self._last_s)
        header_tells = not set(_HEADER_TELLS).isdisjoint(self._info.container.split(","))
        if header_tells and declared_s - found_s > max(_MISSING_S, _MISSING_SHARE * declared_s):
            raise BadMedia(
                f"The file is truncated: the header says {declared_s:.1f} s, content ends at {found_s:.1f} s; "
                "upload it again"
            )
