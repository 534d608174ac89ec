"""The vision family on a running fleet: vectors and tags of keyframes, requests, and lists of labels that can't be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from shared.contracts import VideoStatus
from shared.errors import BadMedia, InvalidKey, InvalidRequest, LimitExceeded, ObjectMissing
from shared.exit_status import ExitStatus
from tests.acceptance.conftest import MakeFleet
from tests.checkpoints import siglip, write_catalog
from tests.support.clips import Shot, make_clip, picture
from tests.support.fleet import Fleet, eventually
from tests.support.pictures import encoded
from worker.media.pictures import decode_picture
from worker.models.cache import build
from worker.models.labels import read_labels
from worker.models.vision import VisionEmbedder
from worker.stages.vision import MAX_TAGS

USER, VIDEO = "u1", "seen"
SECOND = "second-siglip"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return siglip.build(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def fleet(make_fleet: MakeFleet, tmp_path_factory: pytest.TempPathFactory, spec: Any) -> Fleet:
    """A fleet whose profile has a model of vision only; the catalogue has the same once more, by another name."""
    second = spec.model_copy(update={"name": SECOND, "profiles": ()})
    catalog = write_catalog(tmp_path_factory.mktemp("catalog") / "models.yaml", [spec, second])
    found = make_fleet(models=catalog)
    found.start("media", "vision", "housekeeping", "search")
    found.wait_ready(within_s=120)
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "silent.mp4"
    make_clip(path, [Shot(seed=seed, frames=30) for seed in range(1, 5)])
    return path


@pytest.fixture(scope="module")
def status(fleet: Fleet, clip: Path) -> VideoStatus:
    fleet.process(clip, VIDEO)
    return fleet.wait_for(VIDEO)


@pytest.fixture(scope="module")
def model(spec: Any) -> VisionEmbedder:
    return cast(VisionEmbedder, build(spec))


def keyframe_vectors(
    fleet: Fleet, video_id: str = VIDEO, model: str = "tiny-siglip"
) -> dict[str, np.ndarray[Any, Any]]:
    """Keyframe's key -> its stored vector."""
    query = (
        "SELECT keyframes, ordinal, e.user_id, vec::real[] FROM embeddings e JOIN scenes USING (scene_id)"
        " JOIN models USING (model_id) JOIN videos USING (video_id) WHERE external_id = %s AND models.name = %s"
    )
    rows = fleet.rows(query, video_id, model)
    assert {row["user_id"] for row in rows} == {USER}
    found = {}
    for row in rows:
        (keyframe,) = [frame for frame in row["keyframes"] if frame["ordinal"] == row["ordinal"]]
        found[keyframe["key"]] = np.array(row["vec"], np.float32)
    assert len(found) == len(rows)
    return found


def sidecars(fleet: Fleet, video_id: str = VIDEO) -> list[dict[str, Any]]:
    scenes = fleet.client.scenes(video_id, USER).scenes
    return [json.loads(fleet.storage.get_bytes("sidecars", str(scene.sidecar_key))) for scene in scenes]


def vision_stage(status: VideoStatus) -> Any:
    return {stage.stage: stage for stage in status.stages}["vision"]


def test_a_profile_with_nothing_but_vision_indexes_what_it_can(status: VideoStatus) -> None:
    states = {stage.stage: stage.state for stage in status.stages}
    assert (states["vision"], {states[name] for name in ("asr", "text", "face", "ocr")}) == (
        "done",
        {"skipped"},
    )
    (asr,) = [stage for stage in status.stages if stage.stage == "asr"]
    assert asr.error == "unavailable: profile full has no asr model"


def test_every_keyframe_has_the_vector_its_picture_gives_and_the_model_an_index(
    fleet: Fleet, status: VideoStatus, model: VisionEmbedder
) -> None:
    stored = keyframe_vectors(fleet)
    scenes = fleet.client.scenes(VIDEO, USER).scenes
    keys = [key for scene in scenes for key in scene.keyframe_keys]
    assert len(scenes) == 4 and set(stored) == set(keys) and len(keys) >= 4
    pictures = [decode_picture(fleet.storage.get_bytes("sidecars", key), max_pixels=10**7) for key in keys]
    expected = model.embed_images(pictures)
    np.testing.assert_allclose([stored[key] for key in keys], expected, atol=1e-3)
    assert np.abs(expected[0] - expected[-1]).max() > 0.01, "other scenes have other vectors"
    (row,) = fleet.rows("SELECT model_id, dim FROM models WHERE family = 'vision'")
    assert row["dim"] == siglip.DIM
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
    name = f"ix_embeddings_hnsw_m{row['model_id']}"
    eventually(
        lambda: fleet.rows(valid, name) == [{"indisvalid": True}], within_s=60, what="its index is built"
    )


