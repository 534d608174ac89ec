"""Assigns a track to a person by the votes of its faces: pure functions over vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FaceRule:
    """The thresholds of a match, one per metric."""

    #: Minimum cosine similarity between a face and a profile, for models compared by cosine.
    cosine: float = 0.6
    #: Maximum Euclidean distance, for models compared by L2 (dlib: the same person 0.33 to 0.53, others from 0.69 on).
    distance: float = 0.55
    #: Minimum difference in similarity between the best and the second-best person.
    margin: float = 0.05

    def least(self, metric: str) -> float:
        """The minimum similarity of a match."""
        return self.cosine if metric == "cosine" else 1.0 - self.distance


@dataclass(frozen=True)
class Verdict:
    """The result of a vote."""

    #: None: no known person, or no clear majority.
    person_id: str | None
    #: Of the faces that voted, or of the nearest person if no person was chosen; None without people.
    similarity: float | None
    votes: int
    #: Similar enough to a person, but no clear majority.
    undecided: bool = False


NO_MATCH = Verdict(None, None, 0)


def similarities(faces: Float64, people: Float64, metric: str) -> Float64:
    """Similarities of faces [F, dim] and people [P, dim]: [F, P], cosine or 1 - Euclidean distance."""
    if metric == "cosine":
        return np.asarray(unit(faces) @ unit(people).T, np.float64)
    squares = (faces**2).sum(axis=1)[:, None] + (people**2).sum(axis=1)[None, :] - 2.0 * faces @ people.T
    return np.asarray(1.0 - np.sqrt(np.maximum(squares, 0.0)), np.float64)


def unit(vectors: Float64) -> Float64:
    """Vectors [N, dim] at length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0), np.float64)


def centroid(vectors: Float64, weights: Float64, metric: str) -> Float64:
    """The weighted mean [dim] of vectors [N, dim]; of length 1 where the metric is the cosine."""
    mean = (vectors * weights[:, None]).sum(axis=0) / weights.sum()
    return unit(mean[None])[0] if metric == "cosine" else np.asarray(mean, np.float64)


def decide(
    faces: Float64, weights: Float64, people: Float64, ids: Sequence[str], metric: str, rule: FaceRule
) -> Verdict:
    """Let every face vote for the most similar person, and choose the person with more than half of the votes.

    A face votes only if the similarity reaches the minimum and exceeds the next person's by the margin.
    The mean over the track must pass the same tests, so that a few faces can't decide.

    Args:
        faces: [F, dim], F at least 1.
        weights: [F], above 0: the weight of each face.
        people: [P, dim], the centroids of ``ids``.
    """
    if not ids:
        return NO_MATCH
    found = similarities(faces, people, metric)
    least = rule.least(metric)
    means = (found * weights[:, None]).sum(axis=0) / weights.sum()
    nearest = float(means.max())
    undecided = Verdict(None, nearest, 0, undecided=nearest >= least)
    best = found.argmax(axis=1)
    top = found[np.arange(len(faces)), best]
    others = np.pad(found, ((0, 0), (0, 1)), constant_values=-np.inf)
    voting = (top >= least) & (top - np.partition(others, -2, axis=1)[:, -2] >= rule.margin)
    counted = np.bincount(best[voting], weights=weights[voting], minlength=len(ids))
    chosen = int(counted.argmax())
    if counted[chosen] * 2 <= weights.sum():
        return undecided
    if means[chosen] < least or means[chosen] - np.delete(means, chosen).max(initial=-np.inf) < rule.margin:
        return undecided
    mine = voting & (best == chosen)
    similarity = float((found[mine, chosen] * weights[mine]).sum() / weights[mine].sum())
    return Verdict(ids[chosen], min(1.0, similarity), int(mine.sum()))
