"""Text on screen end to end: a clip with known captions through real workers, its flag, and a video from before the stage."""

from __future__ import annotations

import json
from collections.abc import Iterator

import cv2
import jsonschema
import numpy as np
import pytest

from shared.contracts import ScenePage
from tests.support.clips import Encoding, Image, picture, write_video
from tests.support.fleet import ROOT, Fleet

USER = "captions"
SIZE = (960, 540)
FPS = 25
#: Scene by scene: what it shows for so many frames, one after the other, and where.
CAPTIONS: tuple[tuple[tuple[int, tuple[str, ...]], ...], ...] = (
    ((75, ("Rocket launch delayed", "Mission control, Houston")),),
    ((50, ()),),
    ((60, ("Quarter 3 revenue 4711",)),),
    ((40, ("Größe und Gewicht",)), (40, ())),
)
#: A word, and the scenes that show it.
SEARCHES = {"rockets": [0], '"mission control"': [0], "4711": [2], "Größe": [3], "weather": []}


def frames() -> Iterator[Image]:
    for scene, spans in enumerate(CAPTIONS):
        background = picture(60 + scene, *SIZE)
        for count, lines in spans:
            shown = background.copy()
            for place, line in enumerate(lines):
                cv2.rectangle(shown, (50, 340 + 70 * place), (760, 400 + 70 * place), (15, 15, 60), -1)
                where = (70, 384 + 70 * place)
                cv2.putText(shown, line, where, (255, 255, 255), cv2.FontFace("uni"), 40)
            for _ in range(count):
                yield np.ascontiguousarray(shown)


@pytest.fixture(scope="module")
def indexed(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Four scenes with hard cuts; the last shows its caption in its first half only."""
    path = tmp_path_factory.mktemp("clip") / "captions.mp4"
    write_video(path, frames(), Encoding(size=SIZE))
    fleet.index(path, "captions", USER)
    return fleet


def published(fleet: Fleet) -> ScenePage:
    return fleet.client.scenes("captions", USER)


def searched(fleet: Fleet, query: str, user_id: str = USER) -> list[int]:
    """As the retriever of a search asks."""
    found = fleet.rows(
        "SELECT idx FROM scenes WHERE live AND user_id = %s AND screen_tsv @@"
        " (websearch_to_tsquery('english', %s) || websearch_to_tsquery('simple', %s)) ORDER BY idx",
        user_id, query, query,
    )  # fmt: skip
    return [row["idx"] for row in found]


def test_each_scene_has_its_captions_once(indexed: Fleet) -> None:
    for scene, spans in zip(published(indexed).scenes, CAPTIONS, strict=True):
        assert scene.screen_text == "\n".join(line for _, lines in spans for line in lines)
        assert scene.transcript == ""
    for query, scenes in SEARCHES.items():
        assert searched(indexed, query) == scenes, query
        assert searched(indexed, query, "u2") == []


def test_a_line_knows_every_keyframe_that_shows_it(indexed: Fleet) -> None:
    schema = json.loads((ROOT / "docs" / "sidecar.schema.json").read_text())
    for scene, spans in zip(published(indexed).scenes, CAPTIONS, strict=True):
        assert scene.sidecar_key is not None
        document = json.loads(indexed.storage.get_bytes("sidecars", scene.sidecar_key))
        jsonschema.validate(document, schema)
        times = {keyframe["ordinal"]: keyframe["ts_s"] for keyframe in document["keyframes"]}
        shown_s = next((count for count, lines in spans if lines), 0) / FPS
        for line in document["screen_texts"]:
            assert {one["keyframe"] for one in line["sightings"]} == {
                ordinal for ordinal, ts_s in times.items() if ts_s - scene.start_s < shown_s
            }
            for one in line["sightings"]:
                x, y, width, height = one["box"]
                assert 40 < x < 80 and 335 < y < 480 and width > 200 and 25 < height < 75


def test_the_command_shows_the_text(indexed: Fleet) -> None:
    done = indexed.command("scenes", "captions", "--user", USER, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "Quarter 3 revenue 4711" in done.stdout


def test_a_rerun_repeats_the_same_and_leaves_one_run(indexed: Fleet) -> None:
    before = [scene.screen_text for scene in published(indexed).scenes]
    run = indexed.client.rerun("captions", USER, ["ocr"]).run
    assert indexed.wait_for("captions", user_id=USER).published_run == run
    assert [scene.screen_text for scene in published(indexed).scenes] == before
    indexed.wait_swept("captions", USER)
    made = indexed.rows("SELECT DISTINCT run FROM screen_texts WHERE user_id = %s", USER)
    assert [row["run"] for row in made] == [run]
