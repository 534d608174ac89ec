"""The ocr stage on a real Postgres with RapidOCR: what it stores, what is published of it, and videos from before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from sqlalchemy import select, text

from db.engine import reading, transact
from db.publication import drop_unpublished
from db.scenes import page
from db.tables import Scene, ScreenText
from shared.errors import BadMedia, LeaseLost
from shared.settings import Settings
from tests.contracts.test_ocr import render
from tests.support.films import Film, begin, scenes
from tests.support.fleet import ROOT
from worker.runtime import Runtime
from worker.stages import ocr as stage, sidecar

pytestmark = pytest.mark.usefixtures("database")

GREY = np.full((720, 1280, 3), 128, np.uint8)
LAUNCH = render(("Rocket launch delayed", 300))
#: The stages of a run of its own, but ocr.
OTHERS = {"split": 1, "asr": 1, "text": 1, "vision": 1, "face": 1, "sidecar": 1}


class Captions(Film):
    """A film whose text is read."""

    def read(self, run: int, last_idx: int = 9) -> dict[str, Any]:
        begin(run, {"split": 1, "ocr": run})
        return self.work(stage, "ocr", run, last_idx)

    def publish(self, run: int) -> None:
        """Run the stage in a run that reuses all others, and publish what it read."""
        begin(run, OTHERS | {"ocr": run, "sidecar": run})
        self.work(stage, "ocr", run)
        self.work(sidecar, "sidecar", run)

    def found(self, run: int, idx: int = 0) -> list[ScreenText]:
        (scene,) = scenes(idx, idx)
        with reading() as session:
            rows = select(ScreenText).where(ScreenText.run == run, ScreenText.scene_id == scene.scene_id)
            return list(session.scalars(rows.order_by(ScreenText.place)))

    def searched(self, query: str) -> list[int]:
        """The scenes whose text on screen has the words, as a search asks for them."""
        with reading() as session:
            rows = session.execute(
                text(
                    "SELECT idx FROM scenes WHERE live AND user_id = 'u' AND screen_tsv @@ "
                    "(websearch_to_tsquery('english', :query) || websearch_to_tsquery('simple', :query)) ORDER BY idx"
                ),
                {"query": query},
            )
            return [row.idx for row in rows]

    def document(self, idx: int) -> dict[str, Any]:
        """A scene's sidecar."""
        with reading() as session:
            key = session.scalars(select(Scene.sidecar_key).where(Scene.idx == idx)).one()
        assert key is not None
        found = json.loads(self.runtime.storage.get_bytes("sidecars", key))
        jsonschema.validate(found, json.loads((ROOT / "docs" / "sidecar.schema.json").read_text()))
        return dict(found)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    found = Runtime(Settings(SCENEFLEET_FAMILY="ocr", SCENEFLEET_HOME=tmp_path_factory.mktemp("home")))
    found.storage.ensure_buckets()
    return found


@pytest.fixture
def film(runtime: Runtime, tmp_path: Path) -> Captions:
    return Captions(runtime, tmp_path)


def test_a_caption_over_several_keyframes_is_one_line(film: Captions) -> None:
    film.shoot([LAUNCH, GREY, LAUNCH], [GREY], [render(("Weather tomorrow", 200), ("Rain, 12 degrees", 320))])
    assert film.read(1) == {"lines": 3, "keyframes": 5}
    (line,) = film.found(1)
    assert (line.text, line.place, line.user_id) == ("Rocket launch delayed", 0, "u") and line.score > 0.9
    assert [(seen["ordinal"], seen["ts_s"]) for seen in line.sightings] == [(0, 0.0), (2, 2.0)]
    for seen in line.sightings:
        x, y, width, height = seen["box"]
        assert 40 < x < 90 and y < 290 < y + height and width > 300
    assert film.found(1, 1) == []
    assert [row.text for row in film.found(1, 2)] == ["Weather tomorrow", "Rain, 12 degrees"]
    assert film.reported == sorted(film.reported) and 0 <= film.reported[0] < film.reported[-1] < 1


def test_only_the_scenes_of_the_part_are_looked_at_and_a_rerun_stores_its_own(film: Captions) -> None:
    film.shoot([LAUNCH, LAUNCH], [LAUNCH])
    assert film.read(1, last_idx=0) == {"lines": 1, "keyframes": 2}
    assert film.found(1, 1) == []
    film.read(2)
    assert len(film.found(1)) == len(film.found(2)) == 1


def test_a_damaged_keyframe_is_named(film: Captions) -> None:
    film.shoot([LAUNCH])
    film.store("0.0", b"\xff\xd8\xffdust")
    with pytest.raises(BadMedia, match=r"keyframes/u/v/1\.1/0\.0\.jpg is damaged, rerun split"):
        film.read(1)


def test_a_lost_lease_ends_the_work(film: Captions) -> None:
    film.shoot([LAUNCH])
    film.lost = True
    with pytest.raises(LeaseLost):
        film.read(1)
    assert film.found(1) == []


def test_what_is_published_is_searched_by_words_and_stands_in_the_sidecar(film: Captions) -> None:
    film.shoot([LAUNCH, LAUNCH], [GREY], [render(("Rockets of Zürich", 300))])
    film.publish(1)
    assert film.searched("rocket") == [0, 2], "also in the plural"
    assert film.searched('"rocket launch"') == [0]
    assert film.searched("Zürich") == [2] and film.searched("moon") == []
    with reading() as session:
        shown = page(session, "v", "u", -1, 10).scenes
    assert [scene.screen_text for scene in shown] == ["Rocket launch delayed", "", "Rockets of Zürich"]
    assert all(scene.transcript == "" for scene in shown)
    (line,) = film.document(0)["screen_texts"]
    assert line["text"] == "Rocket launch delayed" and line["model"] == "rapidocr-ppocrv6-small"
    assert [seen["keyframe"] for seen in line["sightings"]] == [0, 1]
    assert len(line["sightings"][0]["box"]) == 4
    assert film.document(1)["screen_texts"] == []


def test_publishing_a_new_run_replaces_the_lines_of_the_old(film: Captions) -> None:
    film.shoot([LAUNCH])
    film.read(1)
    assert film.searched("rocket") == [], "not before it is published"
    film.publish(2)
    film.store("0.0", render(("Weather tomorrow", 200)))
    film.read(3)
    assert film.searched("rocket") == [0], "the published run is seen until the next one is"
    film.publish(4)
    assert film.searched("rocket") == [] and film.searched("weather") == [0]
    # As the sweep does.
    transact(lambda session: drop_unpublished(session, "v", {"split": 1, "ocr": 4}, 0, 0))
    assert film.found(2) == [] and len(film.found(4)) == 1


def test_a_run_without_the_stage_is_published_without_text(film: Captions) -> None:
    """The run began under a version that had no such stage."""
    film.shoot([LAUNCH])
    begin(1, OTHERS)
    film.work(sidecar, "sidecar", 1)
    assert film.document(0)["screen_texts"] == [] and film.searched("rocket") == []
    with reading() as session:
        scene = session.scalars(select(Scene)).one()
        assert scene.live and scene.ocr_run is None and scene.screen_text == ""
    film.publish(2)
    assert film.searched("rocket") == [0]
