"""The vote of a track's faces: threshold, margin, majority, both metrics."""

from __future__ import annotations

import numpy as np
import pytest

from db.faces.vote import FaceRule, Verdict, centroid, decide, similarities

RULE = FaceRule()
DIM = 16


def at(cosine: float, axis: int = 0, rest: int = 9) -> np.ndarray:
    """A unit vector with this cosine to an axis."""
    found = np.zeros(DIM)
    found[axis], found[rest] = cosine, np.sqrt(1 - cosine**2)
    return found


def away(distance: float, axis: int = 0) -> np.ndarray:
    """A vector that lies so far from (1 on the axis)."""
    found = np.zeros(DIM)
    found[axis], found[9] = 1.0, distance
    return found


PEOPLE = np.eye(DIM)[:2]


def vote(
    faces: list[np.ndarray],
    metric: str = "cosine",
    weights: list[float] | None = None,
    people: np.ndarray = PEOPLE,
) -> Verdict:
    ids = [f"p{place}" for place in range(len(people))]
    return decide(np.array(faces), np.array(weights or [1.0] * len(faces)), people, ids, metric, RULE)


@pytest.mark.parametrize(("cosine", "found"), [(0.61, "p0"), (0.59, None), (-1.0, None), (1.0, "p0")])
def test_a_face_is_a_persons_from_the_threshold_on(cosine: float, found: str | None) -> None:
    verdict = vote([at(cosine)])
    assert verdict.person_id == found
    assert verdict.votes == (1 if found else 0)
    if found:
        assert verdict.similarity == pytest.approx(cosine)


@pytest.mark.parametrize(("distance", "found"), [(0.54, "p0"), (0.56, None), (0.0, "p0"), (3.0, None)])
def test_distances_have_a_threshold_of_their_own(distance: float, found: str | None) -> None:
    verdict = vote([away(distance)], "l2")
    assert verdict.person_id == found
    if found:
        assert verdict.similarity == pytest.approx(1 - distance)


def test_twins_within_the_margin_stay_unlabelled() -> None:
    face = np.zeros(DIM)
    face[0], face[1] = 0.70, 0.66
    face[9] = np.sqrt(1 - face[0] ** 2 - face[1] ** 2)
    verdict = vote([face] * 5)
    assert verdict.person_id is None and verdict.undecided
    face[1] = 0.60
    face[9] = np.sqrt(1 - face[0] ** 2 - face[1] ** 2)
    assert vote([face] * 5).person_id == "p0"


def test_a_stranger_is_nobody_and_not_undecided() -> None:
    verdict = vote([at(0.3), at(0.2, 1)])
    assert verdict.person_id is None and not verdict.undecided and verdict.votes == 0


def test_more_than_half_of_the_faces_must_say_so() -> None:
    other = at(0.0)
    assert vote([at(0.99), other]).person_id is None
    assert vote([at(0.99), at(0.99), other]).person_id == "p0"
    assert vote([at(0.99), at(0.99), other]).votes == 2


def test_a_few_lucky_faces_decide_nothing() -> None:
    """Two of three just pass, the third is somebody else: the mean is under the threshold."""
    assert vote([at(0.62), at(0.62), at(-0.9)]).person_id is None


def test_faces_count_by_their_quality() -> None:
    good, bad = at(0.99), at(0.3)
    assert vote([good, bad, bad], weights=[9.0, 1.0, 1.0]).person_id == "p0"
    assert vote([good, bad, bad], weights=[1.0, 1.0, 1.0]).person_id is None


def test_nobody_is_known() -> None:
    assert vote([at(1.0)], people=np.empty((0, DIM))) == Verdict(None, None, 0)


def test_a_centroid_leans_to_the_better_photos() -> None:
    middle = centroid(np.eye(DIM)[:2], np.array([3.0, 1.0]), "cosine")
    assert np.linalg.norm(middle) == pytest.approx(1.0) and middle[0] == pytest.approx(3 * middle[1])
    assert centroid(np.eye(DIM)[:2], np.array([3.0, 1.0]), "l2")[:2] == pytest.approx([0.75, 0.25])


def test_similarity_of_a_vector_with_itself_is_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, DIM))
    for metric in ("cosine", "l2"):
        # The subtraction in the distance loses half of the digits.
        assert np.diag(similarities(vectors, vectors, metric)) == pytest.approx(np.ones(4), abs=1e-6)
