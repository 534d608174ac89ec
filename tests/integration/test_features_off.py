"""A feature that is off loses nothing: real split, sidecar and sweep on a real Postgres, the models' stages made up.

What the made-up stages write tells the run that wrote it, so that "kept" and "made again" can't be mistaken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pgvector import HalfVector
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db import videos
from db.engine import reading, transact
from db.faces.tracks import write_tracks
from db.ledger import video_runs
from db.ledger.claims import Claim
from db.ledger.policy import RunPolicy
from db.scenes import face_id, scenes_between, write_faces, write_screen_texts, write_tags, write_transcript
from db.tables import Run, Scene, Video
from db.vectors import ensure_model, write_embeddings, write_lexical
from shared.contracts import VideoStatus
from shared.errors import BadMedia, Conflict, ScenefleetError
from shared.routing import JOB_QUEUES
from shared.settings import Settings
from shared.storage import upload_key
from tests.support.clips import Shot, Sound, make_clip
from tests.support.ledger import KEY, accept, claim, fail, finish, read
from worker import stages
from worker.runtime import Runtime
from worker.stages.context import StageContext

pytestmark = pytest.mark.usefixtures("database")

ON = RunPolicy(skips={}, max_failures=3, tmp_ttl_s=0.0)
VIDEO, USER = "v1", "u1"
FLAG = {
    "text": "FEATURE_SEMANTIC_SEARCH",
    "vision": "FEATURE_VISION",
    "face": "FEATURE_FACE_DETECTION",
    "ocr": "FEATURE_OCR",
}
#: What a stage has stored, by the scene's number and not by its id.
STORED = {
    "text": "SELECT s.idx, e.ordinal, e.run, e.vec::text, l.tokens FROM embeddings e JOIN scenes s USING (scene_id)"
    " JOIN models m USING (model_id) JOIN lexical_weights l ON l.scene_id = e.scene_id AND l.run = e.run"
    " WHERE m.family = 'text' AND s.live AND e.run = s.text_run ORDER BY 1, 2",
    "vision": "SELECT s.idx, e.ordinal, e.run, e.vec::text, t.tags FROM embeddings e JOIN scenes s USING (scene_id)"
    " JOIN models m USING (model_id) JOIN scene_tags t ON t.scene_id = e.scene_id AND t.run = e.run"
    " WHERE m.family = 'vision' AND s.live AND e.run = s.vision_run ORDER BY 1, 2",
    "face": "SELECT s.idx, f.run, f.box, f.vec::text, t.track, t.faces FROM faces f JOIN scenes s USING (scene_id)"
    " JOIN face_tracks t ON t.scene_id = f.scene_id AND t.run = f.run WHERE s.live AND f.run = s.face_run ORDER BY 1",
    "ocr": "SELECT s.idx, x.run, x.text, s.screen_text, s.screen_tsv::text FROM screen_texts x"
    " JOIN scenes s USING (scene_id) WHERE s.live AND x.run = s.ocr_run ORDER BY 1",
}


def off(*names: str) -> RunPolicy:
    return replace(ON, skips={name: f"{FLAG[name]} is off" for name in names})


@dataclass
class Library:
    """One user's videos, and workers that do whatever waits."""

    runtime: Runtime
    folder: Path
    clips: dict[str, Path]
    policy: RunPolicy = ON
    #: Stage -> what it raises.
    broken: dict[str, Exception] = field(default_factory=dict)
    #: Called before a stage's job ends.
    before_end: Callable[[Claim], None] = lambda claimed: None

    def process(self) -> VideoStatus:
        key = upload_key(USER, VIDEO, "a.mp4")
        self.runtime.storage.put_file("uploads", key, self.clips["own"], "video/mp4")
        accept(VIDEO, USER, key=key, policy=self.policy)
        return self.work()

    def rerun(self, *names: str) -> VideoStatus:
        self.change(video_runs.rerun, names)
        return self.work()

    def missing(self) -> list[str]:
        return list(self.change(video_runs.missing_stages))

    def change(self, act: Callable[..., Any], *arguments: Any) -> Any:
        return transact(lambda s: act(s, videos.lock(s, VIDEO, USER), *arguments, self.policy))

    def work(self) -> VideoStatus:
        """Do everything that waits."""
        while claims := [found for queue in JOB_QUEUES if (found := claim(queue)) is not None]:
            for claimed in claims:
                self._do(claimed)
        with reading() as session:
            return videos.status(session, VIDEO, USER)

    def _do(self, claimed: Claim) -> None:
        folder = self.folder / claimed.storage_part
        folder.mkdir(parents=True)
        # A node's policy is that of its settings; here the test's.
        self.runtime.__dict__["policy"] = self.policy
        context = StageContext(claimed=claimed, runtime=self.runtime, folder=folder, report=lambda _: None)
        try:
            if claimed.stage in self.broken:
                raise self.broken[claimed.stage]
            if claimed.queue in ("media", "housekeeping"):
                outcome = stages.run(context)
                write, result = outcome.write, outcome.result
            else:
                write, result = made_up(claimed), {}
        except ScenefleetError as error:
            fail(claimed, error, self.policy)
            return
        self.before_end(claimed)
        finish(claimed, write, policy=self.policy, **result)

    def stored(self) -> dict[str, list[Any]]:
        return {name: self.rows(query) for name, query in STORED.items()}

    def rows(self, query: str) -> list[Any]:
        return transact(lambda session: [tuple(row) for row in session.execute(text(query))])


