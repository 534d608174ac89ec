"""Profile `full` end to end: the production loaders of every family, on tiny checkpoints in the real formats."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.contracts import ScenePage
from tests.acceptance.full.conftest import USER, VIDEO
from tests.checkpoints import faster_whisper_scripted, whisper_scripted
from tests.contracts.candidates import needs_assets
from tests.support.fleet import ROOT, Fleet


@pytest.fixture(scope="module")
def sidecars(fleet: Fleet, page: ScenePage) -> list[dict[str, Any]]:
    keys = [scene.sidecar_key for scene in page.scenes]
    return [json.loads(fleet.storage.get_bytes("sidecars", str(key))) for key in keys]


def heard(fleet: Fleet, user: str = USER) -> list[dict[str, Any]]:
    """The segments of a user's only video, in order of time."""
    rows = fleet.of_video("transcript_parts", VIDEO, user_id=user)
    return [segment for row in sorted(rows, key=lambda row: row["start_s"]) for segment in row["segments"]]


def test_the_scripted_words_come_out_exactly(fleet: Fleet) -> None:
    """Their times are in order and inside their segment."""
    segments, before_s = heard(fleet), 0.0
    assert segments
    for segment in segments:
        assert (segment["text"], segment["rejected"]) == (whisper_scripted.WORDS, None)
        assert segment["start_s"] >= before_s - 1e-6
        inside_s = segment["start_s"]
        for word in segment["words"]:
            assert inside_s - 1e-6 <= word["start_s"] <= word["end_s"] <= segment["end_s"] + 1e-6
            inside_s = word["end_s"]
        before_s = segment["end_s"]


def test_words_stand_in_the_scene_in_which_they_were_spoken(fleet: Fleet, page: ScenePage) -> None:
    words = [word for segment in heard(fleet) for word in segment["words"]]
    for scene in page.scenes:
        last = scene.idx == len(page.scenes) - 1
        expected = [
            word["text"]
            for word in words
            if scene.start_s <= (word["start_s"] + word["end_s"]) / 2 < (scene.end_s if not last else 1e9)
        ]
        assert scene.transcript.split() == " ".join(expected).split(), scene.idx
    assert sum(bool(scene.transcript) for scene in page.scenes) >= 3


def test_every_scene_has_its_vectors(fleet: Fleet, page: ScenePage) -> None:
    """And what is said in it lexical weights."""
    rows = fleet.rows("SELECT family, scene_id::text FROM embeddings JOIN models USING (model_id)")
    found = Counter((row["family"], row["scene_id"]) for row in rows)
    for scene in page.scenes:
        assert found["vision", scene.scene_id] == len(scene.keyframe_keys) >= 1
        assert found["text", scene.scene_id] == (1 if scene.transcript else 0)
    rows = fleet.rows("SELECT scene_id::text AS scene, tokens FROM lexical_weights WHERE user_id = %s", USER)
    assert {row["scene"] for row in rows} == {scene.scene_id for scene in page.scenes if scene.transcript}
    assert all(row["tokens"] for row in rows)


@needs_assets
def test_faces_have_quality_and_a_track(fleet: Fleet) -> None:
    rows = fleet.rows("SELECT scene_id, ordinal, track, quality, vec::real[] AS vec FROM faces")
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


def test_the_other_engine_hears_its_own_script_when_chosen(fleet: Fleet, sample: Path) -> None:
    fleet.stop("asr")
    fleet.start("asr", ASR_MODEL="tiny-faster-whisper")
    fleet.wait_ready("asr", within_s=120)
    fleet.process(sample, VIDEO, "other")
    fleet.wait_for(VIDEO, user_id="other", within_s=240)
    segments = heard(fleet, "other")
    assert segments and all(segment["text"] == faster_whisper_scripted.WORDS for segment in segments)
    scenes = fleet.client.scenes(VIDEO, "other").scenes
    document = json.loads(fleet.storage.get_bytes("sidecars", str(scenes[0].sidecar_key)))
    assert document["transcript"]["model"]["name"] == "tiny-faster-whisper"
