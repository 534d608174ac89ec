"""Finds the cuts: the detectors propose, fitted models judge, and a network those that are doubtful.

A cut is handed out ``SETTLE_S`` after it happened, in order, and never taken back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from . import gradual, hardcuts, verdict
from .gradual import Dissolve, Dissolves, Fades
from .grid import step_of
from .hardcuts import FLASH_S, Cut, HardCuts, Proposal
from .judge import Judge, Peak
from .planes import Thumb
from .slides import Slides

#: Every detector has decided about a moment this long after it.
SETTLE_S = 4.0
#: What happened longer ago than this before a moment has no influence on what is decided about it: a dissolve is looked for in
#: samples of 3.5 s and judged 1.5 s later, the network reads the second before it, and is asked so often in a step of 1 s.
MEMORY_S = 7.0
#: No scene is shorter than this, except the last.
MIN_SCENE_S = FLASH_S
#: How far around a transition another finding is the same one.
_SAME_S = 0.3
#: After a hard cut the network needs pictures for this long; after a dissolve too, which may also be half of a fade.
WAIT_S, DISSOLVE_WAIT_S = 0.6, 1.5
#: The network is asked about one proposal in each step of so many seconds: each costs up to a quarter of a CPU second.
#: A film that flickers has more; of those the cheap features decide.
_ASKED_STEP_S = 1.0
#: A change so much larger than those around it is no part of a fade (a logarithm).
_SUDDEN = math.log(2)
#: A fade has no model: a run of uniform pictures between two scenes.
_FADE_CONFIDENCE = 0.9


class CutFinder:
    """Feeds thumbs to the detectors and hands out cuts in order; its memory is bounded by time, not by length."""

    def __init__(
        self, judge: Judge | None = None, min_confidence: float = 0.5, *, resumed: bool = False
    ) -> None:
        """Without a ``judge`` the cheap features decide alone; what is less certain than the minimum is no cut.

        ``resumed``: the first frame is not the video's.
        """
        self._judge = judge
        self._min_confidence = min_confidence
        #: The step of time in which the network was asked last.
        self._asked_step = -1
        self._hard = HardCuts()
        self._dissolves = Dissolves()
        self._fades = Fades(resumed=resumed)
        self._slides = Slides()
        self._hard_verdict = verdict.load("hard", hardcuts.FEATURES)
        self._gradual_verdict = verdict.load("gradual", gradual.FEATURES)
        #: Proposed hard cuts whose future the network has not seen.
        self._waiting: deque[Proposal] = deque()
        #: Proposed dissolves that are judged ``DISSOLVE_WAIT_S`` after they were seen.
        self._mixed: deque[Dissolve] = deque()
        #: Hard cuts of the last seconds, and all sudden changes, cut or flash: borders that no fade can have.
        self._hard_s: deque[float] = deque(maxlen=64)
        self._jumps_s: deque[float] = deque(maxlen=64)
        self._last_score = 0.0
        self._faded: deque[Cut] = deque(maxlen=16)
        self._pending: list[Cut] = []
        self._last_s = 0.0
        self._step_s = 0.0
        #: Start of the open scene.
        self._given_s = -math.inf if resumed else math.nan
        self._mixed_to_s = -1.0
        #: When the first picture that is not blank was shown: nothing before it is a scene.
        self._shown_s = -math.inf if resumed else math.inf

    def feed(self, ts_s: float, thumb: Thumb) -> list[Cut]:
        """Take the next frame (times in seconds, growing); return the cuts settled by it, in order."""
        if math.isnan(self._given_s):
            self._given_s = ts_s
        if not thumb.blank:
            self._shown_s = min(self._shown_s, ts_s)
        peaks = self._judge.feed(ts_s, thumb) if self._judge else []
        self._waiting.extend(self._hard.feed(ts_s, thumb))
        self._judge_waiting(ts_s - WAIT_S)
        self._mixed.extend(self._dissolves.feed(ts_s, thumb))
        if fade := self._fades.feed(ts_s, thumb):
            self._add_fade(fade)
        self._judge_mixed(ts_s - DISSOLVE_WAIT_S)
        if slide := self._slides.feed(ts_s, thumb):
            self._add_slide(slide)
        for peak in peaks:
            self._add_peak(peak)
        self._step_s, self._last_s = ts_s - self._last_s, ts_s
        return self._take(ts_s - SETTLE_S)

    def flush(self) -> list[Cut]:
        """Return the cuts left at the end of the video."""
        peaks = self._judge.flush() if self._judge else []
        self._waiting.extend(self._hard.flush())
        self._judge_waiting(math.inf)
        self._mixed.extend(self._dissolves.flush())
        self._judge_mixed(math.inf)
        if slide := self._slides.flush():
            self._add_slide(slide)
        for peak in peaks:
            self._add_peak(peak)
        # The last frame is shown for about as long as the one before.
        return self._take(self._last_s + self._step_s - MIN_SCENE_S / 2)

    def _judge_waiting(self, until_s: float) -> None:
        while self._waiting and self._waiting[0].ts_s <= until_s:
            self._add_hard(self._waiting.popleft())

    def _judge_mixed(self, until_s: float) -> None:
        """Judge the dissolves seen until then; of several proposals of one, the likeliest."""
        chance = self._gradual_verdict.cheaply
        while self._mixed and self._mixed[0].seen_s <= until_s:
            first = self._mixed.popleft()
            others = (other for other in self._mixed if _overlap(first.cut, other.cut))
            if all(chance(other.features) <= chance(first.features) for other in others):
                self._add_dissolve(first)

    def _judged(
        self, models: verdict.Verdict, features: tuple[float, ...], from_s: float, to_s: float
    ) -> tuple[float, float | None]:
        """How likely a proposal is a cut; and where the network has it, if it was asked and is for it."""
        cheap = models.cheaply(features)
        step = step_of(self._last_s, _ASKED_STEP_S)
        if self._judge is None or step == self._asked_step or not models.is_doubtful(cheap):
            return cheap, None
        self._asked_step = step
        said = self._judge.ask(from_s, to_s)
        return models.jointly(cheap, said.chance), said.centre_s

    def _add_hard(self, proposal: Proposal) -> None:
        """Judge a hard cut; of two closer together than a scene can be short, remember the stronger."""
        cut_s = proposal.ts_s
        if proposal.features[hardcuts.FEATURES.index("l_next")] > _SUDDEN:
            self._jumps_s.append(cut_s)
        confidence, _ = self._judged(self._hard_verdict, proposal.features, cut_s, cut_s)
        if confidence < self._min_confidence:
            return
        if self._hard_s and cut_s - self._hard_s[-1] < MIN_SCENE_S:
            if proposal.score <= self._last_score:
                return
            self._pending = [cut for cut in self._pending if cut.ts_s != self._hard_s[-1]]
            self._hard_s.pop()
        self._pending = [cut for cut in self._pending if cut.ts_s != cut_s]
        self._last_score = proposal.score
        self._hard_s.append(cut_s)
        self._pending.append(Cut(cut_s, "cut", cut_s, cut_s, confidence))

    def _add_dissolve(self, dissolve: Dissolve) -> None:
        """Judge a dissolve, unless a hard cut or a fade already says what happened there."""
        cut = dissolve.cut
        if _any_within(self._hard_s, cut) or any(_overlap(cut, fade) for fade in self._faded):
            return
        confidence, centre_s = self._judged(
            self._gradual_verdict, dissolve.features, cut.mixed_from_s, cut.mixed_to_s
        )
        if confidence >= self._min_confidence:
            at_s = cut.ts_s if centre_s is None else min(max(centre_s, cut.mixed_from_s), cut.mixed_to_s)
            self._pending.append(replace(cut, ts_s=at_s, confidence=confidence))

    def _add_fade(self, fade: Cut) -> None:
        """Remember a fade, unless its border is sudden; the half of it that looked like a dissolve goes."""
        if _any_within(self._jumps_s, fade) or self._min_confidence > _FADE_CONFIDENCE:
            return
        cut = replace(
            fade,
            mixed_from_s=fade.mixed_from_s - Fades.RAMP_S,
            mixed_to_s=fade.mixed_to_s + Fades.RAMP_S,
            confidence=_FADE_CONFIDENCE,
        )
        self._pending = [other for other in self._pending if other.kind == "cut" or not _overlap(other, cut)]
        self._pending.append(cut)
        self._faded.append(cut)

    def _add_slide(self, cut: Cut) -> None:
        """Remember a change of slides, unless a hard cut or a dissolve is there already."""
        near = any(
            other.mixed_from_s - _SAME_S <= cut.ts_s <= other.mixed_to_s + _SAME_S for other in self._pending
        )
        if not near and not _any_within(self._hard_s, cut) and cut.confidence >= self._min_confidence:
            self._pending.append(cut)

    def _add_peak(self, peak: Peak) -> None:
        """Remember a transition that only the network found."""
        long = peak.to_s - peak.from_s > _SAME_S
        cut = Cut(peak.ts_s, "gradual" if long else "cut", peak.ts_s, peak.ts_s, peak.chance)
        if long:
            cut = replace(cut, mixed_from_s=peak.from_s, mixed_to_s=peak.to_s)
        near = replace(cut, mixed_from_s=cut.mixed_from_s - _SAME_S, mixed_to_s=cut.mixed_to_s + _SAME_S)
        if any(_overlap(near, other) for other in (*self._pending, *self._faded)):
            return
        if not _any_within(self._hard_s, cut) and peak.chance >= self._min_confidence:
            self._pending.append(cut)

    def _take(self, until_s: float) -> list[Cut]:
        self._pending.sort(key=lambda cut: cut.ts_s)
        taken = []
        while self._pending and self._pending[0].ts_s <= until_s:
            cut = self._pending.pop(0)
            overlaps = cut.kind == "gradual" and cut.mixed_from_s < self._mixed_to_s
            # Black before the first picture, and the fade-in from it, belong to the first scene.
            is_first = cut.ts_s <= self._shown_s
            if cut.ts_s - self._given_s < MIN_SCENE_S or overlaps or is_first:
                continue
            self._given_s, self._mixed_to_s = cut.ts_s, cut.mixed_to_s
            taken.append(cut)
        return taken


def _any_within(times_s: Iterable[float], cut: Cut) -> bool:
    return any(cut.mixed_from_s - _SAME_S <= time_s <= cut.mixed_to_s + _SAME_S for time_s in times_s)


def _overlap(a: Cut, b: Cut) -> bool:
    return a.mixed_from_s < b.mixed_to_s and b.mixed_from_s < a.mixed_to_s
