"""Which of the faces found in the keyframes of one scene are the same person. Pure: boxes and vectors in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt

from shared.contracts import Box

Float64 = npt.NDArray[np.float64]
Metric = Literal["cosine", "l2"]

#: A face that lies where the person was seen last may differ by this fraction more: somebody turned the head. With dlib's
#: limit of 0.55 that gives 0.69, where its different people begin.
OVERLAP_BONUS = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """One face in one keyframe of the scene."""

    #: The keyframe's place in the scene; a person is in it at most once.
    ordinal: int
    #: x, y, width, height in pixels; the keyframes of a scene are of one size.
    box: Box
    #: float32 [dim]
    vec: npt.NDArray[np.float32]


def link(sightings: Sequence[Sighting], metric: Metric, same_person: float) -> list[int]:
    """Number the people of a scene: sightings with the same number are the same person.

    Frame by frame, the likeliest pair of a face and a person first: by the mean distance to all earlier sightings of the
    person, so that a chain of small changes does not end at somebody else, and by how much the boxes overlap.

    Args:
        sightings: of one scene, in any order.
        metric: how vectors are compared: 1 - cosine, or Euclidean.
        same_person: the distance up to which two faces are taken for one person's.

    Returns: a number per sighting, counted from 0 as people appear; the same whatever the order of `sightings`.
    """
    if not sightings:
        return []
    order = sorted(
        range(len(sightings)),
        key=lambda i: (sightings[i].ordinal, sightings[i].box, sightings[i].vec.tobytes()),
    )
    ordered = [sightings[index] for index in order]
    boxes = np.array([sighting.box for sighting in ordered], np.float64)
    apart = distances(np.array([sighting.vec for sighting in ordered], np.float64), metric) / same_person
    numbers = np.full(len(ordered), -1)
    #: Per person the places of its sightings, the last one last.
    people: list[list[int]] = []
    for _, group in groupby(range(len(ordered)), key=lambda place: ordered[place].ordinal):
        frame = list(group)
        costs = np.empty((len(frame), len(people)))
        for number, seen in enumerate(people):
            near = _overlaps(boxes[frame], boxes[seen[-1]])
            costs[:, number] = apart[np.ix_(frame, seen)].mean(axis=1) - OVERLAP_BONUS * near
        for row, number in _cheapest_pairs(costs):
            numbers[frame[row]] = number
            people[number].append(frame[row])
        for place in frame:
            if numbers[place] < 0:
                numbers[place] = len(people)
                people.append([place])
    return [int(numbers[place]) for place in np.argsort(order)]


def distances(vectors: Float64, metric: Metric) -> Float64:
    """How far each of some vectors [N, dim] lies from each other: [N, N]."""
    if metric == "cosine":
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.where(lengths > 0, lengths, 1.0)
        return np.asarray(1.0 - unit @ unit.T, np.float64)
    squares = (vectors**2).sum(axis=1)
    apart = squares[:, None] + squares[None, :] - 2.0 * vectors @ vectors.T
    return np.asarray(np.sqrt(np.maximum(apart, 0.0)), np.float64)


def _cheapest_pairs(costs: Float64) -> list[tuple[int, int]]:
    """Pairs of a row and a column that cost at most 1, the cheapest first, none of them used twice."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set(range(costs.shape[0])), set(range(costs.shape[1]))
    for place in np.argsort(costs, axis=None, kind="stable"):
        row, column = divmod(int(place), costs.shape[1])
        if not costs[row, column] <= 1.0:
            break
        if row in rows and column in columns:
            pairs.append((row, column))
            rows.remove(row)
            columns.remove(column)
    return pairs


def _overlaps(boxes: Float64, other: Float64) -> Float64:
    """Intersection over union of boxes [N, 4] with one, 0..1."""
    low = np.maximum(boxes[:, :2], other[:2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], other[:2] + other[2:])
    shared = np.maximum(high - low, 0.0).prod(axis=1)
    union = boxes[:, 2:].prod(axis=1) + other[2:].prod() - shared
    return np.asarray(shared / np.where(union > 0, union, 1.0), np.float64)
