"""Asks TransNetV2 about doubtful proposals, in short windows around them, or lets it read every frame."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .grid import is_same_step, step_of
from .planes import Thumb
from .transnet import SIZE, TransNet

#: One picture of each such step is read: the network was trained on 24 to 30 of them a second.
_STEP_S = 1 / 31
#: Pictures that are remembered, at least as long as the longest transition and what must follow it.
_HELD = 150
#: Pictures read of a proposal, at most: of a longer one every second, third, ...; and before and after it.
_INSIDE, _AROUND = 10, 6
#: Reading every frame: windows end at steps of this length, and of their pictures all but those of the last ``_MARGIN_S`` and the
#: first ``_MARGIN`` count.
_READ_EVERY_S = 1.6
_MARGIN, _MARGIN_S = 25, 0.8
#: A transition that no detector proposed is one from this probability on.
_OWN_CHANCE = 0.5
#: Where its pictures are covered with this probability, they belong to the transition.
_COVERED = 0.3


@dataclass(slots=True)
class _Sample:
    ts_s: float
    thumb: Thumb
    #: Reading every frame: (centre, cover), as probabilities.
    chances: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Peak:
    """A transition that the network found by itself."""

    ts_s: float
    from_s: float
    to_s: float
    chance: float


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the network says of a proposal: how likely a transition is there, and where (its last picture before the centre)."""

    chance: float
    centre_s: float


class Judge:
    """Remembers the last seconds for the network; times are seconds."""

    def __init__(self, weights: Path, *, every: bool) -> None:
        """``weights``: the network's file, read when it is first asked; ``every``: let it read every frame."""
        self._weights = weights
        self._every = every
        self._samples: deque[_Sample] = deque(maxlen=_HELD)

    @cached_property
    def _network(self) -> TransNet:
        return TransNet(self._weights)

    def feed(self, ts_s: float, thumb: Thumb) -> list[Peak]:
        """Take the next frame; reading every frame, return the transitions found by it."""
        last_s = self._samples[-1].ts_s if self._samples else -1.0
        if is_same_step(ts_s, last_s, _STEP_S):
            return []
        self._samples.append(_Sample(ts_s, thumb))
        if not self._every or is_same_step(ts_s, last_s, _READ_EVERY_S):
            return []
        return self._read_on(step_of(ts_s, _READ_EVERY_S) * _READ_EVERY_S - _MARGIN_S)

    def flush(self) -> list[Peak]:
        """Reading every frame, return the transitions among the last ones."""
        return self._read_on(math.inf) if self._every and self._samples else []

    def ask(self, from_s: float, to_s: float) -> Opinion:
        """Judge what happens from ``from_s`` to ``to_s``."""
        samples = list(self._samples)
        inside = [i for i, sample in enumerate(samples) if from_s <= sample.ts_s <= to_s]
        nearest = min(range(len(samples)), key=lambda i: abs(samples[i].ts_s - (from_s + to_s) / 2))
        first, last = (inside[0], inside[-1]) if inside else (nearest, nearest)
        # The network centres a cut on the frame before it.
        first, last = max(0, first - 2), min(len(samples) - 1, last + 1)
        inside = list(range(first, last + 1))
        known = [samples[i].chances for i in inside]
        if self._every and all(known):
            found = np.array(known)
        else:
            step = math.ceil(len(inside) / _INSIDE)
            around = range(first - _AROUND * step, last + _AROUND * step + 1, step)
            read = [i for i in around if 0 <= i < len(samples)]
            answers = self._read([samples[i] for i in read])
            inside = [i for i in read if first <= i <= last]
            found = answers[read.index(inside[0]) :][: len(inside)]
        centre = int(found[:, 0].argmax())
        return Opinion(float(found[centre, 0]), samples[inside[centre]].ts_s)

    def _read(self, samples: list[_Sample]) -> NDArray[np.float32]:
        return self._network.judge(np.stack([picture(sample.thumb) for sample in samples]))

    def _read_on(self, until_s: float) -> list[Peak]:
        """Read the pictures before ``until_s`` that were not read; later ones only help with these."""
        samples = list(self._samples)
        first = next((i for i, sample in enumerate(samples) if sample.chances is None), len(samples))
        last = sum(sample.ts_s < until_s for sample in samples)
        if first >= last:
            return []
        start = max(0, first - _MARGIN)
        found = self._read(samples[start:])
        for i in range(first, last):
            samples[i].chances = (float(found[i - start, 0]), float(found[i - start, 1]))
        return [self._peak(samples, i) for i in range(max(1, first), last) if _is_peak(samples, i)]

    def _peak(self, samples: list[_Sample], at: int) -> Peak:
        start = end = at
        while start > 0 and _covered(samples[start - 1]):
            start -= 1
        while end + 1 < len(samples) and _covered(samples[end + 1]):
            end += 1
        following = samples[min(at + 1, len(samples) - 1)]
        return Peak(
            following.ts_s, samples[start].ts_s, samples[end].ts_s, (samples[at].chances or (0, 0))[0]
        )


def _covered(sample: _Sample) -> bool:
    return sample.chances is not None and sample.chances[1] >= _COVERED


def _is_peak(samples: list[_Sample], at: int) -> bool:
    def centre(index: int) -> float:
        chances = samples[index].chances if 0 <= index < len(samples) else None
        return chances[0] if chances else 0.0

    return centre(at) >= _OWN_CHANCE and centre(at) > centre(at - 1) and centre(at) >= centre(at + 1)


def picture(thumb: Thumb) -> NDArray[np.uint8]:
    """Return a thumb as the network takes pictures: uint8 [27, 48, 3], RGB (BT.601, studio range)."""
    y, u, v = (
        cv2.resize(plane, SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
        for plane in (thumb.y, thumb.u, thumb.v)
    )
    y, u, v = (y - 16) * 1.164, u - 128, v - 128
    rgb = np.stack([y + 1.596 * v, y - 0.392 * u - 0.813 * v, y + 2.017 * u], axis=2)
    small: NDArray[np.uint8] = np.clip(rgb, 0, 255).astype(np.uint8)
    return small
