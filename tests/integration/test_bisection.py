"""Jobs whose process dies: what is blamed on them, and how a part is halved until its deadly item is alone.

Over a real Postgres, with the runner of a worker. A stage "dies" by raising ``WorkerLost``, which the ledger takes as the
reconciler's word that a process died; processes that are killed are in tests/acceptance/test_faults.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db import videos
from db.engine import reading, transact
from db.ledger import bisection, video_runs
from db.ledger.policy import RunPolicy
from db.scenes import write_scenes, write_transcript
from db.search.coverage import Covered, cover
from db.search.scope import Scope
from db.tables import Job, Scene, TranscriptPart
from shared.contracts import ListFailures, StageStatus, VideoStatus
from shared.errors import WorkerLost
from shared.settings import Settings
from tests.support.ledger import KEY, accept, execute, job, must_claim, read, state
from worker import runner, stages
from worker.runtime import Runtime
from worker.stages import sidecar
from worker.stages.context import Outcome, StageContext

pytestmark = pytest.mark.usefixtures("database")

POLICY = RunPolicy(skips={"vision": "off", "ocr": "off", "rendition": "off"}, max_failures=3, tmp_ttl_s=3600)
QUEUES = ("media", "asr", "face", "text", "housekeeping")


class Film:
    """A video whose stages note what they look at, and die of what a test names."""

    def __init__(self, runtime: Runtime, keyframes: Collection[int], windows: int) -> None:
        self.runtime, self.keyframes, self.windows = runtime, keyframes, windows
        #: (stage, scene, keyframe) or (stage, second of sound).
        self.deadly: set[tuple[Any, ...]] = set()
        self.seen: dict[tuple[str, int], list[int]] = {}
        self.heard: list[tuple[float, float]] = []
        self.deaths = 0
        #: Of one attempt, before it dies.
        self.most_keyframes = 1000

    def run(self, context: StageContext) -> Outcome:
        """In place of every stage but ``sidecar``."""
        claimed = context.claimed
        act: Callable[[StageContext], Outcome] | None = getattr(self, f"_{claimed.stage}", None)
        if claimed.stage == "sidecar":
            return sidecar.run(context)
        return Outcome() if act is None else act(context)

    def _split(self, context: StageContext) -> Outcome:
        self._die({("split",)})
        claimed = context.claimed
        scenes = [
            {
                "idx": idx, "start_s": float(idx), "end_s": idx + 1.0, "kind": "cut",
                "keyframes": [
                    {"ordinal": n, "key": f"k{idx}.{n}", "ts_s": idx + n / 10, "width": 8, "height": 8}
                    for n in range(count)
                ],
            }
            for idx, count in enumerate(self.keyframes)
        ]  # fmt: skip
        windows = [[n * 120.0, n * 120.0 + 120] for n in range(self.windows)]
        return Outcome(
            result={"audio_key": "a", "windows": windows},
            write=lambda session: write_scenes(session, claimed.video_id, "u1", claimed.run, scenes),
        )

    def _face(self, context: StageContext) -> Outcome:
        with reading() as session:
            scenes = context.scenes(session)
        looked = {
            ("face", scene.idx): [keyframe["ordinal"] for keyframe in scene.keyframes] for scene in scenes
        }
        if sum(map(len, looked.values())) > self.most_keyframes:
            self.deadly.add(("much",))
        self._die({("much",), *(("face", idx, n) for (_, idx), ordinals in looked.items() for n in ordinals)})
        return Outcome(write=lambda session: self.seen.update(looked))

    def _text(self, context: StageContext) -> Outcome:
        with reading() as session:
            idxs = [scene.idx for scene in context.scenes(session)]
        self._die({("text", idx, None) for idx in idxs})
        return Outcome(write=lambda session: self.seen.update({("text", idx): [] for idx in idxs}))

    def _asr(self, context: StageContext) -> Outcome:
        claimed = context.claimed
        start_s, end_s = float(claimed.payload["start_s"]), float(claimed.payload["end_s"])
        self._die({death for death in self.deadly if death[0] == "asr" and start_s <= death[1] < end_s})

        def write(session: Session) -> None:
            self.heard.append((start_s, end_s))
            write_transcript(
                session, video_id=claimed.video_id, user_id="u1", run=claimed.run, part=claimed.part,
                start_s=start_s, end_s=end_s, language="en", segments=[], model_id=None,
            )  # fmt: skip

        return Outcome(write=write)

    def _die(self, met: Collection[Any]) -> None:
        if self.deadly.intersection(met):
            self.deaths += 1
            self.deadly.discard(("much",))
            raise WorkerLost("the worker process (pid 7) died while it ran this job")

    def work(self) -> None:
        """Run every job until none is left, pauses left out; the sweep waits for its time."""
        while any(self._work(queue) for queue in QUEUES):
            pass

    def _work(self, queue: str) -> bool:
        # The sweep of a run that left something out waits for a retry.
        execute(update(Job).where(Job.state == "queued", Job.stage != "sweep").values(not_before=func.now()))
        return "idle" not in runner.work(queue, self.runtime)


@pytest.fixture
def runtime(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime(
        Settings(POSTGRES_URL=database, REDIS_URL="redis://127.0.0.1:1/0", SCENEFLEET_HOME=tmp_path / "home")
    )
    made.storage.ensure_buckets()
    made.owner, made.work_dir = "here:1.a:0:2", tmp_path / "work"
    vars(made)["policy"] = POLICY
    monkeypatch.setattr(runner, "notify", lambda wake_ups: None)
    monkeypatch.setattr(runner.changes, "publish", lambda note: None)
    return made


@pytest.fixture
def make_film(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Film]:
    def make(keyframes: Collection[int] = (1,), windows: int = 0) -> Film:
        film = Film(runtime, keyframes, windows)
        monkeypatch.setattr(stages, "run", film.run)
        accept(policy=POLICY)
        return film

    return make


def status() -> VideoStatus:
    with reading() as session:
        return videos.status(session, "v1", "u1")


def stage(name: str) -> StageStatus:
    return next(found for found in status().stages if found.stage == name)


def retry() -> None:
    assert transact(lambda session: video_runs.retry(session, videos.lock(session, "v1", "u1"), POLICY))[0]


def coverage() -> Covered:
    with reading() as session:
        return cover(session, Scope(user_id="u1"), {})


def documents(film: Film) -> dict[int, dict[str, Any]]:
    """The sidecars that are published, by scene."""
    scenes = read(select(Scene).where(Scene.video_id == KEY, Scene.live))
    storage = film.runtime.storage
    return {
        scene.idx: json.loads(storage.get_bytes("sidecars", scene.sidecar_key or "", max_bytes=10**6))
        for scene in scenes
    }


def test_one_deadly_keyframe_among_300_costs_that_keyframe_only(make_film: Callable[..., Film]) -> None:
    film = make_film([3] * 100)
    film.deadly = {("face", 41, 1)}
    film.work()
    assert state() == "indexed"
    everything = {("face", idx): [0, 1, 2] for idx in range(100)}
    assert {key: seen for key, seen in film.seen.items() if key[0] == "face"} == everything | {
        ("face", 41): [0, 2]
    }
    # The part of 6 keyframes three times, the half of 3 once, two of them once, and the one alone on its node twice.
    assert film.deaths == 3 + 1 + 1 + 2
    face = stage("face")
    assert (face.state, face.not_looked_at, face.error_class) == ("done", 1, "WorkerLost")
    gap = {"stage": "face", "reason": bisection.REASON, "keyframes": [1], "start_s": None, "end_s": None}
    with reading() as session:
        (listed,) = videos.failures(session, ListFailures(user_id="u1")).failures
    assert (listed.stage, listed.error_class) == ("face", "WorkerLost")
    told = {idx: document["not_looked_at"] for idx, document in documents(film).items()}
    assert told == {idx: [gap] if idx == 41 else [] for idx in range(100)}
    covered = coverage()
    assert (covered.scenes, covered.not_looked_at, covered.retrievers["people"]) == (100, 1, 99)
    retry()
    film.work()
    assert stage("face").not_looked_at == 1, "it was tried again, and died again"
    film.deadly.clear()
    retry()
    film.work()
    assert {key: seen for key, seen in film.seen.items() if key[0] == "face"} == everything
    assert (state(), stage("face").not_looked_at, stage("face").error) == ("indexed", 0, None)
    assert not any(document["not_looked_at"] for document in documents(film).values())
    assert coverage().not_looked_at == 0


def test_several_deadly_keyframes_and_a_scene_of_which_nothing_is_left(
    make_film: Callable[..., Film],
) -> None:
    film = make_film([1, 4, 2, 1])
    film.deadly = {("face", 0, 0), ("face", 1, 0), ("face", 1, 3), ("face", 2, 0), ("face", 2, 1)}
    film.work()
    assert {key: seen for key, seen in film.seen.items() if key[0] == "face"} == {
        ("face", 1): [1, 2],
        ("face", 3): [0],
    }
    assert (state(), stage("face").state, stage("face").not_looked_at) == ("indexed", "done", 5)


def test_a_stage_of_which_nothing_could_be_looked_at_has_failed(make_film: Callable[..., Film]) -> None:
    film = make_film([2])
    film.deadly = {("face", 0, 0), ("face", 0, 1)}
    film.work()
    assert (state(), stage("face").state, stage("face").not_looked_at) == ("partial", "failed", 2)
    film.deadly.clear()
    retry()
    film.work()
    assert (state(), film.seen["face", 0]) == ("indexed", [0, 1])


def test_sound_is_halved_by_time_and_scenes_by_number(make_film: Callable[..., Film]) -> None:
    film = make_film([1] * 40, windows=3)
    film.deadly = {("asr", 130.0), ("text", 17, None)}
    film.work()
    missed_s = 360 - sum(end - start for start, end in film.heard)
    assert bisection.LEAST_WINDOW_S <= missed_s < 2 * bisection.LEAST_WINDOW_S
    assert sorted(key[1] for key in film.seen if key[0] == "text") == [n for n in range(40) if n != 17]
    assert (state(), stage("asr").not_looked_at, stage("text").not_looked_at) == ("indexed", 1, 1)
    parts = read(select(TranscriptPart).order_by(TranscriptPart.start_s))
    assert len(parts) == len(film.heard), "each half has a row of its own"


def test_a_part_that_dies_only_as_a_whole_is_done_in_halves(make_film: Callable[..., Film]) -> None:
    """As one that needs more memory than there is: nothing is left out."""
    film = make_film([4, 4])
    film.most_keyframes = 4
    film.work()
    assert film.seen["face", 0] == film.seen["face", 1] == [0, 1, 2, 3]
    assert (state(), stage("face").state, stage("face").not_looked_at) == ("indexed", "done", 0)
    assert film.deaths == 3


def test_only_deaths_alone_on_the_node_are_blamed_on_a_job(make_film: Callable[..., Film]) -> None:
    film = make_film()
    (found,) = read(select(Job))
    for deaths in range(4):
        claimed = must_claim(owner="here:1.a:0:2")
        assert claimed.deaths == min(deaths, 3)
        alone = deaths == 3
        if alone:
            transact(lambda session: runner.attempts.mark_alone(session, claimed))  # noqa: B023
        error = WorkerLost("gone")
        transact(lambda session: runner.attempts.fail(session, claimed, error, POLICY))  # noqa: B023
    counted = job(found.job_id)
    assert (counted.deaths, counted.deaths_alone, counted.failures) == (4, 1, 0)
    assert counted.state == "queued", "deaths beside other jobs prove nothing"
    film.deadly = {("split",)}
    film.work()
    assert (state(), job(found.job_id).deaths) == ("failed", 5)
