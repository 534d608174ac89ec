"""Hard cuts: one frame differs from the one before far more than its neighbours do, and stays different.

Proposes with recall first: every change that stands out from its neighbours. What is known of a proposal are numbers
(``FEATURES``), and a fitted model (``verdict``) says how likely it is a cut: a change of light keeps the structure, a jump
of the camera is explained by moving blocks, and after a flash comes what was there before.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import cv2

from .planes import Thumb
from .similarity import edge_change, matching_blocks, shared_colours

#: A picture that comes back within this time was a flash, not a scene.
FLASH_S = 0.3
#: Frames on each side that a score is compared with.
_NEIGHBOURS = 6
#: Neighbours further away in time say nothing: in a slide show every frame is a scene.
_NEIGHBOUR_S = 1.1
#: Frames closer than this are not compared, so that a change spread over some frames of 120 a second is one.
_MIN_STEP_S = 1 / 31
#: A smaller change is none: the picture is repeated, as in animation drawn on twos, or at rest.
_REPEATED = 0.5
#: Waiting for neighbours ends after this time, so that slide shows (a frame in seconds) are decided too.
_MAX_WAIT_S = 1.5
#: Smallest mean change of Y+U+V, in grey levels, that is proposed, and how many times its neighbours' it must be: cuts of the labelled
#: films make 16 and 1.8 or more.
_MIN_SCORE, _MIN_RATIO = 6.0, 1.6

#: What is known of a proposal, in the order of the model's weights. ``l_`` marks logarithms.
FEATURES = (
    "l_score",  # change from the frame before
    "l_ratio",  # change over the neighbours'
    "l_next",  # change over the third largest of the neighbours'
    "l_residual",  # change that moving blocks leave
    "unexplained",  # its share
    "l_residual_ratio",  # over that of the frames next to it
    "stays",  # change that is left after a flash, at most 1
    "is_new",  # change from what was there shortly before, at most 1
    "chroma",  # share of the colours in the change
    "l_contrast",  # the greater one of both sides: next to nothing changes with the last of a fade
    "edges",  # share of edges that changed
    "shared",  # share of the colours that both have
    "matching",  # correlation of blocks with their best match nearby
)


@dataclass(frozen=True, slots=True)
class Cut:
    """The start of a scene; from ``mixed_from_s`` to ``mixed_to_s`` pictures belong to both scenes or to none."""

    ts_s: float
    kind: Literal["cut", "gradual"]
    mixed_from_s: float
    mixed_to_s: float
    #: Probability that a scene begins here, by the model.
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change that may be a cut, at the first frame after it."""

    ts_s: float
    score: float
    #: As ``FEATURES`` names them.
    features: tuple[float, ...]


@dataclass(slots=True)
class _Frame:
    ts_s: float
    thumb: Thumb
    #: Change from the frame before.
    score: float
    #: Times and pictures of the frames between, which were too close to compare.
    between: list[tuple[float, Thumb]]
    #: When it was last repeated.
    until_s: float
    #: ``motion_residual`` of the change from the frame before, computed on demand.
    residual: tuple[float, float] | None = None


