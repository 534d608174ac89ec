"""How likely a proposal is a cut: logistic regressions whose weights were fitted to films labelled by eye.

``cuts.json``, which ``python -m bench.films fit`` writes, has one model per kind of proposal for the cheap features, and what
TransNetV2's answer adds to its logit. Only proposals whose cheap probability is doubtful are read by the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Verdict:
    """The models of one kind of proposal."""

    features: tuple[str, ...]
    #: Bias, then a weight for each feature.
    cheap: tuple[float, ...]
    #: What is added to the cheap model's logit: a constant, and the logit of the network's probability times a weight.
    joined: tuple[float, float]
    #: Cheap probabilities between these are doubtful.
    doubtful: tuple[float, float]

    def cheaply(self, features: Sequence[float]) -> float:
        """Return the probability by the cheap features alone."""
        return probability(self.cheap[0] + _dot(self.cheap[1:], features))

    def jointly(self, cheap: float, network: float) -> float:
        """Return the probability by the cheap one and the network's."""
        bias, weight = self.joined
        return probability(logit(cheap) + bias + weight * logit(network))

    def is_doubtful(self, cheap: float) -> bool:
        """Whether the network should be asked."""
        return self.doubtful[0] < cheap < self.doubtful[1]


@cache
def load(kind: str, features: tuple[str, ...]) -> Verdict:
    """Return the models of ``kind`` ("hard" or "gradual"); raises ValueError if they were fitted to other features."""
    known = json.loads((Path(__file__).parent / "cuts.json").read_text())[kind]
    verdict = Verdict(**{name: tuple(value) for name, value in known.items()})
    if verdict.features != features:
        raise ValueError(
            f"cuts.json was fitted to {verdict.features}, and the features are {features}: fit it again"
        )
    return verdict


def probability(value: float) -> float:
    """Return the logistic function."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, value))))


def logit(chance: float) -> float:
    """Return the inverse of ``probability``, at most 9.2 up or down."""
    chance = max(1e-4, min(1 - 1e-4, chance))
    return math.log(chance / (1 - chance))


def _dot(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))
