"""The face stage on a real Postgres, with dlib and with YuNet + AdaFace: what it stores of whom, and what a rerun leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sqlalchemy import select

from db.engine import reading
from db.tables import Face
from shared.errors import LeaseLost
from shared.settings import Settings
from tests.checkpoints import adaface, write_catalog
from tests.contracts.candidates import needs_assets, photograph, sample_picture
from tests.support.films import Film, begin, scenes
from worker.models.base import Uint8
from worker.runtime import Runtime
from worker.stages import face as stage

pytestmark = pytest.mark.usefixtures("database")

GREY = np.full((540, 960, 3), 128, np.uint8)


class Faces(Film):
    """A film whose faces are looked for."""

    def look(self, run: int) -> dict[str, Any]:
        begin(run, {"split": 1, "face": run})
        return self.work(stage, "face", run)

    def found(self, run: int, idx: int = 0) -> list[Face]:
        """The faces of a scene, by keyframe and from left to right."""
        (scene,) = scenes(idx, idx)
        with reading() as session:
            rows = session.scalars(select(Face).where(Face.run == run, Face.scene_id == scene.scene_id))
            return sorted(rows, key=lambda row: (row.ordinal, row.box[0]))


@pytest.fixture(scope="module", params=["dlib", "adaface"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    folder = tmp_path_factory.mktemp("runtime")
    environment: dict[str, Any] = {"SCENEFLEET_FAMILY": "face", "SCENEFLEET_HOME": folder / "home"}
    if request.param == "adaface":
        catalog = write_catalog(folder / "models.yaml", [adaface.build(folder / "adaface")])
        environment |= {"SCENEFLEET_PROFILE": "full", "SCENEFLEET_MODELS_FILE": catalog}
    found = Runtime(Settings(**environment))
    found.storage.ensure_buckets()
    return found


@pytest.fixture
def film(runtime: Runtime, tmp_path: Path) -> Faces:
    return Faces(runtime, tmp_path)


@pytest.fixture(scope="module")
def astronaut() -> Uint8:
    return sample_picture(12.5)


def beside(left: Uint8, right: Uint8) -> Uint8:
    """Two pictures of one height side by side, within the size of a keyframe."""
    right = cv2.resize(right, (right.shape[1] * left.shape[0] // right.shape[0], left.shape[0]))
    return np.concatenate([left, right], axis=1)


def test_one_person_is_one_track_with_what_the_model_says(film: Faces, astronaut: Uint8) -> None:
    smaller = GREY.copy()
    smaller[:432, :768] = cv2.resize(astronaut, (768, 432), interpolation=cv2.INTER_AREA)
    film.shoot([astronaut, GREY, smaller], [GREY], [astronaut])
    assert film.look(1) == {"faces": 3, "keyframes": 5}
    first, later = film.found(1)
    assert [(row.ordinal, row.ts_s, row.track) for row in (first, later)] == [(0, 0.0, 0), (2, 2.0, 0)]
    assert film.found(1, 1) == []
    # Tracks are counted again in every scene.
    assert [(row.ordinal, row.ts_s, row.track) for row in film.found(1, 2)] == [(0, 4.0, 0)]
    model = film.runtime.model("face")
    for row in (first, later):
        assert row.user_id == "u" and len(row.landmarks) == 5 and len(row.box) == 4
        assert len(row.vec) == model.spec.dim
        assert (row.quality is not None) == (model.spec.provider == "adaface")
    assert film.reported == sorted(film.reported) and 0 <= film.reported[0] < film.reported[-1] < 1


@needs_assets
def test_two_people_who_change_places_keep_their_tracks(film: Faces, astronaut: Uint8) -> None:
    president = photograph("obama.jpg")[:700]
    wide = cv2.resize(astronaut[:, 200:700], (500, 540))
    film.shoot(
        [beside(wide, president), beside(wide, president), beside(president, cv2.resize(wide, (648, 700)))]
    )
    assert film.look(1)["faces"] == 6
    assert [row.track for row in film.found(1)] == [0, 1, 0, 1, 1, 0]


def test_a_rerun_stores_its_own_and_a_repeat_of_it_only_once(film: Faces, astronaut: Uint8) -> None:
    film.shoot([astronaut, astronaut])
    film.look(1)
    film.look(2)
    assert len(film.found(1)) == len(film.found(2)) == 2
    assert {row.face_id for row in film.found(1)}.isdisjoint(row.face_id for row in film.found(2))


def test_a_lost_lease_ends_the_work(film: Faces, astronaut: Uint8) -> None:
    film.shoot([astronaut])
    film.lost = True
    with pytest.raises(LeaseLost):
        film.look(1)
    assert film.found(1) == []
