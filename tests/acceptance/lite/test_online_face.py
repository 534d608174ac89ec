"""Faces asked for by task name alone: an API process with Celery and nothing of ours, lite's dlib on a real node."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from celery import Celery
from celery.result import AsyncResult

from shared.errors import BadMedia, InvalidKey, InvalidRequest, LimitExceeded, ObjectMissing
from tests.contracts.candidates import sample_picture
from tests.support.fleet import Fleet

USER = "u1"
PORTRAIT, EMPTY, PHOTO = (
    f"uploads/{USER}/portrait.png",
    f"uploads/{USER}/a/empty.jpg",
    f"faces/{USER}/p1/photo_1.jpg",
)
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def pictures(fleet: Fleet) -> None:
    """The astronaut of the sample, nothing at all, and her twice."""
    portrait = sample_picture(12.5)
    store(fleet, PORTRAIT, portrait)
    store(fleet, EMPTY, np.full((300, 400, 3), 128, np.uint8))
    store(fleet, PHOTO, np.concatenate([portrait, portrait], axis=1))
    store(fleet, "faces/u2/p1/photo_1.jpg", portrait)


@pytest.fixture
def ask(outside: Celery) -> Ask:
    """A bare ``send_task``, waiting for its answer."""

    def send(**kwargs: Any) -> dict[str, Any]:
        sent: AsyncResult[Any] = outside.send_task("tasks.face.detect", kwargs=kwargs, queue="face.online")
        try:
            answer: dict[str, Any] = sent.get(timeout=60)
        finally:
            # An error's traceback holds the handle until Redis has gone, which it would ask to unsubscribe.
            sent.backend.remove_pending_result(sent)
            sent.backend = None
        return answer

    return send


def store(fleet: Fleet, key: str, picture: np.ndarray) -> None:
    done, data = cv2.imencode(key[-4:], cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    fleet.storage.put_bytes(
        "uploads", key, data.tobytes(), "image/png" if key.endswith("png") else "image/jpeg"
    )


def test_each_picture_has_its_faces(ask: Ask) -> None:
    answer = ask(user_id=USER, storage_keys=[PORTRAIT, EMPTY, PHOTO])
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


def test_vectors_come_when_asked_for(ask: Ask, fleet: Fleet) -> None:
    answer = ask(user_id=USER, storage_keys=[PORTRAIT, PHOTO], vectors=True)
    (portrait,), twice = (picture["faces"] for picture in answer["pictures"])
    vectors = np.array([face["vec"] for face in (portrait, *twice)])
    assert vectors.shape == (3, 128)
    # One person by dlib's own limit.
    assert np.linalg.norm(vectors[1:] - vectors[0], axis=1).max() < 0.55
    client = fleet.client.detect_faces(USER, [PORTRAIT, PHOTO], vectors=True)
    assert client.model_dump(mode="json") == answer


def test_no_pictures_give_none(ask: Ask, fleet: Fleet) -> None:
    assert ask(user_id=USER, storage_keys=[])["pictures"] == []
    assert fleet.client.detect_faces(USER, []).pictures == ()


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
    fleet: Fleet, ask: Ask, key: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as refusal:
        fleet.client.detect_faces(USER, [PORTRAIT, key])
    assert said in str(refusal.value)
    with pytest.raises(error) as refusal:
        ask(user_id=USER, storage_keys=[PORTRAIT, key])
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"no picture", BadMedia, "uploads/u1/bad: The picture is no JPEG, PNG or WebP"),
        (b"", BadMedia, "uploads/u1/bad: The picture is no JPEG"),
        (b"\xff\xd8\xff\xe0 cut off", BadMedia, "uploads/u1/bad: The picture"),
    ],
)
def test_a_bad_picture_is_named(fleet: Fleet, data: bytes, error: type[Exception], said: str) -> None:
    fleet.storage.put_bytes("uploads", "uploads/u1/bad", data, "image/jpeg")
    with pytest.raises(error) as refusal:
        fleet.client.detect_faces(USER, [PORTRAIT, "uploads/u1/bad"])
    assert said in str(refusal.value)


def test_a_picture_too_large_is_refused_by_its_header(fleet: Fleet) -> None:
    done, data = cv2.imencode(".png", np.zeros((10_000, 6_000), np.uint8))
    assert done
    fleet.storage.put_bytes("uploads", "uploads/u1/large.png", data.tobytes(), "image/png")
    with pytest.raises(LimitExceeded, match=r"uploads/u1/large\.png: .* 60000000 pixels"):
        fleet.client.detect_faces(USER, ["uploads/u1/large.png"])


def test_one_picture_named_often_is_looked_at_once(fleet: Fleet, ask: Ask) -> None:
    """49 megapixels, sixteen times: as fast as once, and the answer stands sixteen times."""
    # The square around her: the whole frame would be squeezed, and dlib finds no such face.
    picture = cv2.resize(sample_picture(12.5)[:, 180:720], (7_000, 7_000))
    keys = [f"uploads/{USER}/huge{number}.jpg" for number in range(3)]
    for key in keys:
        store(fleet, key, picture)
    began_s = time.monotonic()
    (once,) = ask(user_id=USER, storage_keys=keys[:1])["pictures"]
    once_s = time.monotonic() - began_s
    often = ask(user_id=USER, storage_keys=keys[:1] * 16)["pictures"]
    often_s = time.monotonic() - began_s - once_s
    print(f"49 megapixels: once {once_s:.1f} s, sixteen times {often_s:.1f} s")
    assert often == [once] * 16 and once["faces"]
    assert often_s < 5 * once_s
    with pytest.raises(
        LimitExceeded, match=r"huge2\.jpg: With it .* 147000000 pixels, over the limit of 100000000"
    ):
        fleet.client.detect_faces(USER, keys)


def test_a_wrong_payload_is_named(ask: Ask) -> None:
    for payload, said in (
        ({"user_id": USER, "storage_keys": [PORTRAIT] * 17}, "at most 16 items"),
        ({"user_id": "../u1", "storage_keys": []}, "user_id='../u1' is not acceptable"),
        ({"storage_keys": []}, "user_id is missing"),
        ({"user_id": USER, "storage_keys": [], "threshold": 1}, "threshold"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            ask(**payload)


def test_the_node_lives_on(fleet: Fleet, ask: Ask) -> None:
    """Last: after all that was refused, the same process with the same model answers."""
    assert fleet.nodes["face"].process.poll() is None
    assert len(ask(user_id=USER, storage_keys=[PORTRAIT])["pictures"][0]["faces"]) == 1
    state = fleet.node_states()["face"]
    assert '"loads":1' in state["models"].replace(" ", "")
