"""A switch of models in the ledger: what is planned, given up, tried again, overtaken by a new run, discarded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

import tasks.models
import tasks.requests
from db import switches
from db.active_models import active_models, kept_models
from db.engine import reading, transact
from db.expressions import NOW
from db.ledger import subjects, switch_runs, video_runs
from db.ledger.claims import Claim
from db.ledger.policy import RunPolicy
from db.scenes import published_scenes, scene_id, write_scenes
from db.tables import ActiveModel, Embedding, Job, Model, ModelSwitch, Run, Scene, Video
from db.vectors import ModelRow, ensure_model, write_embeddings
from shared.errors import Conflict, DatabaseUnavailable, LeaseLost, ModelFailure, ModelUnavailable
from shared.settings import Settings
from tests.support.ledger import claim, execute, fail, finish, must_claim, read
from worker.models.catalog import Catalog, load_catalog
from worker.runtime import ActiveModels, Runtime
from worker.stages import discard as discard_stage, reembed
from worker.stages.context import Outcome, StageContext
from worker.stages.vectors import Made, write_kept

pytestmark = pytest.mark.usefixtures("database")

POLICY = RunPolicy(skips={}, max_failures=3, tmp_ttl_s=3600)
DIMS = {"old": 4, "new": 6}


def ensure_text_model(name: str, dim: int, revision: str = "1") -> ModelRow:
    model = {"name": name, "revision": revision, "family": "text", "dim": dim, "metric": "cosine"}
    return transact(lambda session: ensure_model(session, **model))


class Archive:
    """Videos whose scenes have a vector of the model ``old``."""

    def __init__(self) -> None:
        self.models = {name: ensure_text_model(name, dim) for name, dim in DIMS.items()}

    def add(self, video_id: str, scenes: int, user_id: str = "u1") -> None:
        def write(session: Session) -> None:
            published = {
                "state": "indexed",
                "run": 1,
                "published_run": 1,
                "indexed_at": func.clock_timestamp(),
            }
            session.add(Video(video_id=video_id, user_id=user_id, storage_key="k", **published))
            session.flush()
            rows = [
                {
                    "idx": idx, "start_s": float(idx), "end_s": idx + 1.0, "kind": "cut", "keyframes": [],
                    "live": True, "transcript": f"words {idx}", "text_run": 1,
                }
                for idx in range(scenes)
            ]  # fmt: skip
            write_scenes(session, video_id, user_id, 1, rows)
            self.write(session, "old", 1, [scene_id(video_id, 1, idx) for idx in range(scenes)], user_id)

        transact(write)

    def write(self, session: Session, model: str, run: int, ids: Sequence[UUID], user_id: str = "u1") -> None:
        vector = np.ones(DIMS[model], np.float32)
        write_embeddings(session, self.models[model], run, user_id, ids, [(one, 0, vector) for one in ids])

    def publish_again(self, video_id: str) -> None:
        """A second run, whose text stage knew nothing of the switch."""

        def write(session: Session) -> None:
            ids = [scene.scene_id for scene in published_scenes(session, video_id, "u1", 0, 10_000)]
            self.write(session, "old", 2, ids)
            newer = {"run": 2, "published_run": 2, "indexed_at": NOW}
            session.execute(update(Scene).where(Scene.video_id == video_id).values(text_run=2))
            session.execute(update(Video).where(Video.video_id == video_id).values(newer))

        transact(write)

    def begin(self) -> None:
        transact(lambda session: switches.begin(session, "text", *self.models.values(), POLICY))

    def lacking(self, *videos: str) -> int:
        with reading() as session:
            rows = switch_runs.lacking(session, "text", *self.models.values(), list(videos))
        return sum(len(row.idxs) for row in rows)

    def counts(self) -> tuple[int, int]:
        """The number of vectors of the old model and of the new one."""
        written = read(select(Embedding.model_id))
        old, new = (written.count(model.model_id) for model in self.models.values())
        return old, new


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive()

    def embed(context: StageContext, kind: str, name: str, scenes: list[Any]) -> Made:
        assert (kind, name) == ("text", "new")

        def write(session: Session, run: int, ids: Sequence[UUID]) -> None:
            made.write(session, "new", run, ids, context.claimed.user_id)

        return Made(made.models["new"], write)

    monkeypatch.setattr(reembed, "_embed", embed)
    monkeypatch.setattr(switches, "_SETTLE_S", 0.0)
    return made


@pytest.fixture
def catalog() -> Catalog:
    """The lite models, and a second one of the kind text."""
    lite = load_catalog().for_profile("lite")
    return Catalog([*lite.values(), lite["text"].model_copy(update={"name": "second", "profiles": ()})])


def switch() -> ModelSwitch:
    return read(select(ModelSwitch).order_by(ModelSwitch.switch_id.desc()))[0]


def change(act: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Change the open switch."""
    return transact(lambda session: act(session, switches.require(session, "text"), *arguments, **options))