class HardCuts:
    """Finds hard cuts in a stream of thumbs; holds about half a second of them."""

    def __init__(self) -> None:
        self._frames: deque[_Frame] = deque()
        #: Frames since the last of those.
        self._between: list[tuple[float, Thumb]] = []
        self._now_s = 0.0
        #: Position in ``_frames`` of the first frame not looked at yet.
        self._next = 0

    def feed(self, ts_s: float, thumb: Thumb) -> list[Proposal]:
        """Take the next frame; return what is proposed now that its future is known."""
        self._now_s = ts_s
        self._take(ts_s, thumb)
        first = self._next
        while self._next < len(self._frames) and self._has_future(self._next):
            self._next += 1
        proposals = self._propose_all(first)
        self._forget()
        return proposals

    def flush(self) -> list[Proposal]:
        """Look at the last frames with the future there is; return as ``feed`` does."""
        first, self._next = self._next, len(self._frames)
        return self._propose_all(first)

    def _take(self, ts_s: float, thumb: Thumb) -> None:
        score = 0.0
        if self._frames:
            last = self._frames[-1]
            if ts_s - last.ts_s < _MIN_STEP_S:
                self._between.append((ts_s, thumb))
                return
            score = difference(last.thumb, thumb)
            if score < _REPEATED:
                # The newest: what a still picture began with depends on where decoding did.
                last.thumb, last.until_s = thumb, ts_s
                self._between.clear()
                return
        between = self._between if score >= _MIN_SCORE else []
        self._frames.append(_Frame(ts_s, thumb, score, between, until_s=ts_s))
        self._between = []

    def _propose_all(self, first: int) -> list[Proposal]:
        found = (self._propose(i) for i in range(first, self._next))
        return [proposal for proposal in found if proposal is not None]

    def _has_future(self, index: int) -> bool:
        wait_s = self._now_s - self._frames[index].ts_s
        enough = len(self._frames) - 1 - index >= _NEIGHBOURS or wait_s >= _MAX_WAIT_S
        return enough and wait_s >= FLASH_S

    def _forget(self) -> None:
        keep_from_s = self._frames[self._next].ts_s - FLASH_S if self._next < len(self._frames) else 0.0
        while self._next > _NEIGHBOURS + 2 and self._frames[1].ts_s < keep_from_s:
            self._frames.popleft()
            self._next -= 1

    def _propose(self, index: int) -> Proposal | None:
        frame = self._frames[index]
        if index == 0 or frame.score < _MIN_SCORE:
            return None
        first, last = max(1, index - _NEIGHBOURS), min(len(self._frames), index + _NEIGHBOURS + 1)
        near = [f for i, f in enumerate(islice(self._frames, first, last), first) if i != index]
        around = sorted(f.score for f in near if abs(f.ts_s - frame.ts_s) <= _NEIGHBOUR_S)
        # Without the two largest: they may be cuts themselves.
        around = around[:-2]
        usual = sum(around) / len(around) if around else 0.0
        if frame.score < _MIN_RATIO * usual:
            return None
        before = self._frames[index - 1].thumb
        if before.blank and frame.thumb.blank:
            return None
        change, residual = self._residual(index)
        colours = sum(
            cv2.norm(a, b, cv2.NORM_L1) / a.size
            for a, b in ((before.u, frame.thumb.u), (before.v, frame.thumb.v))
        )
        values = (
            math.log(frame.score),
            math.log((frame.score + 1) / (usual + 1)),
            math.log((frame.score + 1) / ((around[-1] if around else 0.0) + 1)),
            math.log(residual + 0.1),
            residual / max(change, 1e-6),
            math.log((residual + 0.5) / (self._usual_residual(index) + 0.5)),
            self._stays(index),
            self._is_new(index),
            colours / frame.score,
            math.log(max(before.std, frame.thumb.std) + 1),
            edge_change(before.y, frame.thumb.y),
            shared_colours(before, frame.thumb),
            matching_blocks(before.y, frame.thumb.y),
        )
        return Proposal(_first_after(before, frame), frame.score, values)

    def _usual_residual(self, index: int) -> float:
        """Return the larger residual of the two frames next to it that are no changes of the same size."""
        frame, usual = self._frames[index], 0.0
        for near in (index - 1, index + 1):
            if not 1 <= near < len(self._frames):
                continue
            other = self._frames[near]
            if other.score < 0.6 * frame.score and abs(other.ts_s - frame.ts_s) <= _NEIGHBOUR_S:
                usual = max(usual, self._residual(near)[1])
        return usual

    def _residual(self, index: int) -> tuple[float, float]:
        frame = self._frames[index]
        if frame.residual is None:
            frame.residual = motion_residual(self._frames[index - 1].thumb, frame.thumb)
        return frame.residual

    def _stays(self, index: int) -> float:
        """Return how much what comes differs from what was there before, in shares of this change, at most 1."""
        frame, before = self._frames[index], self._frames[index - 1]
        after = [f for f in islice(self._frames, index + 1, None) if f.ts_s <= frame.ts_s + FLASH_S]
        return min([1.0, *(difference(before.thumb, f.thumb) / frame.score for f in _thin(after))])

    def _is_new(self, index: int) -> float:
        """Return how much this picture differs from those shortly before the last one, as ``_stays``."""
        frame, before = self._frames[index], self._frames[index - 1]
        earlier = [f for f in islice(self._frames, index - 1) if f.until_s >= before.ts_s - FLASH_S]
        return min([1.0, *(difference(frame.thumb, f.thumb) / frame.score for f in _thin(earlier))])


def difference(a: Thumb, b: Thumb) -> float:
    """Return the mean absolute change of Y plus that of U and of V, in grey levels."""
    planes = ((a.y, b.y), (a.u, b.u), (a.v, b.v))
    return float(sum(cv2.norm(one, other, cv2.NORM_L1) / one.size for one, other in planes))


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


def _first_after(before: Thumb, frame: _Frame) -> float:
    """Return when the first picture is shown that is nearer to that of ``frame`` than to the one before it."""
    for ts_s, thumb in frame.between:
        if difference(thumb, frame.thumb) < difference(before, thumb):
            return ts_s
    return frame.ts_s


def _thin(frames: list[_Frame]) -> list[_Frame]:
    """Return at most about ten of the frames, spread evenly, with the last one."""
    step = max(1, len(frames) // 10)
    return frames[::-1][::step]
