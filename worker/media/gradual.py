"""Gradual transitions: dissolves and fades, each by its own rule.

Dissolve: for about a second every picture is a mixture of the picture at the start and the one at the end, with a
weight that climbs steadily (the production model of Hampapur, Jain and Weymouth, "Production model based digital
video segmentation", 1995). Camera moves change the picture as much, but the pictures between are no mixtures. What is
nearly so is proposed, with numbers (``FEATURES``) by which a fitted model (``verdict``) judges.
Fade: a run of pictures of one colour, mostly black or white, that no sudden change leads into or out of.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import cv2
import numpy as np

from .grid import is_same_step
from .hardcuts import Cut, motion_residual
from .planes import Plane, Thumb
from .similarity import edge_change, matching_blocks

#: Lengths of time over which a mixture is looked for, in seconds.
_SPANS_S = (0.28, 0.5, 0.8, 1.2, 1.8, 2.6, 3.4)
#: One sample of each such step is taken, so that high frame rates cost no more.
_STEP_S = 1 / 31
#: Short spans are tried at every sample, long ones at the first of each such step.
_LONG_EVERY_S = 0.15
#: Smallest mean difference of the two ends, in grey levels.
_MIN_CHANGE = 9.0
#: Largest share of the change that the mixture may leave unexplained, (worst picture, mean picture), from each mean
#: difference of the ends on: moving objects disturb a strong change little, zooms over texture make weak ones.
_MAX_RESIDUALS = ((_MIN_CHANGE, 0.17, 0.12), (15.0, 0.34, 0.24), (30.0, 0.42, 0.30))
#: Largest step of the weight between two samples (a hard cut makes one of 1.0) and largest step back.
_MAX_STEP = 0.6
_MAX_BACKSTEP = 0.08
#: Largest step next to an end: more means that the end is a flash or the other side of a cut.
_MAX_END_STEP = 0.3
#: Ends that correlate more than this show the same scene.
_MAX_CORRELATION = 0.6
#: Share of the change that moving blocks must leave: pans and shakes over textures leave up to 0.33, dissolves from
#: 0.38 up (measured on photographs); smooth pictures less, but then the mixture is nearly pure, as no move is.
_MIN_UNEXPLAINED = 0.35
_MIN_UNEXPLAINED_PURE, _NEAR_PURE = 0.2, 0.12

#: What is known of a proposal, in the order of the model's weights. ``l_`` marks logarithms.
FEATURES = (
    "l_change",  # mean difference of the two ends
    "left",  # share of the change that the mixtures leave
    "worst",  # in the worst picture
    "correlation",  # of the ends
    "unexplained",  # share of the change in the middle half that moving blocks leave
    "step",  # largest step of the weight
    "back",  # largest step back
    "rests",  # smallest step over the largest: a steady pan climbs all the time
    "ends",  # larger step next to an end
    "l_contrast",  # lesser contrast of the two ends over the greater: a fade comes from a uniform picture
    "edges",  # share of edges that changed
    "matching",  # correlation of blocks with their best match nearby
)

#: A found dissolve is settled when nothing better came for this long.
_SETTLE_S = 0.5
#: Pictures of a span that are tested, at most.
_TESTED = 12
#: Size (width, height) in pixels of the pictures the mixture is fitted on: small, so that slow pans don't matter.
_SIZE = (32, 18)


@dataclass(slots=True)
class _Sample:
    ts_s: float
    picture: Plane  # uint8 [18, 32], luma
    thumb: Thumb


@dataclass(frozen=True, slots=True)
class Dissolve:
    """What may be a dissolve."""

    change: float
    seen_s: float
    cut: Cut
    #: As ``FEATURES`` names them.
    features: tuple[float, ...]


class Dissolves:
    """Finds dissolves in a stream of thumbs; holds the samples of the longest span."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._best: Dissolve | None = None

    def feed(self, ts_s: float, thumb: Thumb) -> list[Dissolve]:
        """Take the next frame; return the dissolves proposed by it (at most one)."""
        last_s = self._samples[-1].ts_s if self._samples else -1.0
        if is_same_step(ts_s, last_s, _STEP_S):
            return []
        picture = cv2.resize(thumb.y, _SIZE, interpolation=cv2.INTER_AREA)
        self._samples.append(_Sample(ts_s, picture, thumb))
        while ts_s - self._samples[0].ts_s > _SPANS_S[-1] + 0.1:
            self._samples.popleft()
        found = self._search(_SPANS_S[:2] if is_same_step(ts_s, last_s, _LONG_EVERY_S) else _SPANS_S)
        if found and (self._best is None or found.change > 1.02 * self._best.change):
            self._best = found
        if self._best and ts_s - self._best.seen_s > _SETTLE_S:
            return self.flush()
        return []

    def flush(self) -> list[Dissolve]:
        """Propose what is still open."""
        best, self._best = self._best, None
        return [best] if best else []

    def _search(self, spans_s: Sequence[float]) -> Dissolve | None:
        """Return the span ending now that is a mixture and changes most."""
        end = self._samples[-1]
        if end.thumb.uniform:
            return None
        best: Dissolve | None = None
        start = len(self._samples) - 1
        for span_s in spans_s:
            while start > 0 and end.ts_s - self._samples[start].ts_s < span_s - 0.005:
                start -= 1
            first = self._samples[start]
            if end.ts_s - first.ts_s < span_s - 0.005:
                break
            if first.thumb.uniform:
                continue
            change = float(cv2.norm(first.picture, end.picture, cv2.NORM_L1)) / end.picture.size
            if change < _MIN_CHANGE or (best is not None and change < best.change):
                continue
            best = self._fit(start, change) or best
        return best

    def _fit(self, start: int, change: float) -> Dissolve | None:
        """Return the transition if the samples from ``start`` on are mixtures of the first and the last."""
        count = len(self._samples) - start
        if count < 5:
            return None
        first, last = self._samples[start], self._samples[-1]
        worst, mean = next((w, m) for least, w, m in reversed(_MAX_RESIDUALS) if change >= least)
        length = cv2.norm(first.picture, last.picture, cv2.NORM_L2SQR)
        # One in the middle first: camera moves end there.
        middle = self._samples[start + count // 2].picture
        if mixture(first.picture, middle, last.picture, length)[1] > worst:
            return None
        inner = min(count - 2, _TESTED)
        places = [start + round(step * (count - 1) / (inner + 1)) for step in range(1, inner + 1)]
        fits: list[tuple[float, float]] = []
        for place in places:
            fits.append(mixture(first.picture, self._samples[place].picture, last.picture, length))
            if fits[-1][1] > worst:
                return None
        left = sum(residual for _, residual in fits) / inner
        correlated = _correlation(first.picture, last.picture)
        if left > mean or correlated > _MAX_CORRELATION:
            return None
        weights = [0.0, *(weight for weight, _ in fits), 1.0]
        steps = [b - a for a, b in pairwise(weights)]
        ends = max(steps[0], steps[-1])
        if max(steps) > _MAX_STEP or min(steps) < -_MAX_BACKSTEP or ends > _MAX_END_STEP:
            return None
        times_s = [first.ts_s, *(self._samples[i].ts_s for i in places), last.ts_s]
        climbing = list(accumulate(weights, max))
        start_s, mid_s, end_s = (float(np.interp(w, climbing, times_s)) for w in (0.05, 0.5, 0.95))
        unexplained = self._unexplained(start_s + (mid_s - start_s) / 2, mid_s + (end_s - mid_s) / 2)
        if unexplained < (_MIN_UNEXPLAINED if left > _NEAR_PURE else _MIN_UNEXPLAINED_PURE):
            return None
        values = (
            math.log(change),
            left,
            max(residual for _, residual in fits),
            correlated,
            unexplained,
            max(steps),
            -min(0.0, *steps),
            max(0.0, min(steps)) / max(steps),
            ends,
            *self._compare(start_s, end_s),
        )
        return Dissolve(change, last.ts_s, Cut(mid_s, "gradual", start_s, end_s), values)

    def _compare(self, from_s: float, to_s: float) -> tuple[float, float, float]:
        """Return the last three of ``FEATURES``, of the last picture before a transition and the last one in it."""
        before = next((s for s in reversed(self._samples) if s.ts_s < from_s), self._samples[0]).thumb
        after = next(s for s in reversed(self._samples) if s.ts_s <= to_s).thumb
        contrasts = sorted((before.std, after.std))
        return (
            math.log((contrasts[0] + 1) / (contrasts[1] + 1)),
            edge_change(before.y, after.y),
            matching_blocks(before.y, after.y),
        )

    def _unexplained(self, from_s: float, to_s: float) -> float:
        """Return the share of the change in the middle half of a transition that moving blocks leave."""
        before = min(self._samples, key=lambda sample: abs(sample.ts_s - from_s))
        after = min(self._samples, key=lambda sample: abs(sample.ts_s - to_s))
        change, residual = motion_residual(before.thumb, after.thumb)
        return residual / max(change, 1e-6)


def mixture(first: Plane, picture: Plane, last: Plane, length: float) -> tuple[float, float]:
    """Fit ``picture`` as ``(1 - w) * first + w * last`` by least squares; return w and what the fit leaves over.

    Three uint8 pictures of one size; ``length``: the squared distance of ``first`` and ``last``. The rest is a ratio
    of norms, to the whole change: 0 for a pure mixture, about 0.9 for an unrelated picture. By the law of cosines,
    from distances alone.
    """
    from_first = cv2.norm(first, picture, cv2.NORM_L2SQR) / length
    from_last = cv2.norm(picture, last, cv2.NORM_L2SQR) / length
    weight = (from_first - from_last + 1) / 2
    return weight, math.sqrt(max(0.0, from_first - weight * weight))


def _correlation(a: Plane, b: Plane) -> float:
    """Return the zero-mean normalised correlation of two planes, -1..1; 0 when one is uniform."""
    if min(cv2.meanStdDev(a)[1][0, 0], cv2.meanStdDev(b)[1][0, 0]) <= 1:
        return 0.0
    return float(cv2.matchTemplate(a, b, cv2.TM_CCOEFF_NORMED)[0, 0])


class Fades:
    """Finds runs of uniform pictures between two scenes; the caller drops those that a hard cut leads into."""

    #: How long before and after the run pictures may be darkened.
    RAMP_S = 0.6
    #: Longer runs put their cut this long before their end, so that it is known soon enough.
    MAX_MIDDLE_S = 3.0

    def __init__(self, *, resumed: bool = False) -> None:
        """``resumed``: the first frame is not the video's, and a picture has been seen before."""
        self._seen_picture = resumed
        self._run_start_s: float | None = None

    def feed(self, ts_s: float, thumb: Thumb) -> Cut | None:
        """Take the next frame; return the fade that ended with it. None at the start or end of the video."""
        start_s = self._run_start_s
        if thumb.uniform:
            self._run_start_s = ts_s if start_s is None else start_s
            return None
        self._run_start_s = None
        seen, self._seen_picture = self._seen_picture, True
        if start_s is None or not seen:
            return None
        return Cut(max((start_s + ts_s) / 2, ts_s - self.MAX_MIDDLE_S), "gradual", start_s, ts_s)
