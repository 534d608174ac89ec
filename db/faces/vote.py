"""Whose face a track shows, by the vote of its faces. Pure: vectors in, a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FaceRule:
    """From when on a face is somebody's; a measure per metric."""

    #: Least cosine of a face and a person, for models compared by cosine.
    cosine: float = 0.6
    #: Largest Euclidean distance, for models compared by L2 (dlib: the same person 0.33 to 0.53, others from 0.69 on).
    distance: float = 0.55
    #: How much better than the second best person the best must be, in similarity.
    margin: float = 0.05

    def least(self, metric: str) -> float:
        """The similarity from which on a face is a person's."""
        return self.cosine if metric == "cosine" else 1.0 - self.distance


@dataclass(frozen=True)
class Verdict:
    """What the faces of a track say."""

    #: None: nobody we know, or nobody in particular.
    person_id: str | None
    #: Of the faces that voted, or of the nearest person when nobody was chosen; None without people.
    similarity: float | None
    votes: int
    #: Near enough to somebody, but not clearly the one or the other.
    undecided: bool = False


NOBODY = Verdict(None, None, 0)


def similarities(faces: Float64, people: Float64, metric: str) -> Float64:
    """How alike each of some faces [F, dim] and people [P, dim] are: [F, P], cosine or 1 - Euclidean distance."""
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
    """Let every face vote for the person it is like, and take the one with more than half of the votes.

    A face votes only for a person it is like enough, and clearly more like than the next one; else it votes for nobody.
    The same is asked of the track as a whole, so that a few lucky faces decide nothing.

    Args:
        faces: [F, dim], F at least 1.
        weights: [F], above 0: how well each face shows who it is.
        people: [P, dim], the centroids of ``ids``.
    """
    if not ids:
        return NOBODY
    alike = similarities(faces, people, metric)
    least = rule.least(metric)
    means = (alike * weights[:, None]).sum(axis=0) / weights.sum()
    nearest = float(means.max())
    nobody = Verdict(None, nearest, 0, undecided=nearest >= least)
    best = alike.argmax(axis=1)
    top = alike[np.arange(len(faces)), best]
    voting = (top >= least) & (top - _second(alike) >= rule.margin)
    counted = np.bincount(best[voting], weights=weights[voting], minlength=len(ids))
    chosen = int(counted.argmax())
    if counted[chosen] * 2 <= weights.sum():
        return nobody
    if means[chosen] < least or means[chosen] - np.delete(means, chosen).max(initial=-np.inf) < rule.margin:
        return nobody
    mine = voting & (best == chosen)
    similarity = float((alike[mine, chosen] * weights[mine]).sum() / weights[mine].sum())
    return Verdict(ids[chosen], min(1.0, similarity), int(mine.sum()))


def _second(alike: Float64) -> Float64:
    """Per face the second best similarity; minus infinity when there is one person only."""
    if alike.shape[1] < 2:
        return np.full(alike.shape[0], -np.inf)
    return np.asarray(np.partition(alike, -2, axis=1)[:, -2], np.float64)
