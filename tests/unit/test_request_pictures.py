"""Pictures of one request: each is looked at once, and together they have a limit."""

from __future__ import annotations

import base64
import io
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.contracts import DetectFaces
from shared.errors import InvalidRequest, LimitExceeded, ObjectMissing
from shared.settings import Settings
from shared.storage import StorageConfig, open_storage
from tasks import face, pictures, vision
from tasks.pictures import read_pictures
from worker.models.face import Face


def jpeg(width: int, height: int, **options: object) -> bytes:
    kept = io.BytesIO()
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(pixels).save(kept, "JPEG", **options)
    return kept.getvalue()


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], None]:
    """Stores a picture of a user, where the tasks read it."""
    storage = open_storage(StorageConfig(backend="local", root=tmp_path))
    storage.ensure_buckets()
    settings = Settings(MAX_REQUEST_PIXELS=100_000, MAX_JPEG_SCANS=12)
    runtime = types.SimpleNamespace(storage=storage, settings=settings)
    monkeypatch.setattr(pictures, "get_runtime", lambda: runtime)
    return lambda name, data: storage.put_bytes("uploads", f"uploads/u1/{name}.jpg", data, "image/jpeg")


def read(*names: str, shown_px: int | None = None) -> list[tuple[int, ...]]:
    """The shapes of a user's pictures."""
    keys = [f"uploads/u1/{name}.jpg" for name in names]
    asked = DetectFaces(user_id="u1", storage_keys=tuple(keys))
    return [np.shape(picture) for _, picture in read_pictures(keys, asked, also="faces", shown_px=shown_px)]


def test_the_pixels_of_a_request_count_together(put: Callable[[str, bytes], None]) -> None:
    for name in "abc":
        put(name, jpeg(200, 200))
    assert read("a", "b") == [(200, 200, 3)] * 2
    says = r"c\.jpg: With it .* 120000 pixels, over the limit of 100000 .MAX_REQUEST_PIXELS"
    with pytest.raises(LimitExceeded, match=says):
        read(*"abc")


def test_the_number_of_scans_is_a_setting(put: Callable[[str, bytes], None]) -> None:
    data = jpeg(64, 64, progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    put("a", data)
    put("b", data[:-2] + scan * 5 + data[-2:])
    read("a")
    with pytest.raises(LimitExceeded, match=r"b\.jpg: .* over the limit of 12 \(MAX_JPEG_SCANS\)"):
        read("b")


def test_larger_than_can_be_used_comes_smaller(put: Callable[[str, bytes], None]) -> None:
    put("a", jpeg(400, 240))
    for shown_px, shape in ((90, (60, 100, 3)), (300, (240, 400, 3)), (1280, (240, 400, 3))):
        assert read("a", shown_px=shown_px) == [shape]


class Model:
    """A face model and a vision model that count the pictures they are shown."""

    spec = types.SimpleNamespace(name="m", revision="1", metric="cosine")
    placement = types.SimpleNamespace(device="cpu")
    dim, landmark_names = 2, ("left eye", "right eye")

    def __init__(self) -> None:
        self.shown = 0

    def analyse(self, images: list[np.ndarray]) -> list[list[Face]]:
        self.shown += len(images)
        marks, vec = ((1.0, 2.0), (3.0, 2.0)), np.ones(2, np.float32)
        return [[Face(box=(1.0, 2.0, 3.0, 4.0), score=0.9, landmarks=marks, vec=vec)] for _ in images]

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        self.shown += len(images)
        return np.array([[image.shape[0], image.shape[1]] for image in images], np.float32)


def test_tasks_check_pictures_once(
    put: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture named sixteen times cost sixteen times as much: 52 s for one of 50 megapixels."""
    for name, height in (("a", 100), ("b", 50)):
        put(name, jpeg(200, height))
    keys = ["uploads/u1/a.jpg", "uploads/u1/b.jpg"] * 8
    model = Model()
    runtime = types.SimpleNamespace(model=lambda kind, name=None: model)
    monkeypatch.setattr(face, "get_runtime", lambda: runtime)
    monkeypatch.setattr(vision, "get_runtime", lambda: runtime)
    answer = face.detect(user_id="u1", storage_keys=keys)
    assert model.shown == 2
    assert [picture["storage_key"] for picture in answer["pictures"]] == keys
    assert [picture["height_px"] for picture in answer["pictures"]] == [100, 50] * 8
    answer = vision.embed_images(user_id="u1", storage_keys=keys)
    assert model.shown == 4
    assert answer["vectors"] == [[100.0, 200.0], [50.0, 200.0]] * 8
    # One that is not there fails alone, if the caller says so.
    keys[1] = "uploads/u1/nothing.jpg"
    with pytest.raises(ObjectMissing):
        vision.embed_images(user_id="u1", storage_keys=keys[:3])
    answer = vision.embed_images(user_id="u1", storage_keys=keys[:3], partial=True)
    assert answer["vectors"] == [[100.0, 200.0], None, [100.0, 200.0]]
    assert [(place, error["class"]) for place, error in answer["errors"].items()] == [("1", "ObjectMissing")]


def test_small_pictures_may_come_in_the_request(
    put: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    monkeypatch.setattr(
        vision, "get_runtime", lambda: types.SimpleNamespace(model=lambda kind, name=None: model)
    )
    inline = [base64.b64encode(data).decode() for data in (jpeg(40, 30), b"no picture")] + ["no base64"]
    answer = vision.embed_images(user_id="u1", inline=inline, partial=True)
    assert answer["vectors"] == [[30.0, 40.0], None, None]
    assert "inline/1: The picture is no JPEG" in answer["errors"]["1"]["message"]
    assert "inline/2: The picture is not base64" in answer["errors"]["2"]["message"]
    with pytest.raises(InvalidRequest, match="exclude each other"):
        vision.embed_images(user_id="u1", inline=inline, storage_keys=["uploads/u1/a.jpg"])
