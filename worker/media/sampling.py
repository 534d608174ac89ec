"""Chooses the frames to compare: all of them where the picture changes, every second or third elsewhere.

Looking at a frame costs a tenth of decoding it. Where two looks 0.1 s apart hardly differ, nothing that lasts has
happened between them; where they do differ, the frames between are looked at after all, so no time is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from av.video.frame import VideoFrame

from .exact import Source
from .hardcuts import difference
from .planes import Thumb, frame_bytes, reduce_frame, sharpness

#: Frames that come sooner after the last look than this wait.
_SPACING_S = 0.07

#: Most frames that wait, and how many bytes they take at most: large ones are looked at sooner.
_MOST = 5
_MOST_BYTES = 80 * 2**20

#: A smaller change than this (grey levels, as ``difference`` counts) between two looks is calm: a cut makes 7.
_CALM = 3.0


@dataclass(slots=True)
class Look:
    """A frame that is looked at, and may become a keyframe; ``ts_s`` in seconds."""

    ts_s: float
    frame: VideoFrame
    thumb: Thumb
    #: In fast mode: how to decode this picture again exactly.
    source: Source | None = None

    @property
    def is_key(self) -> bool:
        """Whether decoding it again costs one picture."""
        return self.source is not None and self.source.count == 1

    @property
    def sharpness(self) -> float:
        """Comparable only between pictures of the same scene."""
        return sharpness(self.frame)


class Sampler:
    """Turns frames into looks, in order; at most ``_MOST`` frames wait."""

    def __init__(self, thumb_size: tuple[int, int]) -> None:
        self._size = thumb_size
        self._last: Look | None = None
        self._waiting: list[tuple[float, VideoFrame]] = []
        self._most = _MOST

    def feed(self, ts_s: float, frame: VideoFrame) -> list[Look]:
        """Take the next frame; return the looks it brings."""
        soon = self._last is not None and ts_s - self._last.ts_s < _SPACING_S
        if not self._waiting:
            self._most = min(_MOST, _MOST_BYTES // max(1, frame_bytes(frame)))
        if soon and not frame.key_frame and len(self._waiting) < self._most:
            self._waiting.append((ts_s, frame))
            return []
        return self._look(ts_s, frame)

    def flush(self) -> list[Look]:
        """Return the look at the last frame, if it still waits."""
        return self._look(*self._waiting.pop()) if self._waiting else []

    def _look(self, ts_s: float, frame: VideoFrame) -> list[Look]:
        now = Look(ts_s, frame, reduce_frame(frame, self._size))
        last, waiting = self._last, self._waiting
        self._last, self._waiting = now, []
        if not waiting or last is None or difference(last.thumb, now.thumb) < _CALM:
            return [now]
        return [*(Look(at_s, one, reduce_frame(one, self._size)) for at_s, one in waiting), now]
