"""Faces of a scene's keyframes become people: who is linked to whom, and in which order they are counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, strategies as st

from worker.stages.tracks import Metric, Sighting, distances, link

DIM = 8
LIMIT: dict[Metric, float] = {"cosine": 0.7, "l2": 0.55}
HERE, ELSEWHERE = (100.0, 100.0, 80.0, 100.0), (600.0, 120.0, 80.0, 100.0)


def face(
    person: int, ordinal: int, box: tuple[float, float, float, float] = HERE, turned: float = 0.0
) -> Sighting:
    """A person is a unit vector; `turned` moves it by that Euclidean distance, off towards nobody."""
    vec = np.zeros(DIM, np.float32)
    vec[person] = 1.0
    vec[-1] = turned
    return Sighting(ordinal, box, vec)


TWINS = [face(1, 0, HERE), face(1, 0, ELSEWHERE)]
#: Sightings, and the number of the person of each.
LINKED: dict[str, tuple[list[Sighting], list[int]]] = {
    "no faces, no people": ([], []),
    "one person stays one wherever it moves": ([face(1, 0), face(1, 1, ELSEWHERE), face(1, 5)], [0, 0, 0]),
    "people are counted as they appear, in one frame from left to right": (
        [face(3, 0, ELSEWHERE), face(2, 0, HERE), face(5, 1), face(2, 2), face(3, 2, ELSEWHERE)], [1, 0, 2, 0, 1],
    ),
    "another person in the same place is another": ([face(1, 0), face(2, 1)], [0, 1]),
    "two people who change places stay themselves": (
        [face(1, 0, HERE), face(2, 0, ELSEWHERE), face(1, 1, ELSEWHERE), face(2, 1, HERE)], [0, 1, 0, 1],
    ),
    "a similarity in the same frame is not the person": (TWINS, [0, 1]),
    "the place tells twins apart": ([*TWINS, face(1, 1, ELSEWHERE), face(1, 1, HERE)], [0, 1, 1, 0]),
    "a vector of zeros is nobody": (
        [face(1, 0), Sighting(1, HERE, np.zeros(DIM, np.float32)), face(1, 2)], [0, 1, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("case", LINKED)
def test_faces_are_linked(case: str, metric: Metric) -> None:
    seen, numbers = LINKED[case]
    assert link(seen, metric, LIMIT[metric]) == numbers


def test_a_turned_head_is_known_by_its_place_only() -> None:
    # 0.6 apart by l2: over the limit of 0.55, under what an overlap adds to it.
    assert link([face(1, 0), face(1, 1, HERE, 0.6)], "l2", 0.55) == [0, 0]
    assert link([face(1, 0), face(1, 1, ELSEWHERE, 0.6)], "l2", 0.55) == [0, 1]
    assert link([face(1, 0), face(1, 1, HERE, 0.8)], "l2", 0.55) == [0, 1]


def test_small_changes_do_not_add_up_to_somebody_else() -> None:
    seen = [face(1, ordinal, ELSEWHERE if ordinal % 2 else HERE, 0.4 * ordinal) for ordinal in range(8)]
    numbers = link(seen, "l2", 0.55)
    assert len(set(numbers)) > 1
    for person in set(numbers):
        members = np.array([sighting.vec for sighting, n in zip(seen, numbers, strict=True) if n == person])
        assert distances(members.astype(np.float64), "l2").max() < 2 * 0.55


corner = st.integers(0, 6).map(lambda step: step * 40.0)
boxes = st.tuples(corner, corner, st.just(60.0), st.just(80.0))
vectors = st.lists(st.integers(-3, 3), min_size=4, max_size=4).map(
    lambda values: np.array(values, np.float32) / 3
)
scenes = st.lists(st.builds(Sighting, st.integers(0, 4), boxes, vectors), max_size=24)


def content(sighting: Sighting) -> tuple[int, tuple[float, ...], bytes]:
    return sighting.ordinal, sighting.box, sighting.vec.tobytes()


@given(scenes, st.sampled_from(["cosine", "l2"]), st.floats(0.05, 3.0))
def test_nobody_is_twice_in_a_frame_or_left_out(seen: list[Sighting], metric: Metric, limit: float) -> None:
    numbers = link(seen, metric, limit)
    places = Counter((sighting.ordinal, n) for sighting, n in zip(seen, numbers, strict=True))
    assert not places or max(places.values()) == 1
    assert set(numbers) == set(range(len(set(numbers))))
    first_seen = [
        min(sighting.ordinal for sighting, n in zip(seen, numbers, strict=True) if n == person)
        for person in sorted(set(numbers))
    ]
    assert first_seen == sorted(first_seen)


@given(scenes, st.sampled_from(["cosine", "l2"]), st.randoms(use_true_random=False))
def test_the_order_given_does_not_matter(seen: list[Sighting], metric: Metric, random: object) -> None:
    shuffled = list(seen)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = Counter((content(s), n) for s, n in zip(seen, link(seen, metric, LIMIT[metric]), strict=True))
    other = Counter(
        (content(s), n) for s, n in zip(shuffled, link(shuffled, metric, LIMIT[metric]), strict=True)
    )
    assert one == other


@given(st.lists(vectors, min_size=1, max_size=8), st.sampled_from(["cosine", "l2"]))
def test_distances_are_those_of_the_definition(rows: list[np.ndarray], metric: Metric) -> None:
    found = distances(np.array(rows, np.float64), metric)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            a64, b64 = a.astype(np.float64), b.astype(np.float64)
            if metric == "l2":
                expected = np.sqrt(((a64 - b64) ** 2).sum())
            else:
                lengths = np.sqrt((a64**2).sum() * (b64**2).sum())
                expected = 1 - (a64 @ b64) / lengths if lengths else 1.0
            # Near nothing, the square root of a rounding error is what is left.
            assert found[i, j] == pytest.approx(expected, abs=1e-6)
