"""Chooses the keyframes of a scene, without a second pass and in constant memory.

Frames are held by reference. Recent ones wait until every cut up to their time is settled; of those of the open scene the ones stay
that differ most, so about forty are alive however long a scene is. What counts is what a frame shows that others do not, and longer
than for an instant: a caption over a film that moves, a person who has come in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np

from .exact import Source
from .hardcuts import Cut, difference
from .pictures import bound_frame
from .planes import Plane, Thumb, fine_luma, frame_bytes
from .sampling import Look

#: Frames held for the open scene, apart from the recent ones.
HELD = 18
#: Frames that take more than this are scaled to keyframe size before they are held.
_LARGE_BYTES = 4 * 2**20
#: A scene of at least this length has another keyframe, seconds.
_LONGER_S = (1.5, 4.0, 9.0)
#: What shows less than this that is new (``novelty``) adds nothing.
_NOTHING_NEW = 3.0
#: A frame that is shown for this long is at rest, whatever was there before, seconds.
_RESTS_S = 0.3
#: Contrast below this (grey levels) is no text.
_FLAT = 24
#: How much being far from others in time counts, for a gap as long as the scene.
_SPREAD = 4.0
#: Contrast is averaged over blocks of so many pixels; this share of them, the newest, counts.
_BLOCK_PX, _NEWEST = 10, 0.02


class Recent:
    """The candidates of the time that may still turn out to belong to another scene.

    They are the pictures on screen at each multiple of 0.2 s, wherever decoding began. So of whatever scene of at least 0.3 s comes
    out of it, one is held, also of screen recordings, where a picture may stay for long.
    """

    _STRIDE_S = 0.2

    def __init__(self) -> None:
        self._held: list[Look] = []
        #: The newest frame.
        self._passing: Look | None = None

    def offer(self, candidate: Look) -> None:
        """Take the next frame, to hold it or let it pass."""
        passing, self._passing = self._passing, candidate
        if passing is None:
            return
        is_first_key = passing.is_key and not (self._held and self._held[-1].is_key)
        if is_first_key or self._step(passing) != self._step(candidate):
            self._hold(passing)

    def take_until(self, ts_s: float) -> list[Look]:
        """Hand over the candidates before ``ts_s``."""
        count = sum(candidate.ts_s < ts_s for candidate in self._held)
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def take_rest(self) -> list[Look]:
        """Hand over all candidates, with the very last frame."""
        if self._passing is not None:
            self._hold(self._passing)
            self._passing = None
        return self.take_until(math.inf)

    def _step(self, candidate: Look) -> int:
        """Return the number of the first multiple at which it may be on screen."""
        return math.ceil(candidate.ts_s / self._STRIDE_S - 1e-6)

    def _hold(self, candidate: Look) -> None:
        if frame_bytes(candidate.frame) > _LARGE_BYTES:
            candidate.frame = bound_frame(candidate.frame)
        self._held.append(candidate)


class Shown(Protocol):
    """What may become a keyframe; ``ts_s`` in seconds."""

    source: Source | None

    @property
    def ts_s(self) -> float: ...
    @property
    def thumb(self) -> Thumb: ...
    @property
    def is_key(self) -> bool: ...
    @property
    def sharpness(self) -> float: ...


S = TypeVar("S", bound=Shown)


@dataclass(slots=True)
class Candidate(Generic[S]):
    """What may become a keyframe, with what it is compared by."""

    shown: S
    luma: Plane
    #: Local contrast that was there in the candidate before as well, over ``_FLAT``.
    lasting: Plane
    #: What it shows that the candidates held before and after it do not.
    new_since: float = math.inf
    new_until: float = math.inf


class SceneFrames(Generic[S]):
    """The candidates of the open scene that differ most from those held before and after them."""

    def __init__(self) -> None:
        self.held: list[Candidate[S]] = []
        self._before: tuple[float, Plane] | None = None

    def add(self: SceneFrames[Look], look: Look, size: tuple[int, int], *, hold: bool = True) -> None:
        """Hold a look, or another in its stead; ``size`` (``fine_size``): that it is compared in.

        ``hold``: false if it is only what the next one is compared with.
        """
        luma = fine_luma(look.frame, size)
        before, self._before = self._before, (look.ts_s, luma)
        if not hold:
            return
        contrast = cv2.morphologyEx(luma, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        if before is not None and look.ts_s - before[0] < _RESTS_S:
            changed = cv2.absdiff(luma, before[1])
            contrast = cv2.subtract(contrast, changed)
            if self.held and self.held[0].shown.ts_s == before[0]:
                self.held[0].lasting = cv2.subtract(self.held[0].lasting, changed)
        self.hold(Candidate(look, luma, cv2.subtract(contrast, _FLAT)))

    def hold(self, candidate: Candidate[S]) -> None:
        """Hold the next candidate; when there are too many, let the one go that shows least that is new."""
        self.held.append(candidate)
        if any(held.shown.is_key for held in self.held):
            # Key pictures will do: let go of the packets that the others would need.
            for held in self.held:
                held.shown.source = held.shown.source if held.shown.is_key else None
        self._compare(len(self.held) - 1)
        if len(self.held) > HELD:
            self._drop()

    def join(self, candidates: Iterable[Candidate[S]]) -> None:
        """Hold what another one has held of what follows."""
        for candidate in candidates:
            self.hold(candidate)

    def choose(self, start_s: float, end_s: float, begins: Cut | None, ends: Cut | None) -> list[S]:
        """Return the keyframes of a scene, in order: the one that stands best for all, and those that show most besides.

        Blank pictures, those inside a transition and repetitions are left out while others remain; in fast mode, all
        but key pictures.
        """
        clean_from_s = start_s if begins is None else begins.mixed_to_s
        clean_to_s = end_s if ends is None else ends.mixed_from_s
        clean = [c for c in self.held if clean_from_s <= c.shown.ts_s < clean_to_s] or self.held
        visible = [c for c in clean if not c.shown.thumb.blank] or clean
        keys = [c for c in visible if c.shown.is_key]
        if keys or any(c.shown.source for c in visible):
            # In fast mode. Without a key picture the first one is nearest to one, and so the cheapest.
            visible = keys or visible[:1]
        if len(visible) < 2:
            return [c.shown for c in visible]
        sharp = np.array([c.shown.sharpness for c in visible])
        # What a blurred picture shows counts less.
        weights = np.minimum(1.0, (sharp + 1) / (np.median(sharp) + 1))
        apart = [[difference(one.shown.thumb, other.shown.thumb) for other in visible] for one in visible]
        best = int((np.sum(apart, axis=0) / weights).argmin())
        chosen, left = [best], np.full(len(visible), np.inf)
        for _ in range(sum(end_s - start_s >= limit_s for limit_s in _LONGER_S)):
            shows = [novelty(one, visible[best]) for one in visible]
            left = np.minimum(left, weights * shows)
            best = int(left.argmax())
            if left[best] < _NOTHING_NEW:
                break
            chosen.append(best)
        return [visible[i].shown for i in sorted(chosen)]

    def _compare(self, at: int) -> None:
        """Compare the candidate at a place with the one before it."""
        if at < len(self.held):
            candidate = self.held[at]
            candidate.new_since = math.inf
            if at:
                before = self.held[at - 1]
                candidate.new_since, before.new_until = novelty(candidate, before), novelty(before, candidate)

    def _drop(self) -> None:
        """Let the one go that shows least that is new and has neighbours near in time; neither the first nor the newest."""
        held = self.held
        places: Sequence[int] = range(1, len(held) - 1)
        if any(c.shown.is_key for c in held):
            places = [i for i, c in enumerate(held) if not c.shown.is_key] or places
        span_s = held[-1].shown.ts_s - held[0].shown.ts_s

        def worth(at: int) -> float:
            after, before = held[min(at + 1, len(held) - 1)], held[max(at - 1, 0)]
            gap_s = after.shown.ts_s - before.shown.ts_s
            return min(held[at].new_since, held[at].new_until) + _SPREAD * gap_s / span_s

        at = min(places, key=worth)
        del held[at]
        self._compare(at)


def novelty(one: Candidate[S], other: Candidate[S]) -> float:
    """Return what ``one`` shows and ``other`` does not: 0 nothing, 3 a word in small letters, 20 another picture.

    The lasting contrast where the two differ, in the few blocks with most of it, so that a caption counts as much as a person; and the
    mean change. A blurred picture of the same shows nothing new.
    """
    new = cv2.min(one.lasting, cv2.absdiff(one.luma, other.luma))
    return _most(new) + difference(one.shown.thumb, other.shown.thumb)


def _most(new: Plane) -> float:
    """Return the mean of the blocks with the largest values."""
    height, width = (max(1, side // _BLOCK_PX) for side in new.shape)
    # In two steps, of which the first is fast.
    half = cv2.resize(new, (5 * width, 5 * height), interpolation=cv2.INTER_LINEAR)
    blocks = cv2.resize(half, (width, height), interpolation=cv2.INTER_AREA).ravel()
    count = max(1, round(_NEWEST * blocks.size))
    return float(np.partition(blocks, -count)[-count:].mean())