def made_up(claimed: Claim) -> Callable[[Session], None]:
    """What a stage of a model finds in its scenes: something in each, with the run's number in it."""

    def write(session: Session) -> None:
        run, stage = claimed.run, claimed.stage
        row = ensure_model(session, name=f"{stage}-m", revision="1", family=stage, dim=2, metric="cosine")
        if stage == "asr":
            start_s, end_s = claimed.payload["start_s"], claimed.payload["end_s"]
            segment = {"start_s": start_s, "end_s": start_s + 0.4, "text": f"heard in run {run}", "words": []}
            write_transcript(
                session, video_id=KEY, user_id=USER, run=run, part=claimed.part, start_s=start_s, end_s=end_s,
                language="en", segments=[segment], model_id=row.model_id,
            )  # fmt: skip
            return
        split = int(session.get_one(Run, (KEY, run)).stage_runs["split"])
        first, last = claimed.payload["first_idx"], claimed.payload["last_idx"]
        ids = [scene.scene_id for scene in scenes_between(session, KEY, split, first, last)]
        vector = np.array([float(run), 1.0], np.float32)
        if stage in ("text", "vision"):
            write_embeddings(session, row, run, USER, ids, [(scene, 0, vector) for scene in ids])
        if stage == "text":
            write_lexical(session, row, run, USER, ids, [(scene, {run: 0.5}) for scene in ids], 100)
        elif stage == "vision":
            write_tags(session, row.model_id, run, USER, ids, {scene: {f"run {run}": 0.9} for scene in ids})
        elif stage == "face":
            face = {
                "user_id": USER, "run": run, "ordinal": 0, "ts_s": 0.0, "box": [run, 0, 9, 9], "landmarks": [], "track": 0,
                "det_score": 0.9, "model_id": row.model_id, "vec": HalfVector(vector), "quality": None,
            }  # fmt: skip
            faces = [{**face, "face_id": face_id(scene, run, 0, 0), "scene_id": scene} for scene in ids]
            write_faces(session, run, ids, faces)
            write_tracks(session, KEY, USER, run, ids, "cosine")
        elif stage == "ocr":
            line = {"text": f"read in run {run}", "score": 0.9, "sightings": []}
            write_screen_texts(session, row.model_id, run, USER, ids, {scene: [line] for scene in ids})

    return write


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A video, and others that could take its place: cut elsewhere, or cut alike and showing something else."""
    folder = tmp_path_factory.mktemp("clips")
    shots = {
        "own": [(1, 25), (2, 30), (3, 25)],
        "other cuts": [(1, 40), (2, 40)],
        "other pictures": [(4, 25), (5, 30), (6, 25)],
    }
    paths = {name: folder / f"{name}.mp4" for name in shots}
    for name, found in shots.items():
        make_clip(paths[name], [Shot(seed=seed, frames=count) for seed, count in found], sound=Sound())
    return paths


@pytest.fixture
def library(tmp_path: Path, clips: dict[str, Path]) -> Library:
    runtime = Runtime(Settings(SCENEFLEET_HOME=tmp_path / "home"))
    runtime.storage.ensure_buckets()
    return Library(runtime, tmp_path / "work", clips)


def states(status: VideoStatus) -> dict[str, str]:
    return {stage.stage: stage.state for stage in status.stages}


@pytest.mark.parametrize("stage", list(FLAG))
def test_a_whole_rerun_with_a_feature_off_keeps_what_it_had_made(library: Library, stage: str) -> None:
    assert library.process().state == "indexed"
    before = library.stored()
    assert all(len(rows) == 3 for rows in before.values())
    library.policy = off(stage)
    status = library.rerun()
    assert (status.state, status.published_run, status.error) == ("indexed", 2, None)
    assert states(status)[stage] == "reused" and states(status)["split"] == "done"
    after = library.stored()
    assert after[stage] == before[stage]
    for other in set(FLAG) - {stage}:
        assert after[other] != before[other] and len(after[other]) == 3, other
    heard = library.rows("SELECT transcript FROM scenes WHERE live AND idx = 0")
    assert heard == [("heard in run 2",)]
    # The sweep has run: every picture, every sidecar and every rendition that is left is a published one.
    scenes, keys = read(select(Scene)), {found.key for found in library.runtime.storage.list("sidecars", "")}
    assert [scene.live for scene in scenes] == [True] * 3
    shown = {frame["key"] for scene in scenes for frame in scene.keyframes}
    (video,) = read(select(Video))
    sprites = {video.media["sprites"]["prefix"] + name for name in ("sprites.vtt", "sprite-0.jpg")}
    assert keys == shown | {scene.sidecar_key for scene in scenes} | sprites | {video.rendition["key"]}
    assert not list(library.runtime.storage.list("tmp", ""))
    # On again: there as before; the vectors of words that were heard again are out of date, nothing else is.
    library.policy = ON
    assert library.stored() == after
    assert library.missing() == (["text"] if stage == "text" else [])
    status = library.rerun()
    assert status.state == "indexed" and states(status)[stage] == "done"
    assert library.stored()[stage] != before[stage] and len(library.stored()[stage]) == 3


@pytest.mark.parametrize("change", ["other cuts", "other pictures", "a damaged keyframe", "a lost keyframe"])
def test_scenes_that_are_not_the_same_are_refused_and_nothing_is_lost(library: Library, change: str) -> None:
    key = library.process().storage_key
    before = library.stored()
    storage = library.runtime.storage
    with reading() as session:
        (scene,) = scenes_between(session, KEY, 1, 1, 1)
    picture = scene.keyframes[0]["key"]
    if change in library.clips:
        storage.put_file("uploads", key, library.clips[change], "video/mp4")
    elif change == "a damaged keyframe":
        storage.put_bytes("sidecars", picture, b"no picture", "image/jpeg")
    else:
        storage.delete("sidecars", picture)
    library.policy = off("face", "ocr")
    status = library.rerun()
    assert (status.state, status.published_run, status.error_class) == ("failed", 1, "Conflict")
    assert status.error is not None and "\n" not in status.error
    assert "face (FEATURE_FACE_DETECTION is off), ocr (FEATURE_OCR is off)" in status.error
    assert library.stored() == before
    library.policy = ON
    status = library.rerun()
    assert (status.state, status.published_run) == ("indexed", 3), status
    assert all(len(rows) in (2, 3) for rows in library.stored().values())


def test_what_was_not_made_meanwhile_is_filled_in(library: Library) -> None:
    library.policy = off("vision", "ocr")
    status = library.process()
    assert status.state == "indexed" and states(status)["vision"] == "skipped"
    assert library.missing() == [], "both are still off"
    before = library.stored()
    assert before["vision"] == before["ocr"] == []
    status = library.rerun()
    assert states(status)["vision"] == "skipped", "there is nothing to keep"
    before = library.stored()
    library.policy = off("ocr")
    assert library.missing() == ["vision"]
    library.rerun(*library.missing())
    library.policy = ON
    assert library.missing() == ["ocr"]
    status = library.rerun(*library.missing())
    assert status.state == "indexed" and states(status)["vision"] == "reused"
    after = library.stored()
    assert len(after["vision"]) == len(after["ocr"]) == 3
    assert (after["text"], after["face"]) == (before["text"], before["face"])
    assert library.missing() == []


def test_a_feature_switched_off_in_the_middle_of_a_rerun_or_before_it_is_retried_loses_nothing(
    library: Library,
) -> None:
    library.process()
    before = library.stored()

    def switch(claimed: Claim) -> None:
        if claimed.stage == "split":
            library.policy = off("face")

    library.before_end = switch
    status = library.rerun()
    assert (status.state, status.published_run, status.error_class) == ("failed", 1, "Conflict")
    assert status.error == "face skipped: the published run has it and is kept"
    assert library.stored() == before
    assert (library.rerun().published_run, library.stored()["face"]) == (3, before["face"])
    # A cancelled rerun starts again without what is off.
    library.policy = ON
    library.change(video_runs.rerun, [])
    library.policy = off("face")
    library.change(video_runs.cancel)
    library.change(video_runs.retry)
    status = library.work()
    assert (status.state, states(status)["face"]) == ("indexed", "reused")
    assert library.stored()["face"] == before["face"]


def test_what_failed_is_missing_but_not_while_a_run_is_open_nor_before_one_is_published(
    library: Library,
) -> None:
    library.broken = {"split": BadMedia("on purpose")}
    assert library.process().state == "failed"
    with pytest.raises(Conflict, match="nothing of it is published: use retry or rerun"):
        library.missing()
    library.broken = {"asr": BadMedia("on purpose")}
    assert library.rerun().state == "partial"
    assert library.missing() == ["asr", "text"]
    library.broken = {}
    library.change(video_runs.rerun, library.missing())
    assert library.missing() == []
    assert library.work().state == "indexed" and library.missing() == []
