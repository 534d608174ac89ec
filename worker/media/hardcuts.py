"""Hard cuts: one frame differs from the one before far more than its neighbours do, and stays different.

An adaptive rule (as PySceneDetect's AdaptiveDetector: a frame's score against its neighbours') proposes; three checks
dispose. A change of light keeps the structure (correlation), a jump of the camera is explained by moving blocks
(motion compensation), and a flash returns to what was there before (persistence).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import cv2

from .planes import Plane, Thumb

#: A picture that comes back within this time was a flash, not a scene.
FLASH_S = 0.3
#: Frames on each side that a score is compared with.
_NEIGHBOURS = 6
#: Neighbours further away in time say nothing: in a slide show every frame is a scene.
_NEIGHBOUR_S = 1.1
#: Waiting for neighbours ends after this time, so that slide shows (a frame in seconds) are decided too.
_MAX_WAIT_S = 1.5
#: Smallest mean change of Y+U+V, in grey levels, that can be a cut.
_MIN_SCORE = 7.0
#: How many times its neighbours' mean a frame's score must be.
_MIN_RATIO = 2.0
#: A cut changes large areas, not only fine texture: smallest change of the blurred picture, and of what moving blocks
#: leave of it, in grey levels.
_MIN_BLURRED = 4.0
_MIN_RESIDUAL = 1.3
#: Share of the change that moving blocks must leave: camera jumps leave up to 0.17, cuts from 0.22 up (measured on
#: cuts, jumps and shakes over photographs and textures).
_MIN_UNEXPLAINED = 0.19
#: How many times its neighbours' residual a cut's must be.
_MIN_RESIDUAL_RATIO = 1.8
#: Above this correlation of the luma only the light has changed.
_SAME_STRUCTURE = 0.90


@dataclass(frozen=True, slots=True)
class Cut:
    """The start of a scene; from ``mixed_from_s`` to ``mixed_to_s`` pictures belong to both scenes or to none."""

    ts_s: float
    kind: Literal["cut", "gradual"]
    mixed_from_s: float
    mixed_to_s: float


@dataclass(slots=True)
class _Frame:
    ts_s: float
    thumb: Thumb
    #: Change from the frame before.
    score: float
    #: ``motion_residual`` of the change from the frame before, computed on demand.
    residual: tuple[float, float] | None = None


class HardCuts:
    """Finds hard cuts in a stream of thumbs; holds about half a second of them."""

    def __init__(self) -> None:
        self._frames: deque[_Frame] = deque()
        #: Position in ``_frames`` of the first frame not judged yet.
        self._next = 0
        #: Times of every sudden change, cut or flash, of the last seconds: borders that no fade can have.
        self.jumps_s: deque[float] = deque(maxlen=64)

    def feed(self, ts_s: float, thumb: Thumb) -> list[tuple[float, float]]:
        """Take the next frame; return (time in seconds, score) of the cuts it decides: the scene's first frame."""
        score = difference(self._frames[-1].thumb, thumb) if self._frames else 0.0
        self._frames.append(_Frame(ts_s, thumb, score))
        first = self._next
        while self._next < len(self._frames) and self._has_future(self._next):
            self._next += 1
        cuts = self._judge_all(first)
        self._forget()
        return cuts

    def flush(self) -> list[tuple[float, float]]:
        """Judge the last frames with the future there is; return as ``feed`` does."""
        first, self._next = self._next, len(self._frames)
        return self._judge_all(first)

    def _judge_all(self, first: int) -> list[tuple[float, float]]:
        cuts = (self._frames[i] for i in range(first, self._next) if self._judge(i))
        return [(frame.ts_s, frame.score) for frame in cuts]

    def _has_future(self, index: int) -> bool:
        wait_s = self._frames[-1].ts_s - self._frames[index].ts_s
        enough = len(self._frames) - 1 - index >= _NEIGHBOURS or wait_s >= _MAX_WAIT_S
        return enough and wait_s >= FLASH_S

    def _forget(self) -> None:
        keep_from_s = self._frames[self._next].ts_s - FLASH_S if self._next < len(self._frames) else 0.0
        while self._next > _NEIGHBOURS + 2 and self._frames[1].ts_s < keep_from_s:
            self._frames.popleft()
            self._next -= 1

    def _judge(self, index: int) -> bool:
        frame = self._frames[index]
        if index == 0 or frame.score < _MIN_SCORE:
            return False
        first, last = max(1, index - _NEIGHBOURS), min(len(self._frames), index + _NEIGHBOURS + 1)
        near = [f for i, f in enumerate(islice(self._frames, first, last), first) if i != index]
        around = sorted(f.score for f in near if abs(f.ts_s - frame.ts_s) <= _NEIGHBOUR_S)[:-1]
        usual = sum(around) / len(around) if around else 0.0
        if frame.score < _MIN_RATIO * usual + 2.0:
            return False
        self.jumps_s.append(frame.ts_s)
        before = self._frames[index - 1].thumb
        if correlation(before.y, frame.thumb.y) > _SAME_STRUCTURE and not (before.blank or frame.thumb.blank):
            return False
        return self._beats_motion(index) and not self._is_flash(index)

    def _beats_motion(self, index: int) -> bool:
        """Whether moving blocks fail to explain this change although they explain the neighbours'."""
        frame = self._frames[index]
        change, residual = self._residual(index)
        if change < _MIN_BLURRED or residual < max(_MIN_RESIDUAL, _MIN_UNEXPLAINED * change):
            return False
        usual = 0.0
        for near in (index - 1, index + 1):
            if not 1 <= near < len(self._frames):
                continue
            other = self._frames[near]
            if other.score < 0.6 * frame.score and abs(other.ts_s - frame.ts_s) <= _NEIGHBOUR_S:
                usual = max(usual, self._residual(near)[1])
        return residual >= _MIN_RESIDUAL_RATIO * usual + 0.5

    def _residual(self, index: int) -> tuple[float, float]:
        frame = self._frames[index]
        if frame.residual is None:
            frame.residual = motion_residual(self._frames[index - 1].thumb, frame.thumb)
        return frame.residual

    def _is_flash(self, index: int) -> bool:
        """Whether what was there before comes back, or what is there now was there shortly before."""
        frame = self._frames[index]
        before = self._frames[index - 1]
        same = 0.5 * frame.score
        after = [f for f in islice(self._frames, index + 1, None) if f.ts_s <= frame.ts_s + FLASH_S]
        if any(difference(before.thumb, f.thumb) < same for f in _thin(after)):
            return True
        earlier = [f for f in islice(self._frames, index - 1) if f.ts_s >= before.ts_s - FLASH_S]
        return any(difference(frame.thumb, f.thumb) < same for f in _thin(earlier))


