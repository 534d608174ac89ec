"""Chooses the keyframes of a scene, without a second pass and in constant memory.

Frames are held by reference. Recent ones wait until every cut up to their time is settled; those of the open scene
are thinned by doubling the distance, so about forty are alive however long a scene is.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from .exact import Source
from .grid import is_same_step
from .hardcuts import Cut, difference
from .pictures import bound_frame
from .planes import Thumb, frame_bytes
from .sampling import Look

#: Steps of time in which a frame is held, seconds: shorter than any scene.
STEP_S = 0.2
#: Frames held for the open scene, apart from the recent ones.
HELD = 16
#: Frames that take more than this are scaled to keyframe size before they are held.
_LARGE_BYTES = 4 * 2**20
#: A scene of at least this length has another keyframe, seconds.
_LONGER_S = (1.5, 4.0, 9.0)
#: Pictures that differ less than this (grey levels) from the keyframe before add nothing.
_SAME_PICTURE = 1.0


class Candidate(Protocol):
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


C = TypeVar("C", bound=Candidate)


class Recent:
    """The candidates of the time that may still turn out to belong to another scene.

    Whatever scene of at least 0.3 s comes out of it, one of its frames is held: the one on screen at the end of each
    step of 0.2 s.
    """

    _MOST = 24

    def __init__(self) -> None:
        self._held: list[Look] = []
        #: The newest frame, when it is not held.
        self._passing: Look | None = None

    def offer(self, candidate: Look) -> None:
        """Take the next frame, to hold it or let it pass."""
        if self._passing is not None and not is_same_step(self._passing.ts_s, candidate.ts_s, STEP_S):
            self._hold(self._passing)
        if candidate.is_key and not (self._held and self._held[-1].is_key):
            self._hold(candidate)
        else:
            self._passing = candidate

    def take_until(self, ts_s: float) -> list[Look]:
        """Hand over the candidates before ``ts_s``."""
        count = sum(candidate.ts_s < ts_s for candidate in self._held)
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def take_rest(self) -> list[Look]:
        """Hand over all candidates, with the very last frame."""
        if self._passing is not None:
            self._hold(self._passing)
        return self.take_until(float("inf"))

    def _hold(self, candidate: Look) -> None:
        self._passing = None
        if frame_bytes(candidate.frame) > _LARGE_BYTES:
            candidate.frame = bound_frame(candidate.frame)
        self._held.append(candidate)
        if len(self._held) > self._MOST:
            # Key pictures beside the others: the most crowded goes, so no gap grows beyond two steps.
            middle = range(1, len(self._held) - 1)
            del self._held[min(middle, key=lambda i: self._held[i + 1].ts_s - self._held[i - 1].ts_s)]


class SceneFrames(Generic[C]):
    """The candidates of the open scene, evenly spread over it.

    Which are held depends on their times alone: those of two spans of a scene, added in order, make those of the scene.
    """

    def __init__(self) -> None:
        #: In order: the first candidate of each step that has one, or its first key picture.
        self.held: list[C] = []
        self.step_s = STEP_S

    def add(self, candidate: C) -> None:
        """Keep the candidate if it is the first of its step; where too much is held, steps become twice as long."""
        if self.held and is_same_step(candidate.ts_s, self.held[-1].ts_s, self.step_s):
            if candidate.is_key and not self.held[-1].is_key:
                self.held[-1] = candidate
        else:
            self.held.append(candidate)
        if any(held.is_key for held in self.held):
            # Key pictures will do: let go of the packets that the others would need.
            for held in self.held:
                held.source = held.source if held.is_key else None
        if len(self.held) > HELD:
            self._widen()

    def join(self, candidates: Iterable[C], step_s: float) -> None:
        """Add what another one has held of what follows, in steps of ``step_s``."""
        while self.step_s < step_s:
            self._widen()
        for candidate in candidates:
            self.add(candidate)

    def _widen(self) -> None:
        self.step_s *= 2
        before, self.held = self.held, []
        for candidate in before:
            self.add(candidate)

    def choose(self, start_s: float, end_s: float, begins: Cut | None, ends: Cut | None) -> list[C]:
        """Return the keyframes of a scene, in order: the sharpest of each part of it, at least one.

        Blank pictures, those inside a transition and repetitions are left out while others remain; in fast mode, all
        but key pictures.
        """
        clean_from_s = start_s if begins is None else begins.mixed_to_s
        clean_to_s = end_s if ends is None else ends.mixed_from_s
        clean = [c for c in self.held if clean_from_s <= c.ts_s < clean_to_s] or self.held
        visible = [c for c in clean if not c.thumb.blank] or clean
        keys = [c for c in visible if c.is_key]
        if keys or any(c.source for c in visible):
            # In fast mode. Without a key picture the first one is nearest to one, and so the cheapest.
            visible = keys or visible[:1]
        span_s = max(end_s - start_s, 1e-6)
        parts = 1 + sum(end_s - start_s >= limit_s for limit_s in _LONGER_S)
        chosen: list[C] = []
        for _, group in groupby(
            visible, lambda c: min(parts - 1, max(0, int((c.ts_s - start_s) / span_s * parts)))
        ):
            slot = list(group)
            best = slot[0] if len(slot) == 1 else max(slot, key=lambda c: c.sharpness)
            if not chosen or difference(chosen[-1].thumb, best.thumb) >= _SAME_PICTURE:
                chosen.append(best)
        return chosen
