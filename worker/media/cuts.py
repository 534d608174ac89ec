"""Finds the cuts: combines the three detectors and resolves their disagreements.

A cut is handed out ``SETTLE_S`` after it happened, in order, and never taken back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from .gradual import Dissolves, Fades
from .hardcuts import FLASH_S, Cut, HardCuts
from .planes import Thumb

#: Every detector has decided about a moment this long after it.
SETTLE_S = 4.0
#: No scene is shorter than this, except the last.
MIN_SCENE_S = FLASH_S
#: How far around a transition another finding is the same one.
_SAME_S = 0.3


class CutFinder:
    """Feeds thumbs to the detectors and hands out cuts in order; its memory is bounded by time, not by length."""

    def __init__(self) -> None:
        self._hard = HardCuts()
        self._dissolves = Dissolves()
        self._fades = Fades()
        #: Hard cuts and fades of the last seconds.
        self._hard_s: deque[float] = deque(maxlen=64)
        self._last_score = 0.0
        self._faded: deque[Cut] = deque(maxlen=16)
        self._pending: list[Cut] = []
        self._last_s = 0.0
        self._step_s = 0.0
        #: Start of the open scene.
        self._given_s = math.nan
        self._mixed_to_s = -1.0

    def feed(self, ts_s: float, thumb: Thumb) -> list[Cut]:
        """Take the next frame (times in seconds, growing); return the cuts settled by it, in order."""
        if math.isnan(self._given_s):
            self._given_s = ts_s
        for cut_s, score in self._hard.feed(ts_s, thumb):
            self._add_hard(cut_s, score)
        for dissolve in self._dissolves.feed(ts_s, thumb):
            self._add_dissolve(dissolve)
        if fade := self._fades.feed(ts_s, thumb):
            self._add_fade(fade)
        self._step_s, self._last_s = ts_s - self._last_s, ts_s
        return self._take(ts_s - SETTLE_S)

    def flush(self) -> list[Cut]:
        """Return the cuts left at the end of the video."""
        for cut_s, score in self._hard.flush():
            self._add_hard(cut_s, score)
        for dissolve in self._dissolves.flush():
            self._add_dissolve(dissolve)
        # The last frame is shown for about as long as the one before.
        return self._take(self._last_s + self._step_s - MIN_SCENE_S / 2)

    def _add_hard(self, cut_s: float, score: float) -> None:
        """Remember a hard cut; of two closer together than a scene can be short, the stronger."""
        if self._hard_s and cut_s - self._hard_s[-1] < MIN_SCENE_S:
            if score <= self._last_score:
                return
            self._pending = [cut for cut in self._pending if cut.ts_s != self._hard_s[-1]]
            self._hard_s.pop()
        self._last_score = score
        self._hard_s.append(cut_s)
        self._pending.append(Cut(cut_s, "cut", cut_s, cut_s))

    def _add_dissolve(self, cut: Cut) -> None:
        """Remember a dissolve, unless a hard cut or a fade already says what happened there."""
        if not _any_within(self._hard_s, cut) and not any(_overlap(cut, fade) for fade in self._faded):
            self._pending.append(cut)

    def _add_fade(self, fade: Cut) -> None:
        """Remember a fade, unless its border is sudden; the half of it that looked like a dissolve goes."""
        if _any_within(self._hard.jumps_s, fade):
            return
        cut = replace(
            fade, mixed_from_s=fade.mixed_from_s - Fades.RAMP_S, mixed_to_s=fade.mixed_to_s + Fades.RAMP_S
        )
        self._pending = [other for other in self._pending if other.kind == "cut" or not _overlap(other, cut)]
        self._pending.append(cut)
        self._faded.append(cut)

    def _take(self, until_s: float) -> list[Cut]:
        self._pending.sort(key=lambda cut: cut.ts_s)
        taken = []
        while self._pending and self._pending[0].ts_s <= until_s:
            cut = self._pending.pop(0)
            overlaps = cut.kind == "gradual" and cut.mixed_from_s < self._mixed_to_s
            if cut.ts_s - self._given_s < MIN_SCENE_S or overlaps:
                continue
            self._given_s, self._mixed_to_s = cut.ts_s, cut.mixed_to_s
            taken.append(cut)
        return taken


def _any_within(times_s: Iterable[float], cut: Cut) -> bool:
    return any(cut.mixed_from_s - _SAME_S <= time_s <= cut.mixed_to_s + _SAME_S for time_s in times_s)


def _overlap(a: Cut, b: Cut) -> bool:
    return a.mixed_from_s < b.mixed_to_s and b.mixed_from_s < a.mixed_to_s
