"""A video of many scenes: what the stages write comes in short transactions, and is shown by a short one at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, update

from db import scenes as scenes_table
from db.engine import get_engine, transact
from db.ledger import attempts, subjects, video_runs
from db.ledger.claims import Claim
from db.tables import Job, PreparedScene, Scene, TranscriptPart, Video
from shared.errors import LeaseLost
from tests.integration.conftest import Configure
from tests.support.ledger import (
    KEY,
    LEASE_S,
    POLICY,
    accept,
    claim,
    execute,
    finish,
    must_claim,
    read,
    scene_rows,
    set_job,
    split,
    state,
)
from worker.stages import erase_video, sidecar, split as split_stage, sweep
from worker.stages.context import StageContext

pytestmark = pytest.mark.usefixtures("database")

KEYFRAME = {"ordinal": 0, "key": "k", "ts_s": 0.0, "width": 4, "height": 4}


@pytest.fixture
def attempt(configure: Configure, tmp_path: Path) -> Callable[[Claim], StageContext]:
    """The context of a claim on a node of this process."""
    runtime = configure()
    runtime.storage.ensure_buckets()

    def make(claimed: Claim) -> StageContext:
        return StageContext(claimed=claimed, runtime=runtime, folder=tmp_path, report=lambda _: None)

    return make


@contextmanager
def transactions() -> Iterator[list[int]]:
    """The number of statements of each transaction that is committed."""
    found: list[int] = []
    count = 0

    def executed(*_: Any) -> None:
        nonlocal count
        count += 1

    def committed(_: Any) -> None:
        nonlocal count
        found.append(count)
        count = 0

    engine = get_engine()
    event.listen(engine, "before_cursor_execute", executed)
    event.listen(engine, "commit", committed)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", executed)
        event.remove(engine, "commit", committed)


def count(*which: Any) -> int:
    return int(read(select(func.count()).select_from(Scene).where(*which))[0])


def test_the_scenes_of_a_split_are_written_in_batches_between_which_the_lease_is_renewed(
    attempt: Callable[[Claim], StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_stage, "_MOST_SCENES", 50)
    accept()
    claimed = must_claim()
    seen: list[tuple[int, bool]] = []
    write = StageContext.write

    def write_and_look(self: StageContext, work: Any) -> Any:
        result = write(self, work)
        held = transact(lambda session: attempts.beat(session, claimed, 0.5, LEASE_S))
        seen.append((count(), held))
        return result

    monkeypatch.setattr(StageContext, "write", write_and_look)
    split_stage._write_scenes(attempt(claimed), scene_rows(120))
    assert seen == [(50, True), (100, True), (120, True), (120, True)]
    assert count(Scene.live) == 0


def test_the_scenes_of_a_lost_attempt_are_replaced(attempt: Callable[[Claim], StageContext]) -> None:
    accept()
    first = must_claim()
    split_stage._write_scenes(attempt(first), scene_rows(80))
    set_job(first.job_id, state="queued", lease_owner=None)
    second = must_claim()
    with pytest.raises(LeaseLost):
        split_stage._write_scenes(attempt(first), scene_rows(90))
    split_stage._write_scenes(attempt(second), scene_rows(70))
    assert read(select(Scene.idx).order_by(Scene.idx)) == list(range(70))


def ready_for_sidecars(scenes: int) -> Claim:
    """Take a new video to its sidecar stage."""
    accept()
    split(must_claim(), scenes=scenes, windows=1)
    execute(update(Scene).values(keyframes=[KEYFRAME]))
    for queue in ("asr", "text", "face", "ocr"):
        while (claimed := claim(queue)) is not None:
            finish(claimed)
    found = must_claim()
    assert found.stage == "sidecar"
    return found


def test_scenes_are_prepared_in_batches_and_shown_by_one_short_transaction(
    attempt: Callable[[Claim], StageContext],
) -> None:
    claimed = ready_for_sidecars(300)
    with transactions() as prepared:
        outcome = sidecar.run(attempt(claimed))
    assert len(prepared) > 300 / sidecar._BATCH and max(prepared) < 2 * sidecar._BATCH
    # Prepared, and not shown.
    assert count(Scene.sidecar_key.is_not(None)) == 300
    assert count(Scene.live) == 0 and state() != "indexed"
    with transactions() as shown:
        finish(claimed, outcome.write, **outcome.result)
    assert len(shown) == 1 and shown[0] < 60, "statements do not depend on the number of scenes"
    assert count(Scene.live, Scene.face_run == 1) == 300 and state() == "indexed"


def test_an_attempt_that_lost_its_job_prepares_nothing(attempt: Callable[[Claim], StageContext]) -> None:
    claimed = ready_for_sidecars(3)
    set_job(claimed.job_id, state="queued", lease_owner=None)
    with pytest.raises(LeaseLost):
        sidecar.run(attempt(claimed))
    assert count(Scene.sidecar_key.is_not(None)) == 0
    again = must_claim()
    outcome = sidecar.run(attempt(again))
    finish(again, outcome.write, **outcome.result)
    assert count(Scene.live) == 3


def test_many_parts_of_a_stage_are_inserted_by_one_statement() -> None:
    accept()
    claimed = must_claim()
    with transactions() as found:
        wake_ups = split(claimed, scenes=4_000, windows=1, policy=POLICY)
    assert read(select(func.count()).select_from(Job).where(Job.stage == "face")) == [500]
    parts = read(select(Job).where(Job.stage == "face").order_by(Job.part))
    assert [job.part for job in parts] == list(range(500))
    assert parts[7].payload == {"first_idx": 56, "last_idx": 63} and parts[7].account == "u1"
    assert {wake_up.job_id for wake_up in wake_ups if wake_up.queue == "face"} == {
        job.job_id for job in parts
    }
    # The scenes are written by the same transaction here.
    assert found[0] < 60
    assert claim("face") is not None


def test_a_rerun_of_a_shown_split_changes_what_is_shown_at_its_end_only(
    attempt: Callable[[Claim], StageContext],
) -> None:
    claimed = ready_for_sidecars(5)
    outcome = sidecar.run(attempt(claimed))
    finish(claimed, outcome.write, **outcome.result)
    before = read(select(Scene.sidecar_key).order_by(Scene.idx))
    execute(
        update(Job).where(Job.job_id == claimed.job_id).values(state="running", lease_owner=claimed.owner)
    )
    outcome = sidecar.run(attempt(claimed))
    assert read(select(Scene.sidecar_key).order_by(Scene.idx)) == before
    transact(outcome.write)
    assert set(read(select(Scene.sidecar_key))).isdisjoint(before)
    assert count(Scene.live) == 5
    assert not read(select(PreparedScene.scene_id))


def publish(attempt: Callable[[Claim], StageContext], claimed: Claim) -> None:
    """Run a sidecar stage to its end."""
    outcome = sidecar.run(attempt(claimed))
    finish(claimed, outcome.write, **outcome.result)


def again(stage: str, scenes: int) -> Claim:
    """Have the video processed again from a stage on, and take it to its sidecar stage."""
    transact(lambda session: video_runs.rerun(session, subjects.lock_video(session, KEY), [stage], POLICY))
    while (claimed := claim("media")) is None or claimed.stage != "sidecar":
        if claimed is not None and claimed.stage == "split":
            split(claimed, scenes=scenes, windows=1)
            execute(update(Scene).where(~Scene.live).values(keyframes=[KEYFRAME]))
        elif claimed is not None:
            finish(claimed, audio_key="a", windows=[[0.0, 10.0]])
        for queue in ("asr", "text", "vision", "face", "ocr"):
            while (made := claim(queue)) is not None:
                finish(made)
    return claimed


def say(run: int, words: str) -> None:
    """Have a run hear these words in the first scene."""
    segment = {"start_s": 0.1, "end_s": 0.9, "text": words, "words": []}
    part = {"run": run, "part": 0, "user_id": "u1", "start_s": 0.0, "end_s": 10.0, "language": "en"}
    execute(insert(TranscriptPart).values(video_id=KEY, segments=[segment], **part))


def found_by(word: str) -> list[int]:
    """Which scenes of callers hold a word."""
    holds = Scene.tsv.op("@@")(func.websearch_to_tsquery("english", word))
    return read(select(Scene.idx).where(Scene.live, holds))


def test_a_rerun_that_keeps_the_split_is_shown_by_one_short_transaction(
    attempt: Callable[[Claim], StageContext],
) -> None:
    claimed = ready_for_sidecars(300)
    say(1, "a cup of coffee")
    publish(attempt, claimed)
    assert found_by("coffee") == [0]
    claimed = again("asr", 300)
    say(2, "a cat")
    outcome = sidecar.run(attempt(claimed))
    assert found_by("coffee") == [0] and not found_by("cat"), "prepared, and not shown"
    assert read(select(func.count()).select_from(PreparedScene)) == [300]
    with transactions() as shown:
        finish(claimed, outcome.write, **outcome.result)
    assert len(shown) == 1 and shown[0] < 60, "statements do not depend on the number of scenes"
    assert found_by("cat") == [0] and not found_by("coffee")
    assert count(Scene.live, Scene.text_run == 2) == 300
    assert not read(select(PreparedScene.scene_id))


def test_a_cancelled_rerun_shows_nothing_of_what_it_has_prepared(
    attempt: Callable[[Claim], StageContext],
) -> None:
    claimed = ready_for_sidecars(3)
    say(1, "a cup of coffee")
    publish(attempt, claimed)
    claimed = again("asr", 3)
    say(2, "a cat")
    outcome = sidecar.run(attempt(claimed))
    transact(lambda session: video_runs.cancel(session, subjects.lock_video(session, KEY), POLICY))
    with pytest.raises(LeaseLost):
        finish(claimed, outcome.write, **outcome.result)
    assert found_by("coffee") == [0]
    # The next run shows its own words, not those.
    claimed = again("asr", 3)
    say(3, "a dog")
    publish(attempt, claimed)
    assert found_by("dog") == [0] and not found_by("cat")


def test_a_new_split_takes_the_place_of_the_old_one_whose_rows_the_sweep_removes_in_batches(
    attempt: Callable[[Claim], StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(attempt, ready_for_sidecars(300))
    before = set(read(select(Scene.scene_id)))
    claimed = again("split", 200)
    publish(attempt, claimed)
    shown = set(read(select(Scene.scene_id).where(Scene.live)))
    assert len(shown) == 200 and shown.isdisjoint(before)
    monkeypatch.setattr(sweep, "_ROWS_OF", 64)
    swept = must_claim("housekeeping")
    assert swept.stage == "sweep"
    held: list[bool] = []
    write = StageContext.write

    def write_and_look(self: StageContext, work: Any) -> Any:
        write(self, work)
        held.append(transact(lambda session: attempts.beat(session, swept, 0.5, LEASE_S)))

    monkeypatch.setattr(StageContext, "write", write_and_look)
    outcome = sweep.run(attempt(swept))
    assert set(read(select(Scene.scene_id))) == shown
    # The indexes of words, five batches of scenes, and the transcripts.
    assert held == [True] * 7
    left = "SELECT gin_clean_pending_list('ix_scenes_tsv') + gin_clean_pending_list('ix_scenes_screen_tsv')"
    with get_engine().begin() as connection:
        assert connection.exec_driver_sql(left).scalar() == 0, "pages of words beside the indexes"
    finish(swept, outcome.write, **outcome.result)


def test_the_scenes_of_a_deleted_video_are_removed_in_batches(
    attempt: Callable[[Claim], StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(attempt, ready_for_sidecars(30))
    monkeypatch.setattr(scenes_table, "_DROPPED_AT_ONCE", 8)
    transact(lambda session: video_runs.begin_delete(session, subjects.lock_video(session, KEY), POLICY))
    claimed = must_claim("housekeeping")
    assert claimed.stage == "erase_video"
    left: list[int] = []
    write = StageContext.write

    def write_and_count(self: StageContext, work: Any) -> Any:
        result = write(self, work)
        left.append(count())
        return result

    monkeypatch.setattr(StageContext, "write", write_and_count)
    outcome = erase_video.run(attempt(claimed))
    assert left == [22, 14, 6, 0, 0]
    finish(claimed, outcome.write, **outcome.result)
    assert read(select(Video.state)) == ["deleted"] and not read(select(TranscriptPart.part))