def test_tags_are_the_likeliest_labels_of_the_best_keyframe(
    fleet: Fleet, status: VideoStatus, model: VisionEmbedder
) -> None:
    labels = read_labels()
    stored = keyframe_vectors(fleet)
    words = model.embed_texts([f"This is a photo of {label}." for label in labels])
    scenes = fleet.client.scenes(VIDEO, USER).scenes
    for scene, document in zip(scenes, sidecars(fleet), strict=True):
        likely = model.match(np.stack([stored[key] for key in scene.keyframe_keys]), words).max(axis=0)
        best = sorted(likely, reverse=True)[:MAX_TAGS]
        tags = document["vision_tags"]
        assert 1 <= len(tags) <= MAX_TAGS and set(tags) <= set(labels) and list(tags) == sorted(tags)
        # The stored vectors are rounded to half precision.
        for label, value in tags.items():
            assert value == pytest.approx(likely[labels.index(label)], abs=0.01)
        assert sorted(tags.values(), reverse=True) == pytest.approx(best[: len(tags)], abs=0.01)
        expected = {"model": "tiny-siglip", "dimensions": siglip.DIM, "has_embedding": True}
        assert document["embeddings"]["vision"].items() >= expected.items()


def test_requests_embed_texts_and_stored_pictures(
    fleet: Fleet, status: VideoStatus, model: VisionEmbedder
) -> None:
    said = fleet.client.embed_vision_texts(["a cat", "a rocket"])
    assert (said.model, said.revision, said.dim) == ("tiny-siglip", "made-for-tests", siglip.DIM)
    np.testing.assert_allclose(said.vectors, model.embed_texts(["a cat", "a rocket"]), atol=1e-5)
    assert fleet.client.embed_vision_texts([]).vectors == fleet.client.embed_images(USER, []).vectors == ()

    remarks = Image.Exif()
    remarks[0x0112] = 6
    view = picture(9, 1600, 900)
    frame, stored = next(iter(keyframe_vectors(fleet).items()))
    keys = [frame, *(f"uploads/{USER}/{name}" for name in ("a.jpg", "b.png", "c.webp"))]
    for key, kind in zip(keys[1:], ("JPEG", "PNG", "WEBP"), strict=True):
        data = encoded(Image.fromarray(view), kind, exif=remarks, quality=95)
        fleet.storage.put_bytes("uploads", key, data, "image/jpeg")
    vectors = np.array(fleet.client.embed_images(USER, keys).vectors)
    np.testing.assert_allclose(vectors[0], stored, atol=1e-3)
    upright = model.embed_images([np.ascontiguousarray(np.rot90(view, -1))])[0]
    assert (vectors[1:] @ upright > 0.98).all()
    lying = model.embed_images([view])[0]
    assert (vectors[1:] @ upright > vectors[1:] @ lying).all()


def test_the_model_of_sight_is_switched_too(fleet: Fleet, status: VideoStatus) -> None:
    old = keyframe_vectors(fleet)
    done = fleet.command("models", "switch", "vision", "--to", SECOND, "--user", USER, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["active"], told["switch"]["state"]) == (SECOND, "activated")
    new = keyframe_vectors(fleet, model=SECOND)
    assert set(new) == set(old)
    assert all(np.array_equal(new[key], old[key]) for key in old), "the same weights see the same"

    def searched() -> bool:
        answer = fleet.client.search(USER, "a red cat", mode="semantic")
        return ("vision", SECOND) in [(each.retriever, each.model) for each in answer.coverage.retrievers]

    eventually(searched, within_s=20, what="searches use the new model")
    assert fleet.client.embed_vision_texts(["a red cat"]).model == SECOND
    fleet.client.rollback_model("vision")
    fleet.client.discard_model("vision", now=True)
    eventually(lambda: fleet.client.models("vision").switch is None, within_s=60, what="the switch has ended")
    assert keyframe_vectors(fleet).keys() == old.keys()
    assert not fleet.rows("SELECT 1 FROM embeddings JOIN models USING (model_id) WHERE name = %s", SECOND)


