"""Profile `full` end to end: the production loaders of every family, on tiny checkpoints in the real formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.contracts import ScenePage
from tests.acceptance.conftest import MakeFleet
from tests.checkpoints import (
    adaface,
    bge_m3,
    bge_reranker,
    faster_whisper_scripted,
    siglip,
    whisper_scripted,
    write_catalog,
)
from tests.contracts.candidates import ASSETS, needs_assets
from tests.support.fleet import ROOT, Fleet
from worker.models.catalog import load_catalog

VIDEO = "sample"
FAMILIES = ("media", "asr", "text", "vision", "face", "ocr", "housekeeping", "search")


@pytest.fixture(scope="module")
def indexed(make_fleet: MakeFleet, tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Fleet:
    """A fleet of profile full that has indexed the sample; its nodes still run. Without a face detector's weights among
    the test assets it has no face model, and the rest runs."""
    weights = tmp_path_factory.mktemp("weights")
    builders = (whisper_scripted, bge_m3, bge_reranker, siglip, *((adaface,) if ASSETS else ()))
    families = [family for family in FAMILIES if family != "face" or ASSETS]
    specs = [builder.build(weights / builder.__name__.rpartition(".")[2]) for builder in builders]
    # Not active: chosen by name.
    other = faster_whisper_scripted.build(weights / "faster-whisper").model_copy(update={"profiles": ()})
    packaged = load_catalog().get("rapidocr-ppocrv6-small")
    catalog = write_catalog(weights / "models.yaml", [*specs, packaged, other])
    fleet = make_fleet(models=catalog)
    fleet.start(*families)
    fleet.wait_ready(within_s=180)
    fleet.process(sample, VIDEO)
    status = fleet.wait_ended([VIDEO], within_s=300)[VIDEO]
    assert status.state == "indexed", status
    undone = {stage.stage: stage.error for stage in status.stages if stage.state != "done"}
    assert set(undone) == (set() if ASSETS else {"face"}), undone
    return fleet


@pytest.fixture(scope="module")
def page(indexed: Fleet) -> ScenePage:
    return indexed.client.scenes(VIDEO, "u1")


@pytest.fixture(scope="module")
def sidecars(indexed: Fleet, page: ScenePage) -> list[dict[str, Any]]:
    keys = [scene.sidecar_key for scene in page.scenes]
    return [json.loads(indexed.storage.get_bytes("sidecars", str(key))) for key in keys]


def heard(fleet: Fleet) -> list[dict[str, Any]]:
    """The segments of the run that counts, in order of time."""
    rows = fleet.rows("SELECT segments FROM transcript_parts ORDER BY run DESC, start_s")
    return [segment for row in rows for segment in row["segments"]]


def test_the_scripted_words_come_out_exactly(indexed: Fleet) -> None:
    segments = heard(indexed)
    assert segments
    for segment in segments:
        assert segment["text"] == whisper_scripted.WORDS
        assert segment["rejected"] is None


def test_word_times_are_in_order_and_inside_their_segment(indexed: Fleet) -> None:
    before_s = 0.0
    for segment in heard(indexed):
        assert segment["start_s"] >= before_s - 1e-6
        inside_s = segment["start_s"]
        for word in segment["words"]:
            assert inside_s - 1e-6 <= word["start_s"] <= word["end_s"] <= segment["end_s"] + 1e-6
            inside_s = word["end_s"]
        before_s = segment["end_s"]


def test_words_stand_in_the_scene_in_which_they_were_spoken(indexed: Fleet, page: ScenePage) -> None:
    words = [word for segment in heard(indexed) for word in segment["words"]]
    for scene in page.scenes:
        last = scene.idx == len(page.scenes) - 1
        expected = [
            word["text"]
            for word in words
            if scene.start_s <= (word["start_s"] + word["end_s"]) / 2 < (scene.end_s if not last else 1e9)
        ]
        assert scene.transcript.split() == " ".join(expected).split(), scene.idx
    assert sum(bool(scene.transcript) for scene in page.scenes) >= 3


def test_every_scene_has_its_vectors(indexed: Fleet, page: ScenePage) -> None:
    rows = indexed.rows(
        "SELECT m.family, e.scene_id::text AS scene, count(*) AS n FROM embeddings e JOIN models m USING (model_id)"
        " GROUP BY 1, 2"
    )
    found = {(row["family"], row["scene"]): row["n"] for row in rows}
    for scene in page.scenes:
        assert found.get(("vision", scene.scene_id)) == len(scene.keyframe_keys) >= 1
        assert found.get(("text", scene.scene_id), 0) == (1 if scene.transcript else 0)


def test_spoken_scenes_have_lexical_weights(indexed: Fleet, page: ScenePage) -> None:
    rows = indexed.rows("SELECT scene_id::text AS scene, user_id, tokens FROM lexical_weights")
    assert {row["scene"] for row in rows} == {scene.scene_id for scene in page.scenes if scene.transcript}
    assert all(row["user_id"] == "u1" and row["tokens"] for row in rows)


@needs_assets
def test_faces_have_quality_and_a_track(indexed: Fleet) -> None:
    rows = indexed.rows("SELECT scene_id, ordinal, track, quality, vec::real[] AS vec FROM faces")
    assert rows
    for row in rows:
        assert row["quality"] > 0 and row["track"] is not None
        assert sum(value * value for value in row["vec"]) == pytest.approx(1, abs=1e-2)
    assert len({(row["scene_id"], row["ordinal"], row["track"]) for row in rows}) == len(rows)


def test_sidecars_say_what_was_seen_and_match_their_schema(
    sidecars: list[dict[str, Any]], page: ScenePage
) -> None:
    schema = json.loads((ROOT / "docs" / "sidecar.schema.json").read_text())
    for document, scene in zip(sidecars, page.scenes, strict=True):
        jsonschema.validate(document, schema)
        assert document["embeddings"]["vision"]["has_embedding"] is True
        assert all(0 <= value <= 1 for value in document["vision_tags"].values())
        assert len({face["track"] for face in document["faces"]}) >= scene.faces


def test_the_other_engine_hears_its_own_script_when_chosen(indexed: Fleet) -> None:
    indexed.stop("asr")
    indexed.start("asr", ASR_MODEL="tiny-faster-whisper")
    indexed.wait_ready("asr", within_s=120)
    indexed.client.rerun(VIDEO, "u1", ["asr"])
    status = indexed.wait_ended([VIDEO], within_s=240)[VIDEO]
    assert status.state == "indexed" and status.run == 2, status
    segments = heard(indexed)
    assert segments and all(segment["text"] == faster_whisper_scripted.WORDS for segment in segments)
    scenes = indexed.client.scenes(VIDEO, "u1").scenes
    document = json.loads(indexed.storage.get_bytes("sidecars", str(scenes[0].sidecar_key)))
    assert document["transcript"]["model"]["name"] == "tiny-faster-whisper"
