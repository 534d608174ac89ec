"""Faces asked for by task name alone: an API process with Celery and nothing of ours, lite's dlib on a real node."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest

from shared.contracts import DetectedFaces
from shared.errors import BadMedia, InvalidKey, InvalidRequest, LimitExceeded, ObjectMissing
from tests.acceptance.lite.conftest import Ask
from tests.contracts.candidates import sample_picture
from tests.support.fleet import Fleet
from tests.support.pictures import png_claiming

USER = "u1"
PORTRAIT, EMPTY, PHOTO = (
    f"uploads/{USER}/portrait.png",
    f"uploads/{USER}/a/empty.jpg",
    f"faces/{USER}/p1/photo_1.jpg",
)
Detect = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def pictures(fleet: Fleet) -> None:
    """The astronaut of the sample, nothing at all, and her twice."""
    portrait = sample_picture(12.5)
    store(fleet, PORTRAIT, portrait)
    store(fleet, EMPTY, np.full((300, 400, 3), 128, np.uint8))
    store(fleet, PHOTO, np.concatenate([portrait, portrait], axis=1))
    store(fleet, "faces/u2/p1/photo_1.jpg", portrait)


@pytest.fixture
def detect(ask: Ask) -> Detect:
    return partial(ask, "tasks.face.detect")


def store(fleet: Fleet, key: str, picture: np.ndarray) -> None:
    done, data = cv2.imencode(key[-4:], cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    fleet.storage.put_bytes(
        "uploads", key, data.tobytes(), "image/png" if key.endswith("png") else "image/jpeg"
    )


def test_each_picture_has_its_faces(detect: Detect) -> None:
    answer = detect(user_id=USER, storage_keys=[PORTRAIT, EMPTY, PHOTO])
    assert (answer["model"], answer["dim"], answer["metric"]) == ("dlib-resnet-v1", 128, "l2")
    assert len(answer["landmark_names"]) == 5
    portrait, empty, photo = answer["pictures"]
    assert [picture["storage_key"] for picture in answer["pictures"]] == [PORTRAIT, EMPTY, PHOTO]
    assert (portrait["width_px"], portrait["height_px"]) == (960, 540)
    assert (photo["width_px"], photo["height_px"]) == (1920, 540)
    (face,) = portrait["faces"]
    x, y, width, height = face["box"]
    # Where she is: samples/truth.json has her in this scene only; the box was drawn round her head by eye.
    assert x > 300 and x + width < 600 and y > 40 and y + height < 400
    assert all(x <= left <= x + width and y <= top <= y + height for left, top in face["landmarks"])
    assert face["score"] > 0 and face["quality"] is None and face["vec"] is None
    assert empty["faces"] == []
    assert len(photo["faces"]) == 2
    assert sorted(round(found["box"][0] / 960) for found in photo["faces"]) == [0, 1]
    assert detect(user_id=USER, storage_keys=[])["pictures"] == []


def test_vectors_come_when_asked_for(detect: Detect, fleet: Fleet) -> None:
    answer = detect(user_id=USER, storage_keys=[PORTRAIT, PHOTO], vectors=True)
    (portrait,), twice = (picture["faces"] for picture in answer["pictures"])
    vectors = np.array([face["vec"] for face in (portrait, *twice)])
    assert vectors.shape == (3, 128)
    # One person by dlib's own limit.
    assert np.linalg.norm(vectors[1:] - vectors[0], axis=1).max() < 0.55
    client = fleet.client.detect_faces(USER, [PORTRAIT, PHOTO], vectors=True)
    assert client.pictures == DetectedFaces.model_validate(answer, strict=False).pictures


@pytest.mark.parametrize(
    ("key", "error", "said"),
    [
        ("faces/u2/p1/photo_1.jpg", InvalidKey, "is outside 'faces/u1/'"),
        ("uploads/u2/portrait.jpg", InvalidKey, "is outside 'uploads/u1/'"),
        ("uploads/u1/../u2/portrait.jpg", InvalidKey, "it has the part '..'"),
        ("sidecars/u1/v/s.r1.json", InvalidKey, "is outside 'uploads/u1/'"),
        ("uploads/u1/no-such.jpg", ObjectMissing, "uploads/u1/no-such.jpg"),
    ],
)
def test_what_is_not_the_users_own_is_refused(
    fleet: Fleet, detect: Detect, key: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        fleet.client.detect_faces(USER, [PORTRAIT, key])
    with pytest.raises(error, match=re.escape(said)):
        detect(user_id=USER, storage_keys=[PORTRAIT, key])


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"no picture", BadMedia, "uploads/u1/bad: The picture is no JPEG, PNG or WebP"),
        (b"\xff\xd8\xff\xe0 cut off", BadMedia, "uploads/u1/bad: The picture"),
        (png_claiming(10_000, 6_000), LimitExceeded, "uploads/u1/bad: .* 60000000 pixels"),
    ],
    ids=["no picture", "cut off", "too large by its header"],
)
def test_a_bad_picture_is_named(fleet: Fleet, data: bytes, error: type[Exception], said: str) -> None:
    fleet.storage.put_bytes("uploads", "uploads/u1/bad", data, "image/jpeg")
    with pytest.raises(error, match=said):
        fleet.client.detect_faces(USER, [PORTRAIT, "uploads/u1/bad"])


def test_a_wrong_payload_is_named(detect: Detect) -> None:
    for payload, said in (
        ({"user_id": USER, "storage_keys": [PORTRAIT] * 1001}, "at most 1000 items"),
        ({"user_id": "../u1", "storage_keys": []}, "user_id='../u1' is not acceptable"),
        ({"storage_keys": []}, "user_id is missing"),
        ({"user_id": USER, "storage_keys": [], "threshold": 1}, "threshold"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            detect(**payload)


def test_the_node_lives_on(fleet: Fleet, detect: Detect) -> None:
    """Last: after all that was refused, the same process with the same model answers."""
    assert fleet.nodes["face"].process.poll() is None
    assert len(detect(user_id=USER, storage_keys=[PORTRAIT])["pictures"][0]["faces"]) == 1
    state = fleet.node_states()["face"]
    assert '"loads":1' in state["models"].replace(" ", "")
