"""The ledger against a real Postgres: claims, leases, fences, advance, retry, rerun, cancel, delete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from db import videos
from db.engine import get_engine, reading, transact
from db.ids import video_key
from db.ledger import attempts, claims, subjects, video_runs
from db.ledger.claims import Claim
from db.ledger.jobs import Subject, WakeUp
from db.ledger.policy import RunPolicy
from db.ledger.stage_states import stage_states
from db.scenes import scene_id, write_scenes
from db.tables import Job, Run, Scene, Video
from shared.contracts import ProcessVideo, Receipt
from shared.errors import (
    BadMedia,
    Conflict,
    LeaseLost,
    ModelFailure,
    StorageUnavailable,
    WorkerLost,
)
from tests.support.threads import at_once

pytestmark = pytest.mark.usefixtures("database")

POLICY = RunPolicy(skips={"vision": "unavailable: no model"}, max_failures=3, tmp_ttl_s=3600)
LEASE_S = 60.0
#: Primary key of u1's v1.
KEY = video_key("u1", "v1")


def accept(
    video_id: str = "v1", user_id: str = "u1", *, key: str | None = None, priority: int = 0
) -> Receipt:
    request = ProcessVideo(
        video_id=video_id,
        user_id=user_id,
        storage_key=key or f"uploads/{user_id}/{video_id}/a.mp4",
        priority=priority,
    )
    return transact(lambda session: videos.accept(session, request, POLICY))[0]


def claim(queue: str = "media", owner: str = "n:1:0:2", lease_s: float = LEASE_S) -> Claim | None:
    return transact(lambda session: claims.claim(session, queue, owner, lease_s))


def must_claim(queue: str = "media", **options: Any) -> Claim:
    found = claim(queue, **options)
    assert found is not None, f"nothing claimable in {queue}"
    return found


def nothing(session: Session) -> None:
    """No rows."""


def finish(claimed: Claim, write: Callable[[Session], None] = nothing, **result: Any) -> list[WakeUp]:
    return transact(lambda session: attempts.finish(session, claimed, write, result, POLICY))


def fail(claimed: Claim, error: Exception) -> list[WakeUp]:
    return transact(lambda session: attempts.fail(session, claimed, error, POLICY))


def split(claimed: Claim, scenes: int = 3, windows: int = 2) -> list[WakeUp]:
    """Finish a split with so many scenes of one second, one keyframe each, and windows."""
    rows = [
        {
            "idx": i,
            "start_s": float(i),
            "end_s": i + 1.0,
            "kind": "cut",
            "keyframes": [{"ordinal": 0, "key": f"k{i}"}],
        }
        for i in range(scenes)
    ]
    return finish(
        claimed,
        lambda session: write_scenes(session, claimed.video_id, claimed.user_id, claimed.run, rows),
        audio_key="a",
        windows=[[i * 10.0, i * 10.0 + 10] for i in range(windows)],
    )


def run_queue(queue: str) -> int:
    """Finish everything claimable in a queue."""
    count = 0
    while (claimed := claim(queue)) is not None:
        finish(claimed)
        count += 1
    return count


def index(video_id: str = "v1") -> None:
    """Take a freshly accepted video to ``indexed``."""
    split(must_claim())
    for queue in ("asr", "face", "ocr", "text", "media", "housekeeping"):
        assert run_queue(queue)
    assert state(video_id) == "indexed"


def state(video_id: str = "v1") -> str:
    with reading() as session:
        return session.scalars(select(Video.state).where(Video.external_id == video_id)).one()


def job(job_id: int) -> Job:
    with reading() as session:
        return session.scalars(select(Job).where(Job.job_id == job_id)).one()


def stages(video_id: str = "v1") -> dict[str, str]:
    with reading() as session:
        video = session.scalars(select(Video).where(Video.external_id == video_id)).one()
        return {name: found.state for name, found in stage_states(session, video.video_id, video.run).items()}


def expire(claimed: Claim) -> None:
    """Let a lease run out."""
    transact(
        lambda session: session.execute(
            update(Job)
            .where(Job.job_id == claimed.job_id)
            .values(lease_until=text("clock_timestamp() - interval '1 second'"))
        )
    )


def take_back_expired(error: Exception | None = None) -> int:
    with reading() as session:
        held = [found for found in attempts.held_jobs(session) if found.expired]
    for found in held:
        transact(lambda s, found=found: attempts.reclaim(s, found, error or WorkerLost("gone"), POLICY))  # type: ignore[misc]
    return len(held)


# --- acceptance


def test_accepting_twice_makes_one_video_and_one_run() -> None:
    assert accept().accepted
    again = accept()
    assert not again.accepted and again.run == 1
    with reading() as session:
        assert len(session.scalars(select(Job)).all()) == 1


def test_concurrent_acceptance_makes_one_run() -> None:
    receipts = at_once([accept] * 8)
    assert sorted(receipt.accepted for receipt in receipts) == [False] * 7 + [True]


def test_users_may_choose_the_same_id() -> None:
    assert accept().accepted and accept(user_id="u2").accepted
    assert not accept().accepted and not accept(user_id="u2").accepted
    keys = {must_claim().video_id, must_claim().video_id}
    assert keys == {video_key("u1", "v1"), video_key("u2", "v1")}


def test_the_same_id_for_another_file_is_refused() -> None:
    accept()
    with pytest.raises(Conflict):
        accept(key="uploads/u1/v1/b.mp4")


# --- claims


def test_claims_go_by_fair_share_then_age_and_by_priority_within_a_user() -> None:
    for video, user, priority in (("a1", "a", 0), ("a2", "a", 5), ("b1", "b", 0), ("c1", "c", 9)):
        accept(video, user, priority=priority)
    assert [must_claim().video_id for _ in range(4)] == [
        video_key(user, name) for user, name in (("a", "a2"), ("b", "b1"), ("c", "c1"), ("a", "a1"))
    ]
    assert claim() is None


def test_two_claimers_never_get_the_same_job() -> None:
    for i in range(40):
        accept(f"v{i}")
    claimed: list[int] = []

    def take() -> None:
        while (found := claim()) is not None:
            claimed.append(found.job_id)

    at_once([take] * 6)
    assert len(claimed) == len(set(claimed)) == 40


def test_a_job_is_not_claimed_before_its_time() -> None:
    accept()
    claimed = must_claim()
    transact(lambda session: attempts.defer(session, claimed, 3600, POLICY))
    assert claim() is None


# --- leases and fences


def test_a_beat_renews_only_the_own_lease() -> None:
    accept()
    claimed = must_claim(lease_s=1.0)
    before = job(claimed.job_id).lease_until
    assert transact(lambda session: attempts.beat(session, claimed, 0.5, LEASE_S))
    after = job(claimed.job_id)
    assert before is not None and after.lease_until is not None and after.lease_until > before
    assert after.progress == 0.5
    stale = Claim(**{**vars(claimed), "attempt": claimed.attempt - 1})
    assert not transact(lambda session: attempts.beat(session, stale, 0.9, LEASE_S))


def test_a_zombie_finishes_nothing() -> None:
    accept()
    zombie = must_claim()
    expire(zombie)
    assert take_back_expired() == 1
    second = must_claim(owner="n:1:0:3")
    assert second.job_id == zombie.job_id and second.attempt == zombie.attempt + 1
    for stale in (lambda: split(zombie), lambda: fail(zombie, BadMedia("x"))):
        with pytest.raises(LeaseLost):
            stale()
    with reading() as session:
        assert session.scalars(select(Scene)).all() == []
    split(second)
    # A commit whose answer was lost is done again: nothing more is written, no wake-up message rings.
    assert split(second, scenes=5) == []
    with reading() as session:
        assert len(session.scalars(select(Scene)).all()) == 3


def test_a_renewed_lease_is_not_taken_back() -> None:
    accept()
    claimed = must_claim()
    expire(claimed)
    with reading() as session:
        (held,) = attempts.held_jobs(session)
    assert held.expired
    assert transact(lambda session: attempts.beat(session, claimed, 0.1, LEASE_S))
    transact(lambda session: attempts.reclaim(session, held, WorkerLost("gone"), POLICY))
    assert job(claimed.job_id).state == "running"
    split(claimed)


def test_two_reconcilers_take_back_once() -> None:
    accept()
    expire(must_claim())
    with reading() as session:
        (held,) = attempts.held_jobs(session)

    def reclaim() -> None:
        transact(lambda session: attempts.reclaim(session, held, WorkerLost("gone"), POLICY))

    at_once([reclaim] * 2)
    assert job(held.job_id).failures == 1


def test_a_stopping_node_releases_uncounted() -> None:
    accept()
    claimed = must_claim(owner="media@h:10:0:11")
    assert transact(lambda session: attempts.release(session, "media@h:1:")) == 0
    assert transact(lambda session: attempts.release(session, "media@h:10:")) == 1
    again = job(claimed.job_id)
    assert (again.state, again.failures, again.outages) == ("queued", 0, 0)


# --- failures


def test_a_permanent_error_fails_at_once() -> None:
    accept()
    fail(must_claim(), BadMedia("the file is empty: upload it again"))
    with reading() as session:
        status = videos.status(session, "v1", "u1")
    assert (status.state, status.error_class) == ("failed", "BadMedia")
    assert {found.stage: found.state for found in status.stages}["sidecar"] == "skipped"


def test_counted_failures_end_at_the_maximum() -> None:
    accept()
    for n in range(1, 4):
        claimed = must_claim()
        assert claimed.attempt == n
        fail(claimed, ModelFailure("boom"))
    assert claim() is None
    assert state() == "failed"


def test_outages_are_not_counted_as_failures_but_have_their_own_end() -> None:
    accept()
    for _ in range(POLICY.max_outages - 1):
        fail(must_claim(), StorageUnavailable("away"))
    found = job(must_claim().job_id)
    assert (found.failures, found.outages) == (0, POLICY.max_outages - 1)
    fail(Claim(**{**vars_of(found)}), StorageUnavailable("away"))
    assert state() == "failed"


def vars_of(found: Job) -> dict[str, Any]:
    names = ("job_id", "attempt", "user_id", "queue", "run", "stage", "part", "failures", "payload")
    subject = Subject("video", found.subject_id)
    return {**{name: getattr(found, name) for name in names}, "owner": found.lease_owner, "subject": subject}


def test_an_error_message_is_stored_clean_and_capped() -> None:
    accept()
    fail(must_claim(), BadMedia("a\x00b\ud800" + "x" * 10_000))
    with reading() as session:
        error = videos.status(session, "v1", "u1").error
    assert error is not None and "\x00" not in error and len(error) == attempts.MAX_ERROR_CHARS


# --- the pipeline


def test_a_video_goes_through_to_indexed() -> None:
    accept()
    wake_ups = split(must_claim())
    assert sorted({wake_up.queue for wake_up in wake_ups}) == ["asr", "face", "ocr"]
    assert stages()["vision"] == "skipped"
    assert run_queue("face") == 1
    assert run_queue("ocr") == 1
    assert run_queue("asr") == 2
    assert run_queue("text") == 1
    assert run_queue("media") == 1
    assert run_queue("housekeeping") == 1  # the sweep
    assert state() == "indexed"
    with reading() as session:
        run = session.scalars(select(Run)).one()
        assert run.ended_at is not None


def test_stages_with_nothing_to_do_are_done() -> None:
    accept()
    split(must_claim(), scenes=1, windows=0)
    assert stages()["asr"] == "done"
    run_queue("text")
    run_queue("face")
    run_queue("ocr")
    run_queue("media")
    assert state() == "indexed"


def test_a_failed_last_part_strands_nothing() -> None:
    accept()
    split(must_claim())
    finish(must_claim("asr"))
    fail(must_claim("asr"), BadMedia("x"))
    run_queue("face")
    run_queue("ocr")
    run_queue("media")
    assert stages()["text"] == "skipped"
    assert state() == "partial"
    with reading() as session:
        status = videos.status(session, "v1", "u1")
    assert status.published_run == 1
    assert "upstream asr failed" in {found.error for found in status.stages}


def test_a_lost_transition_is_found_and_made() -> None:
    accept()
    claimed = must_claim()
    # As if the worker had committed its job and died before advancing.
    transact(lambda session: session.execute(update(Job).values(state="failed", lease_owner=None)))
    with reading() as session:
        assert video_runs.find_stuck(session) == [KEY]

    def go_on(session: Session) -> None:
        video = subjects.lock_video(session, claimed.video_id)
        assert video is not None
        subjects.advance(session, video, POLICY)

    transact(go_on)
    assert state() == "failed"
    with reading() as session:
        assert video_runs.find_stuck(session) == []


# --- retry, rerun, cancel, delete


def change(act: Callable[[Session, Video], Any], video_id: str = "v1") -> Any:
    return transact(lambda session: act(session, videos.lock(session, video_id, "u1")))


def test_retry_resets_failures_never_attempts() -> None:
    accept()
    split(must_claim())
    for _ in range(3):
        fail(must_claim("face"), ModelFailure("boom"))
    run_queue("asr")
    run_queue("text")
    run_queue("ocr")
    finish(must_claim("media"))  # the sidecar; the sweep waits for the retry's sake
    assert state() == "partial"
    change(lambda session, video: video_runs.retry(session, video, POLICY))
    claimed = must_claim("face")
    assert (claimed.attempt, claimed.failures) == (4, 0)
    finish(claimed)
    run_queue("media")
    assert state() == "indexed"


def test_retry_of_what_did_not_fail_is_refused() -> None:
    accept()
    index()
    with pytest.raises(Conflict):
        change(lambda session, video: video_runs.retry(session, video, POLICY))


def test_rerun_of_a_stage_makes_it_and_what_follows() -> None:
    accept()
    index()
    change(lambda session, video: video_runs.rerun(session, video, ["text"], POLICY))
    found = stages()
    assert {name: found[name] for name in ("split", "asr", "face", "ocr", "text")} == {
        "split": "reused", "asr": "reused", "face": "reused", "ocr": "reused", "text": "queued",
    }  # fmt: skip
    with reading() as session:
        status = videos.status(session, "v1", "u1")
    assert (status.run, status.published_run) == (2, 1)
    run_queue("text")
    run_queue("media")
    with reading() as session:
        run = session.get(Run, (KEY, 2))
        assert run is not None and run.stage_runs["text"] == 2 and run.stage_runs["asr"] == 1
        assert videos.status(session, "v1", "u1").published_run == 2


def test_rerun_of_asr_makes_the_audio_first() -> None:
    accept()
    index()
    change(lambda session, video: video_runs.rerun(session, video, ["asr"], POLICY))
    assert stages()["audio"] == "queued"
    assert claim("asr") is None
    finish(must_claim("media"), audio_key="b", windows=[[0, 10]])
    assert run_queue("asr") == 2


def test_a_rerun_fences_out_the_run_before() -> None:
    accept()
    old = must_claim()
    change(lambda session, video: video_runs.rerun(session, video, [], POLICY))
    with pytest.raises(LeaseLost):
        split(old)
    assert not transact(lambda session: attempts.beat(session, old, 0.1, LEASE_S))
    new = must_claim()
    assert (new.run, new.stage) == (2, "split")


def test_a_failed_rerun_keeps_what_is_published() -> None:
    accept()
    index()
    change(lambda session, video: video_runs.rerun(session, video, [], POLICY))
    fail(must_claim(), BadMedia("x"))
    with reading() as session:
        status = videos.status(session, "v1", "u1")
    assert (status.state, status.published_run) == ("failed", 1)


def test_cancel_stops_and_a_zombie_lets_go() -> None:
    accept()
    running = must_claim()
    accepted, _ = change(lambda session, video: video_runs.cancel(session, video, POLICY))
    assert accepted and state() == "cancelled"
    with reading() as session:
        assert attempts.leases_held(session, KEY, but=0) == 1
    with pytest.raises(LeaseLost):
        split(running)
    transact(lambda session: attempts.end_lease(session, running))
    with reading() as session:
        assert attempts.leases_held(session, KEY, but=0) == 0
    assert change(lambda session, video: video_runs.cancel(session, video, POLICY))[0] is False


def test_a_cancelled_video_is_retried_from_the_start() -> None:
    accept()
    must_claim()
    change(lambda session, video: video_runs.cancel(session, video, POLICY))
    change(lambda session, video: video_runs.retry(session, video, POLICY))
    claimed = must_claim()
    assert (claimed.run, claimed.stage) == (2, "split")


def test_delete_leaves_a_tombstone_only() -> None:
    accept()
    index()
    change(lambda session, video: video_runs.begin_delete(session, video, POLICY))
    erase = must_claim("housekeeping")
    assert erase.stage == "erase_video"

    def erase_all(session: Session) -> None:
        video = subjects.lock_video(session, KEY)
        assert video is not None
        video_runs.erase_rows(session, video, erase.job_id)
        video_runs.erase_again(session, video, POLICY)

    finish(erase, erase_all)
    with reading() as session:
        assert session.scalars(select(Scene)).all() == []
        assert session.scalars(select(Run)).all() == []
        assert [found.stage for found in session.scalars(select(Job))] == ["erase_video", "erase_video"]
        video = session.scalars(select(Video)).one()
        assert (video.state, video.storage_key) == ("deleted", "")
    with pytest.raises(Conflict):
        accept()


def test_erasure_outlasts_any_outage() -> None:
    accept()
    change(lambda session, video: video_runs.begin_delete(session, video, POLICY))
    for _ in range(POLICY.max_outages + 5):
        fail(must_claim("housekeeping"), StorageUnavailable("away"))
    assert must_claim("housekeeping").stage == "erase_video"


# --- a stage that is new


def forget(stage: str) -> None:
    """Make the newest run one of a time when there was no such stage."""

    def strip(session: Session) -> None:
        run = session.scalars(select(Run).order_by(Run.run.desc()).limit(1)).one()
        run.stages = [name for name in run.stages if name != stage]
        run.stage_runs = {name: made for name, made in run.stage_runs.items() if name != stage}
        session.execute(delete(Job).where(Job.run == run.run, Job.stage == stage))

    transact(strip)


@pytest.mark.parametrize("named", [["text"], ["sidecar"], ["ocr"], []], ids=str)
def test_a_rerun_of_a_video_from_before_a_stage_makes_it_too(named: list[str]) -> None:
    accept()
    index()
    forget("ocr")
    change(lambda session, video: video_runs.rerun(session, video, named, POLICY))
    if not named:
        split(must_claim())
    assert stages()["ocr"] == "queued"
    for queue in ("asr", "face", "ocr", "text", "media"):
        run_queue(queue)
    assert state() == "indexed"
    with reading() as session:
        run = session.get(Run, (KEY, 2))
        assert (
            run is not None and run.stage_runs["ocr"] == 2 and run.stage_runs["face"] == (1 if named else 2)
        )
        assert videos.status(session, "v1", "u1").published_run == 2


def test_a_run_that_began_before_a_stage_ends_without_it() -> None:
    accept()
    split(must_claim())
    forget("ocr")
    for queue in ("asr", "face", "text", "media"):
        assert run_queue(queue)
    assert state() == "indexed"
    assert "ocr" not in stages()
    change(lambda session, video: video_runs.rerun(session, video, ["face"], POLICY))
    assert stages()["ocr"] == "queued"


def test_a_failed_run_from_before_a_stage_can_be_retried() -> None:
    accept()
    split(must_claim())
    fail(must_claim("face"), BadMedia("x"))
    run_queue("asr")
    forget("ocr")
    run_queue("text")
    finish(must_claim("media"))
    assert state() == "partial"
    change(lambda session, video: video_runs.retry(session, video, POLICY))
    run_queue("face")
    run_queue("media")
    assert state() == "indexed"


# --- ids


def test_scene_ids_depend_on_video_split_and_place_only() -> None:
    assert scene_id("v", 1, 0) == scene_id("v", 1, 0)
    assert len({scene_id("v", 1, 0), scene_id("v", 1, 1), scene_id("v", 2, 0), scene_id("w", 1, 0)}) == 4


def test_many_finishers_advance_a_stage_once() -> None:
    """The last parts of two stages end at the same moment, again and again: each next stage starts once."""
    for i in range(5):
        accept(f"v{i}")
        split(must_claim(), scenes=24, windows=6)
    claims: list[Claim] = []
    for queue in ("asr", "face", "ocr"):
        while (found := claim(queue)) is not None:
            claims.append(found)

    def end(mine: list[Claim]) -> None:
        for found in mine:
            finish(found)

    at_once([partial(end, claims[n::6]) for n in range(6)])
    with reading() as session:
        texts = session.scalars(select(Job).where(Job.stage == "text")).all()
    assert {found.video_id for found in texts} == {video_key("u1", f"v{i}") for i in range(5)}
    assert get_engine().pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_run_ends_without_the_stage_of_a_package_that_is_gone() -> None:
    """Its job waits in a queue that no node consumes; a node of another queue that claims one fails it at once."""
    accept()
    first = must_claim()

    def add(session: Session) -> None:
        run = session.scalars(select(Run)).one()
        run.stages = [*run.stages, "gone"]
        run.stage_runs = {**run.stage_runs, "gone": 1}
        session.execute(
            text(
                "INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, part, max_failures)"
                " SELECT subject_id, video_id, user_id, q.queue, run, 'gone', q.part, max_failures"
                " FROM jobs, (VALUES ('gone', 0), ('media', 1)) q (queue, part) WHERE stage = 'split'"
            )
        )

    transact(add)
    split(first)
    for queue in ("asr", "face", "ocr", "text"):
        run_queue(queue)
    claims = [must_claim(), must_claim()]
    (gone,) = (claimed for claimed in claims if claimed.stage == "gone")
    (sidecar,) = (claimed for claimed in claims if claimed.stage == "sidecar")
    fail(gone, Conflict("stage 'gone' is unknown to this node"))
    finish(sidecar)
    assert state() == "indexed"
    with reading() as session:
        ended = session.execute(select(Job.part, Job.state, Job.error).where(Job.stage == "gone"))
        assert sorted(map(tuple, ended)) == [
            (0, "cancelled", "no installed package has this stage"),
            (1, "failed", "stage 'gone' is unknown to this node"),
        ]
    transact(lambda session: video_runs.rerun(session, session.scalars(select(Video)).one(), (), POLICY))
    transact(lambda session: video_runs.cancel(session, session.scalars(select(Video)).one(), POLICY))
    transact(
        lambda session: session.execute(update(Run).where(Run.run == 2).values(stages=["split", "gone"]))
    )
    transact(lambda session: video_runs.retry(session, session.scalars(select(Video)).one(), POLICY))
    assert "gone" not in stages()


def test_a_run_that_waits_only_for_a_stage_that_is_gone_is_advanced() -> None:
    accept()
    split(must_claim())
    for queue in ("asr", "face", "ocr", "text"):
        run_queue(queue)
    transact(lambda session: session.execute(update(Job).where(Job.stage == "sidecar").values(stage="gone")))
    with reading() as session:
        assert video_runs.find_stuck(session) == [KEY]
    transact(lambda session: video_runs.advance(session, session.scalars(select(Video)).one(), POLICY))
    with reading() as session:
        assert video_runs.find_stuck(session) == []
    assert stages()["sidecar"] == "queued"


def test_a_run_opened_without_a_stage_that_is_published_ends_without_it() -> None:
    """Its package was away for a moment: what the published run has of it doesn't hold back the new one."""
    accept()
    index()
    transact(
        lambda session: video_runs.rerun(session, session.scalars(select(Video)).one(), ("text",), POLICY)
    )
    with_out = {"stages": Run.stages.op("-")("ocr"), "stage_runs": Run.stage_runs.op("-")("ocr")}
    transact(lambda session: session.execute(update(Run).where(Run.run == 2).values(with_out)))
    transact(lambda session: session.execute(delete(Job).where(Job.run == 2, Job.stage == "ocr")))
    for queue in ("text", "media"):
        run_queue(queue)
    assert state() == "indexed"
