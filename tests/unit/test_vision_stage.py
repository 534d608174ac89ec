"""The vision stage's own rules: which labels become tags, and what it does when a list of labels takes long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast
from uuid import UUID

import numpy as np
import pytest

from db.tables import Scene
from tests.checkpoints import siglip
from worker.models.cache import build
from worker.models.vision import VisionEmbedder
from worker.stages import vision
from worker.stages.context import Deferred, StageContext

pytestmark = pytest.mark.slow

LABELS = tuple(f"label {n}" for n in range(70))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionEmbedder:
    return cast(VisionEmbedder, build(siglip.build(tmp_path_factory.mktemp("siglip"))))


@pytest.fixture
def told() -> list[float]:
    vision._label_vectors.clear()
    return []


@pytest.fixture
def context(told: list[float]) -> StageContext:
    return cast(StageContext, SimpleNamespace(report=told.append))


def scenes(*keyframes: int) -> list[Scene]:
    return [Scene(scene_id=UUID(int=n), keyframes=[{}] * count) for n, count in enumerate(keyframes)]


def test_labels_are_embedded_once(
    model: VisionEmbedder, context: StageContext, told: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = vision._embed_labels(context, model, LABELS)
    assert vectors.shape == (70, siglip.DIM) and len(told) == 3 and told == sorted(told)
    np.testing.assert_allclose(vectors[69], model.embed_texts(["This is a photo of label 69."])[0], atol=1e-5)
    monkeypatch.setattr(model, "_embed_texts", None)
    np.testing.assert_array_equal(vision._embed_labels(context, model, LABELS), vectors)
    assert len(told) == 3


def test_a_job_that_takes_long_over_labels_is_put_back_and_goes_on(
    model: VisionEmbedder, context: StageContext, told: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.embed_texts([f"This is a photo of {label}." for label in LABELS])
    times_s = iter([0.0, 1.0, 999.0, 1000.0, 1001.0, 1002.0])
    monkeypatch.setattr(vision, "time", SimpleNamespace(monotonic=lambda: next(times_s)))
    with pytest.raises(Deferred):
        vision._embed_labels(context, model, LABELS)
    np.testing.assert_allclose(vision._embed_labels(context, model, LABELS), expected, atol=2e-5)
    assert told == pytest.approx([0.0, 3.2 / 70, 3.2 / 70, 6.4 / 70])


def test_a_scene_gets_what_its_best_keyframe_shows() -> None:
    likely = np.array([[0.9, 0.01, 0.3], [0.1, 0.01, 0.6], [0.02, 0.04, 0.01], [0.0, 0.5, 0.0]], np.float32)
    tags = vision._choose_tags(scenes(2, 0, 1, 1), ["cat", "dog", "moon"], likely, 0.05)
    assert tags == {UUID(int=0): {"cat": 0.9, "moon": 0.6}, UUID(int=3): {"dog": 0.5}}


def test_a_scene_has_so_many_tags_and_no_more() -> None:
    likely = np.linspace(0.9, 0.1, 40, dtype=np.float32)[None]
    labels = [str(n) for n in range(40)]
    (tags,) = vision._choose_tags(scenes(1), labels, likely, 0.05).values()
    assert list(tags) == labels[: vision.MAX_TAGS]