def difference(a: Thumb, b: Thumb) -> float:
    """Return the mean absolute change of Y plus that of U and of V, in grey levels."""
    planes = ((a.y, b.y), (a.u, b.u), (a.v, b.v))
    return float(sum(cv2.norm(one, other, cv2.NORM_L1) / one.size for one, other in planes))


def correlation(a: Plane, b: Plane) -> float:
    """Return the zero-mean normalised correlation of two planes, -1..1; 0 when one is uniform."""
    if min(cv2.meanStdDev(a)[1][0, 0], cv2.meanStdDev(b)[1][0, 0]) <= 1:
        return 0.0
    return float(cv2.matchTemplate(a, b, cv2.TM_CCOEFF_NORMED)[0, 0])


def motion_residual(before: Thumb, after: Thumb) -> tuple[float, float]:
    """Return the change of the blurred luma, and what is left when each block took its best match in ``before``.

    Both as root mean squares in grey levels. Blocks of 10 px at half the thumb's size, searched 10 px (an eighth of
    the picture) around; blurring keeps fine texture, which no whole pixel step matches, out of it.
    """
    halves = (
        cv2.resize(thumb.y, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for thumb in (before, after)
    )
    old, new = (cv2.GaussianBlur(half, (0, 0), 1.0) for half in halves)
    height, width = new.shape
    side, reach = min(10, height, width), 10
    around = cv2.copyMakeBorder(old, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    residuals = []
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            block = new[top : top + side, left : left + side]
            places = around[top : top + side + 2 * reach, left : left + side + 2 * reach]
            squares = cv2.minMaxLoc(cv2.matchTemplate(places, block, cv2.TM_SQDIFF))[0]
            residuals.append(math.sqrt(max(0.0, squares) / block.size))
    change = cv2.norm(old, new, cv2.NORM_L2) / math.sqrt(new.size)
    return float(change), sum(residuals) / len(residuals)


def _thin(frames: list[_Frame]) -> list[_Frame]:
    """Return at most about ten of the frames, spread evenly, with the last one."""
    step = max(1, len(frames) // 10)
    return frames[::-1][::step]