def activate() -> None:
    change(switches.point, "new")


def discard(pages_s: float = 0) -> None:
    change(switches.discard, POLICY, pages_s=pages_s)


def reconcile() -> None:
    def go_on(session: Session) -> None:
        for found in switch_runs.find_open(session):
            subjects.advance(session, subjects.lock_switch(session, found), POLICY)

    transact(go_on)


def work(claimed: Claim) -> Outcome:
    context = StageContext(
        claimed=claimed, runtime=Runtime(Settings()), folder=Path("/nowhere"), report=lambda done: None
    )
    return discard_stage.run(context) if claimed.stage == "discard" else reembed.run(context)


def end(claimed: Claim, outcome: Outcome | None = None) -> None:
    outcome = outcome or work(claimed)
    finish(claimed, outcome.write, policy=POLICY, **outcome.result)


def run_all(queue: str = "text") -> int:
    """Finish all claimable jobs. Returns how many."""
    return len([end(claimed) for claimed in iter(partial(claim, queue), None)])


def waiting() -> int:
    return len(read(select(Job.job_id).where(Job.state == "queued")))


def test_beginning_again_changes_nothing_and_nothing_to_do_is_ready_at_once(archive: Archive) -> None:
    archive.begin()
    archive.begin()
    assert switch().state == "ready" and switch().switch_id == 1
    # A setting that changes now changes nothing either.
    assert transact(active_models)["text"] == archive.models["old"]


def test_an_archive_is_planned_bit_by_bit_and_each_scene_is_done_once(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_runs, "_WINDOW", 8)
    for number in range(6):
        archive.add(f"v{number}", 32 * 5, user_id=f"u{number % 2}")
    archive.begin()
    assert waiting() == 2 * 5, "two videos fill the window; the others wait for their turn"
    first = must_claim("text")
    assert first.payload["last_idx"] - first.payload["first_idx"] < 32
    end(first)
    assert run_all() == 6 * 5 - 1
    found, scenes = switch(), 6 * 32 * 5
    assert (found.state, found.done, found.total) == ("ready", scenes, scenes)
    assert archive.lacking(*(f"v{number}" for number in range(6))) == 0 == waiting()
    assert archive.counts() == (scenes, scenes)
    rate = transact(lambda session: switch_runs.progress(session, switch())).scenes_per_s
    assert rate is not None and rate > 0


def test_a_long_stretch_that_lacks_nothing_is_walked_bit_by_bit(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_runs, "_VIDEOS_AT_ONCE", 2)
    monkeypatch.setattr(switch_runs, "_STRETCH", 4)
    for number in range(9):
        archive.add(f"v{number}", 1)
        ids = [scene_id(f"v{number}", 1, 0)]
        if number < 8:
            transact(lambda session, ids=ids: archive.write(session, "new", 1, ids))  # type: ignore[misc]
    archive.begin()
    for seen in ("v3", "v7"):
        assert (switch().state, switch().seen_video) == ("building", seen), "not ready before the end"
        reconcile()
    assert run_all() == 1 and archive.lacking("v8") == 0
    assert switch().state == "ready"


def test_a_video_that_came_into_sight_late_is_found_however_slow_the_last_parts_are(archive: Archive) -> None:
    archive.add("v", 10)
    archive.add("late", 5)
    # Its publication was committed after the place had been passed ...
    late = update(Video).where(Video.video_id == "late")
    execute(late.values(published_run=None, indexed_at=None))
    execute(update(Video).values(indexed_at=Video.indexed_at - timedelta(hours=1)))
    archive.begin()
    (indexed_at,) = read(select(Video.indexed_at).where(Video.video_id == "v"))
    execute(late.values(published_run=1, indexed_at=indexed_at - timedelta(seconds=1)))
    # ... and the parts before it were done an hour later.
    run_all()
    assert switch().state == "ready" and archive.lacking("late") == 0


def test_done_parts_do_not_pile_up(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_runs, "_SPEED_S", 0)
    archive.add("v", 32 * 6)
    archive.begin()
    assert run_all() == 6 and switch().done == 32 * 6
    assert read(select(Job)) == []
    archive.add("w", 1)
    reconcile()
    assert run_all() == 1 and archive.lacking("w") == 0


