"""The vote of a track's faces: threshold, margin, majority, both metrics."""

from __future__ import annotations

import numpy as np
import pytest

from db.faces.vote import FaceRule, Verdict, centroid, decide, similarities

RULE = FaceRule()
DIM = 16


def at(cosine: float, axis: int = 0) -> np.ndarray:
    """A unit vector with this cosine to an axis."""
    found = np.zeros(DIM)
    found[axis], found[9] = cosine, np.sqrt(1 - cosine**2)
    return found


def away(distance: float) -> np.ndarray:
    """A vector at this distance from the first person."""
    return PEOPLE[0] + distance * np.eye(DIM)[9]


def between(first: float, second: float) -> np.ndarray:
    """A unit vector with these cosines to the two people."""
    return np.array([first, second, *[0.0] * (DIM - 3), np.sqrt(1 - first**2 - second**2)])


PEOPLE = np.eye(DIM)[:2]


def vote(
    faces: list[np.ndarray],
    metric: str = "cosine",
    *,
    weights: list[float] | None = None,
    people: np.ndarray = PEOPLE,
) -> Verdict:
    ids = [f"p{place}" for place in range(len(people))]
    return decide(np.array(faces), np.array(weights or [1.0] * len(faces)), people, ids, metric, RULE)


@pytest.mark.parametrize(
    ("metric", "face", "similarity"),
    [
        ("cosine", at(0.61), 0.61), ("cosine", at(0.59), None), ("cosine", at(-1.0), None), ("cosine", at(1.0), 1.0),
        ("l2", away(0.54), 0.46), ("l2", away(0.56), None), ("l2", away(0.0), 1.0), ("l2", away(3.0), None),
    ],
)  # fmt: skip
def test_a_face_is_a_persons_from_the_threshold_of_the_metric_on(
    metric: str, face: np.ndarray, similarity: float | None
) -> None:
    verdict = vote([face], metric)
    if similarity is None:
        assert (verdict.person_id, verdict.votes) == (None, 0)
    else:
        assert (verdict.person_id, verdict.votes) == ("p0", 1)
        assert verdict.similarity == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("faces", "weights", "person", "votes", "undecided"),
    [
        pytest.param([between(0.70, 0.66)] * 5, None, None, 0, True, id="twins within the margin"),
        pytest.param([between(0.70, 0.60)] * 5, None, "p0", 5, False, id="twins apart"),
        pytest.param([at(0.3), at(0.2, 1)], None, None, 0, False, id="a stranger is not undecided"),
        pytest.param([at(0.99), at(0.0)], None, None, 0, False, id="half of the faces"),
        pytest.param([at(0.99), at(0.99), at(0.0)], None, "p0", 2, False, id="more than half of the faces"),
        # Two of three just pass, the third is somebody else: the mean is under the threshold.
        pytest.param([at(0.62), at(0.62), at(-0.9)], None, None, 0, False, id="a few lucky faces"),
        pytest.param([at(0.99), at(0.3), at(0.3)], [9.0, 1.0, 1.0], "p0", 1, False, id="one of quality"),
        pytest.param([at(0.99), at(0.3), at(0.3)], [1.0, 1.0, 1.0], None, 0, False, id="all of one quality"),
    ],
)
def test_votes(
    faces: list[np.ndarray], weights: list[float] | None, person: str | None, votes: int, undecided: bool
) -> None:
    verdict = vote(faces, weights=weights)
    assert (verdict.person_id, verdict.votes, verdict.undecided) == (person, votes, undecided)


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