@pytest.mark.parametrize(
    ("key", "kind", "said"),
    [
        ("uploads/u2/a.jpg", InvalidKey, r"is outside 'uploads/u1/'"),
        ("keyframes/u2/v/1.0/0.jpg", InvalidKey, r"is outside 'keyframes/u1/'"),
        ("uploads/u1/../u2/a.jpg", InvalidKey, r"has the part '\.\.'"),
        ("sidecars/u1/seen/x.json", InvalidKey, r"is outside 'uploads/u1/'"),
        ("", InvalidKey, r"empty or blank"),
        ("uploads/u1/none.jpg", ObjectMissing, r"none\.jpg"),
        ("uploads/u1/seen/silent.mp4", BadMedia, r"silent\.mp4: The picture is no JPEG, PNG or WebP"),
        ("uploads/u1/huge.png", LimitExceeded, r"huge\.png: The picture has 30000x30000 = 900000000 pixels"),
    ],
)
def test_requests_for_other_pictures_are_refused(
    fleet: Fleet, status: VideoStatus, key: str, kind: type[Exception], said: str
) -> None:
    huge = encoded(Image.new("1", (30_000, 30_000)), "PNG")
    fleet.storage.put_bytes("uploads", f"uploads/{USER}/huge.png", huge, "image/png")
    with pytest.raises(kind, match=said) as refused:
        fleet.client.embed_images(USER, [key])
    assert type(refused.value) is kind


def test_requests_of_too_many_are_refused(fleet: Fleet) -> None:
    with pytest.raises(InvalidRequest, match="storage_keys="):
        fleet.client.embed_images(USER, ["uploads/u1/a.jpg"] * 1001)
    with pytest.raises(InvalidRequest, match="texts="):
        fleet.client.embed_vision_texts(["x"] * 1001)


def test_a_rerun_with_other_labels_replaces_vectors_and_tags(
    fleet: Fleet, status: VideoStatus, tmp_path: Path
) -> None:
    before = keyframe_vectors(fleet)
    own = tmp_path / "labels.txt"
    own.write_text("# mine\n\nein Hund\nrocket\nrocket\n  a   cup of coffee  \n", encoding="utf-8-sig")
    fleet.stop("vision")
    fleet.start("vision", VISION_LABELS=str(own))
    fleet.wait_ready("vision", within_s=120)
    try:
        fleet.client.rerun(VIDEO, USER, ["vision"])
        again = fleet.wait_for(VIDEO, within_s=60)
        assert again.published_run == status.run + 1
        fleet.wait_swept(VIDEO)
        after = keyframe_vectors(fleet)
        assert after.keys() == before.keys()
        assert all(np.array_equal(after[key], before[key]) for key in after)
        runs = fleet.rows("SELECT DISTINCT run FROM embeddings UNION SELECT DISTINCT run FROM scene_tags")
        assert [row["run"] for row in runs] == [again.run], "nothing is left of the run before"
        tags = [document["vision_tags"] for document in sidecars(fleet)]
        assert any(tags) and set().union(*tags) <= {"ein Hund", "rocket", "a cup of coffee"}
    finally:
        fleet.stop("vision")
        fleet.start("vision")
        fleet.wait_ready("vision", within_s=120)


def test_a_node_with_a_useless_list_of_labels_leaves(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    fleet.start("vision", name="labels", VISION_LABELS=str(path))
    assert fleet.nodes["labels"].process.wait(timeout=90) == ExitStatus.CONFIG, fleet.log("labels")
    said = f"The list of labels {path} can't be read (No such file or directory): correct VISION_LABELS"
    assert said in fleet.log("labels")
    fleet.stop("labels")


def test_a_damaged_keyframe_fails_the_stage_once_and_keeps_the_rest(fleet: Fleet, clip: Path) -> None:
    video_id = "damaged"
    fleet.process(clip, video_id)
    fleet.wait_for(video_id, within_s=60)
    fleet.wait_swept(video_id)
    key = fleet.client.scenes(video_id, USER).scenes[2].keyframe_keys[0]
    whole = fleet.storage.get_bytes("sidecars", key)
    fleet.storage.put_bytes("sidecars", key, whole[: len(whole) // 2], "image/jpeg")
    fleet.client.rerun(video_id, USER, ["vision"])
    (again,) = fleet.wait_ended([video_id], within_s=60).values()
    stage = vision_stage(again)
    assert (stage.state, stage.error_class, stage.attempts) == ("failed", "BadMedia", 1)
    assert f"Keyframe {key} is damaged, rerun split" in stage.error
    fleet.client.rerun(video_id, USER, ["split"])
    assert vision_stage(fleet.wait_for(video_id, within_s=60)).state == "done"
    assert len(keyframe_vectors(fleet, video_id)) >= 4