def test_nothing_is_dropped_that_the_new_model_has_no_vectors_of(archive: Archive) -> None:
    archive.add("v", 3)
    archive.begin()
    run_all()
    activate()
    # Published a moment ago by a run from before the switch.
    archive.add("late", 2)
    with pytest.raises(Conflict, match="1 parts of the archive have no vectors of new yet"):
        discard()
    reconcile()
    run_all()
    # Its words were embedded before the switch; it is not published yet.
    archive.add("slow", 2)
    execute(update(Scene).where(Scene.video_id == "slow").values(live=False, text_run=None))
    execute(update(Video).where(Video.video_id == "slow").values(published_run=None, indexed_at=None))
    execute(insert(Run).values(video_id="slow", run=1, stages=["text"], stage_runs={"text": 1}))
    with pytest.raises(Conflict, match="video slow is in progress since before the switch"):
        discard()
    assert (switch().state, archive.counts()[0]) == ("activated", 7)
    execute(update(Run).values(ended_at=NOW))
    discard()
    assert run_all("housekeeping") == 1 and switch().state == "ended"


def test_a_question_leaves_nothing_behind(
    archive: Archive, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(Settings())
    runtime.catalog = catalog
    monkeypatch.setattr(tasks.models, "get_runtime", lambda: runtime)
    monkeypatch.setattr(tasks.requests, "get_runtime", lambda: runtime)
    monkeypatch.setattr(tasks.models.nodes, "read_nodes", lambda url: {})
    said = tasks.models.switch(kind="text", to="second", dry_run=True)
    assert (said["active"], said["switch"]) == ("all-minilm-l6-v2", None)
    assert "second" not in read(select(Model.name))
    said = tasks.models.switch(kind="text", to="second")
    assert said["switch"]["to_model"] == "second" and said["switch"]["state"] == "ready"
    assert tasks.models.switch(kind="text", to="second", dry_run=True) == said


def test_how_a_switch_stands_is_said_without_counting_the_archive(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add("v", 3)
    archive.begin()
    monkeypatch.setattr(switches, "count", lambda *_: pytest.fail("counted the whole archive"))
    said = tasks.models.state(kind="text")
    assert (said["active"], said["scenes"], said["switch"]["done"]) == ("old", 3, 0)


def test_a_switch_that_ends_while_it_is_read_is_not_there(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add("v", 3)
    archive.begin()
    discard()
    find = switches.find

    def find_before_its_end(session: Session, kind: str) -> ModelSwitch | None:
        found = find(session, kind)
        assert run_all("housekeeping") == 1, "another process does the last job of the switch"
        return found

    with monkeypatch.context() as patched:
        patched.setattr(tasks.models.switches, "find", find_before_its_end)
        said = tasks.models.state(kind="text")
    assert switch().state == "ended"
    assert (said["active"], said["switch"]) == ("old", None)


def test_a_scene_without_words_gets_no_vector_and_holds_nothing_up(archive: Archive) -> None:
    archive.add("v", 3)
    # Its words were heard again while the text stage was off: nothing is said there any more.
    execute(update(Scene).where(Scene.idx == 1).values(transcript=""))
    archive.begin()
    run_all()
    assert switch().state == "ready" and archive.counts()[1] == 2


def test_a_part_given_up_holds_the_switch_until_it_is_tried_again(archive: Archive) -> None:
    archive.add("v", 40)
    archive.begin()
    fail(must_claim("text"), ModelUnavailable("the weights are gone"), POLICY)
    run_all()
    reconcile()
    assert switch().state == "building" and waiting() == 0
    progress = transact(lambda session: switch_runs.progress(session, switch()))
    assert (progress.failed, progress.error) == (1, "the weights are gone")
    with pytest.raises(Conflict, match="building: it can't be activated"):
        activate()
    change(switch_runs.retry)
    assert run_all() == 1
    assert switch().state == "ready" and switch().done == 40


def test_a_run_published_meanwhile_is_looked_at_again_and_an_erased_one_is_not(archive: Archive) -> None:
    archive.add("v", 10)
    archive.begin()
    claimed = must_claim("text")
    outcome = work(claimed)
    archive.publish_again("v")
    end(claimed, outcome)
    assert archive.counts()[1] == 0, "made of words that are not published any more"
    assert run_all() == 1
    assert switch().state == "ready" and archive.lacking("v") == 0
    # The same when it is built, and after the activation: a run that began before the switch may end at any time.
    activate()
    archive.add("late", 5)
    reconcile()
    assert run_all() == 1 and archive.lacking("late") == 0 and switch().state == "activated"
    # A video that is erased meanwhile gets nothing.
    archive.add("erased", 5)
    reconcile()
    claimed = must_claim("text")
    outcome = work(claimed)
    transact(lambda session: video_runs.begin_delete(session, session.get_one(Video, "erased"), POLICY))
    end(claimed, outcome)
    reconcile()
    assert archive.counts()[1] == 15 and waiting() == 1, "the erasure"


def test_dropping_ends_what_is_at_work_and_leaves_the_other_model_alone(archive: Archive) -> None:
    archive.add("v", 100)
    archive.begin()
    done, running = must_claim("text"), must_claim("text")
    end(done)
    outcome = work(running)
    discard(pages_s=900)
    with pytest.raises(LeaseLost):
        end(running, outcome)
    assert claim("text") is None, "nothing more is made"
    assert run_all("housekeeping") == 1
    assert switch().state == "ended"
    assert archive.counts() == (100, 0)
    # And once more from the start, with the same model.
    archive.begin()
    run_all()
    assert switch().state == "ready" and archive.counts()[1] == 100


def test_what_is_not_searched_is_dropped_and_the_next_switch_begins_with_what_is(archive: Archive) -> None:
    archive.add("v", 3)
    archive.begin()
    run_all()
    activate()
    with pytest.raises(Conflict, match="may still request further pages"):
        discard(pages_s=900)
    discard()
    run_all("housekeeping")
    assert archive.counts() == (0, 3)
    assert transact(active_models)["text"].name == "new"
    assert transact(lambda session: kept_models(session, "text")) == ()
    third = ensure_text_model("third", 6)
    # A process that looked the pointer up a moment ago still thinks of the old one.
    transact(lambda session: switches.begin(session, "text", archive.models["old"], third, POLICY))
    assert switch().from_model == archive.models["new"].model_id and switch().total == 3
    assert switch().state == "building" and waiting() == 1


def test_a_stage_writes_the_models_that_are_kept_when_it_ends(archive: Archive) -> None:
    archive.add("v", 1)
    scene = scene_id("v", 1, 0)
    made = [
        Made(row, lambda session, run, ids, name=name: archive.write(session, name, run, ids))  # type: ignore[misc]
        for name, row in archive.models.items()
    ]

    def write(run: int, *chosen: Made) -> set[str]:
        transact(lambda session: write_kept(session, "text", chosen, run, [scene]))
        rows = read(select(Embedding.model_id).where(Embedding.run == run))
        return {name for name, row in archive.models.items() if row.model_id in rows}

    # No switch: the active model only, whatever was made.
    assert write(5, *made) == {"old"}
    archive.begin()
    run_all()
    assert write(6, *made) == {"old", "new"}
    activate()
    discard()
    run_all("housekeeping")
    with pytest.raises(ModelFailure, match="became new while old worked"):
        write(7, made[0])
    assert write(8, *made) == {"new"}


class TestActive:
    """The pointer as a process sees it."""

    def point(self, catalog: Catalog, name: str, revision: str | None = None) -> None:
        row = ensure_text_model(name, 384, revision or catalog.get("all-minilm-l6-v2").revision)
        transact(lambda session: session.merge(ActiveModel(kind="text", model_id=row.model_id)))

    def test_it_is_the_configured_one_until_a_switch_which_is_noticed_soon(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.runtime.NOTICED_S", 0.0)
        active = ActiveModels(catalog, Settings())
        assert active.models()["text"].name == "all-minilm-l6-v2"
        assert [spec.name for spec in active.written("text")] == ["all-minilm-l6-v2"]
        self.point(catalog, "second")
        assert active.models()["text"].name == "second"
        assert active.models()["asr"].name == "pocketsphinx-en-us", "the other kinds are as configured"

    @pytest.mark.parametrize(
        ("name", "revision", "says"),
        [
            ("gone", None, "of model gone in use, which models.yaml does not have"),
            ("second", "older", "of second at revision older in use"),
        ],
    )
    def test_a_model_that_is_not_here_is_refused(
        self, catalog: Catalog, name: str, revision: str | None, says: str
    ) -> None:
        self.point(catalog, name, revision)
        with pytest.raises(ModelUnavailable, match=says):
            ActiveModels(catalog, Settings()).models()

    def test_while_postgres_is_away_what_was_known_goes_on(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.runtime.NOTICED_S", 0.0)
        self.point(catalog, "second")
        active = ActiveModels(catalog, Settings())
        assert active.models()["text"].name == "second"
        away = Mock(side_effect=DatabaseUnavailable("gone"))
        monkeypatch.setattr("worker.runtime.reading", away)
        assert [active.models()["text"].name for _ in range(5)] == ["second"] * 5
        assert away.call_count == 1, "not asked at every request"
