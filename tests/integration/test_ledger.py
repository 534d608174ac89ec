"""The ledger against a real Postgres: claims, leases, fences, advance, retry, rerun, cancel, delete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update

from db import videos
from db.engine import get_engine, reading, transact
from db.ids import video_key
from db.ledger import attempts, subjects, video_runs
from db.ledger.attempts import Held
from db.ledger.claims import Claim
from db.ledger.stage_states import stage_states
from db.tables import Job, Run, Scene, Video
from shared.contracts import VideoStatus
from shared.errors import BadMedia, Conflict, LeaseLost, ModelFailure, StorageUnavailable, WorkerLost
from tests.support.ledger import (
    KEY,
    LEASE_S,
    POLICY,
    accept,
    claim,
    execute,
    expire,
    fail,
    finish,
    job,
    must_claim,
    read,
    run_queue,
    split,
    state,
)
from tests.support.threads import at_once

pytestmark = pytest.mark.usefixtures("database")


def index() -> None:
    """Take a new video to ``indexed``."""
    accept()
    split(must_claim())
    assert all(run_queue(queue) for queue in ("asr", "face", "ocr", "text", "media", "housekeeping"))
    assert state() == "indexed"


def status() -> VideoStatus:
    with reading() as session:
        return videos.status(session, "v1", "u1")


def stages() -> dict[str, str]:
    (run,) = read(select(Video.run))
    with reading() as session:
        return {name: found.state for name, found in stage_states(session, KEY, run).items()}


def held_job() -> Held:
    """The running job, whose lease has run out."""
    (held,) = transact(attempts.held_jobs)
    assert held.expired
    return held


def reclaim(held: Held) -> Any:
    return transact(lambda session: attempts.reclaim(session, held, WorkerLost("gone"), POLICY))


def change(act: Callable[..., Any], *arguments: Any) -> Any:
    """Change the run of u1's v1."""
    return transact(lambda session: act(session, videos.lock(session, "v1", "u1"), *arguments, POLICY))


# --- acceptance and claims


def test_repeated_and_concurrent_acceptance_makes_one_run_of_one_file() -> None:
    receipts = at_once([accept] * 8)
    assert sorted(receipt.accepted for receipt in receipts) == [False] * 7 + [True]
    assert {receipt.run for receipt in receipts} == {1} and len(read(select(Job))) == 1
    with pytest.raises(Conflict, match="send this file under a new id"):
        accept(key="uploads/u1/v1/b.mp4")


def test_claims_go_by_fair_share_then_age_and_by_priority_within_a_user() -> None:
    for video, user, priority in (("a1", "a", 0), ("a2", "a", 5), ("b1", "b", 0), ("c1", "c", 9)):
        accept(video, user, priority=priority)
    assert [must_claim().video_id for _ in range(4)] == [
        video_key(user, name) for user, name in (("a", "a2"), ("b", "b1"), ("c", "c1"), ("a", "a1"))
    ]
    assert claim() is None


# --- leases and fences


def test_a_beat_renews_only_the_own_lease() -> None:
    accept()
    claimed = must_claim(lease_s=1.0)
    before = job(claimed.job_id)
    assert transact(lambda session: attempts.beat(session, claimed, 0.5, LEASE_S))
    after = job(claimed.job_id)
    assert after.lease_until > before.lease_until and after.progress == 0.5
    stale = Claim(**{**vars(claimed), "attempt": claimed.attempt - 1})
    assert not transact(lambda session: attempts.beat(session, stale, 0.9, LEASE_S))


def test_a_zombie_finishes_nothing() -> None:
    accept()
    zombie = must_claim()
    expire(zombie)
    reclaim(held_job())
    second = must_claim(owner="n:1:0:3")
    assert second.job_id == zombie.job_id and second.attempt == zombie.attempt + 1
    for stale in (lambda: split(zombie), lambda: fail(zombie, BadMedia("x"))):
        with pytest.raises(LeaseLost):
            stale()
    assert read(select(Scene)) == []
    split(second)
    # A commit whose answer was lost is repeated: nothing more is written, no wake-up message is sent.
    assert split(second, scenes=5) == []
    assert len(read(select(Scene))) == 3


def test_a_renewed_lease_is_not_taken_back() -> None:
    accept()
    claimed = must_claim()
    expire(claimed)
    held = held_job()
    assert transact(lambda session: attempts.beat(session, claimed, 0.1, LEASE_S))
    assert reclaim(held) is None
    assert job(claimed.job_id).state == "running"
    split(claimed)


def test_two_reconcilers_take_back_once() -> None:
    accept()
    expire(must_claim())
    held = held_job()
    at_once([partial(reclaim, held)] * 2)
    assert job(held.job_id).deaths == 1


def test_a_stopping_node_releases_uncounted() -> None:
    accept()
    claimed = must_claim(owner="media@h:10:0:11")
    assert transact(lambda session: attempts.release(session, "media@h:1:")) == 0
    assert transact(lambda session: attempts.release(session, "media@h:10:")) == 1
    again = job(claimed.job_id)
    assert (again.state, again.failures, again.outages) == ("queued", 0, 0)


# --- failures


def test_a_permanent_error_fails_at_once_and_its_message_is_stored_clean_and_capped() -> None:
    accept()
    fail(must_claim(), BadMedia("a\x00b\ud800" + "x" * 10_000))
    found = status()
    assert (found.state, found.error_class, stages()["sidecar"]) == ("failed", "BadMedia", "skipped")
    assert found.error is not None and "\x00" not in found.error
    assert len(found.error) == attempts.MAX_ERROR_CHARS


@pytest.mark.parametrize(
    ("error", "most", "counted"),
    [(ModelFailure("boom"), POLICY.max_failures, 1), (StorageUnavailable("away"), POLICY.max_outages, 0)],
    ids=["failures", "outages"],
)
def test_failures_and_outages_are_counted_apart_and_end_at_their_maximum(
    error: Exception, most: int, counted: int
) -> None:
    accept()
    for n in range(1, most):
        claimed = must_claim()
        assert claimed.attempt == n
        fail(claimed, error)
    last = must_claim()
    found = job(last.job_id)
    assert (found.failures, found.outages) == (counted * (most - 1), (1 - counted) * (most - 1))
    fail(last, error)
    assert claim() is None and state() == "failed"


# --- the pipeline


@pytest.mark.parametrize("windows", [2, 0], ids=["sound", "nothing to hear"])
def test_a_video_goes_through_to_indexed(windows: int) -> None:
    accept()
    wake_ups = split(must_claim(), windows=windows)
    assert sorted({wake_up.queue for wake_up in wake_ups}) == (
        ["asr", "face", "ocr"] if windows else ["face", "ocr", "text"]
    )
    assert (stages()["vision"], stages()["asr"]) == ("skipped", "queued" if windows else "done")
    counts = {"face": 1, "ocr": 1, "asr": windows, "text": 1, "media": 2, "housekeeping": 1}
    assert {queue: run_queue(queue) for queue in counts} == counts
    assert state() == "indexed"
    assert read(select(Run))[0].ended_at is not None
    with pytest.raises(Conflict, match="nothing failed"):
        change(video_runs.retry)


def test_a_failed_last_part_strands_nothing() -> None:
    accept()
    split(must_claim())
    finish(must_claim("asr"))
    fail(must_claim("asr"), BadMedia("x"))
    run_queue("face", "ocr", "media")
    assert stages()["text"] == "skipped"
    assert state() == "partial"
    assert status().published_run == 1
    assert "upstream asr failed" in {found.error for found in status().stages}


def test_a_lost_transition_is_found_and_made() -> None:
    accept()
    must_claim()
    # As if the worker had committed its job and died before advancing.
    execute(update(Job).values(state="failed", lease_owner=None))
    assert transact(video_runs.find_stuck) == [KEY]
    change(subjects.advance)
    assert state() == "failed"
    assert transact(video_runs.find_stuck) == []


# --- retry, rerun, cancel, delete


def test_retry_resets_failures_never_attempts() -> None:
    accept()
    split(must_claim())
    for _ in range(3):
        fail(must_claim("face"), ModelFailure("boom"))
    run_queue("asr", "text", "ocr")
    finish(must_claim("media"))  # the sidecar; the sweep waits for the retry's sake
    assert state() == "partial"
    change(video_runs.retry)
    claimed = must_claim("face")
    assert (claimed.attempt, claimed.failures) == (4, 0)
    finish(claimed)
    run_queue("media")
    assert state() == "indexed"


def test_rerun_of_a_stage_makes_it_and_what_follows() -> None:
    index()
    change(video_runs.rerun, ["text"])
    found = stages()
    assert {found[name] for name in ("split", "asr", "face", "ocr")} == {"reused"}
    assert found["text"] == "queued"
    assert (status().run, status().published_run) == (2, 1)
    run_queue("text", "media")
    (run,) = read(select(Run).where(Run.run == 2))
    assert (run.stage_runs["text"], run.stage_runs["asr"]) == (2, 1)
    assert status().published_run == 2


def test_rerun_of_asr_makes_the_audio_first() -> None:
    index()
    change(video_runs.rerun, ["asr"])
    assert stages()["audio"] == "queued"
    assert claim("asr") is None
    finish(must_claim("media"), audio_key="b", windows=[[0, 10]])
    assert run_queue("asr") == 2


def test_a_rerun_fences_out_the_run_before() -> None:
    accept()
    old = must_claim()
    change(video_runs.rerun, [])
    with pytest.raises(LeaseLost):
        split(old)
    assert not transact(lambda session: attempts.beat(session, old, 0.1, LEASE_S))
    new = must_claim()
    assert (new.run, new.stage) == (2, "split")


def test_cancel_stops_a_zombie_lets_go_and_a_retry_starts_again() -> None:
    accept()
    running = must_claim()
    accepted, _ = change(video_runs.cancel)
    assert accepted and state() == "cancelled"
    assert transact(lambda session: attempts.leases_held(session, KEY, but=0)) == 1
    with pytest.raises(LeaseLost):
        split(running)
    transact(lambda session: attempts.end_lease(session, running))
    assert transact(lambda session: attempts.leases_held(session, KEY, but=0)) == 0
    assert change(video_runs.cancel)[0] is False
    change(video_runs.retry)
    claimed = must_claim()
    assert (claimed.run, claimed.stage) == (2, "split")


def test_erasure_outlasts_any_outage() -> None:
    accept()
    change(video_runs.begin_delete)
    for _ in range(POLICY.max_outages + 5):
        fail(must_claim("housekeeping"), StorageUnavailable("away"))
    assert must_claim("housekeeping").stage == "erase_video"


# --- a stage that is new


def forget(stage: str) -> None:
    """Make the newest run one of a time when there was no such stage."""
    newest = select(func.max(Run.run)).scalar_subquery()
    without = {"stages": Run.stages.op("-")(stage), "stage_runs": Run.stage_runs.op("-")(stage)}
    execute(update(Run).where(Run.run == newest).values(without))
    execute(delete(Job).where(Job.run == newest, Job.stage == stage))


@pytest.mark.parametrize("named", [["text"], ["sidecar"], ["ocr"], []], ids=str)
def test_a_rerun_of_a_video_from_before_a_stage_makes_it_too(named: list[str]) -> None:
    index()
    forget("ocr")
    change(video_runs.rerun, named)
    if not named:
        split(must_claim())
    assert stages()["ocr"] == "queued"
    run_queue("asr", "face", "ocr", "text", "media")
    assert state() == "indexed"
    (run,) = read(select(Run).where(Run.run == 2))
    assert (run.stage_runs["ocr"], run.stage_runs["face"]) == (2, 1 if named else 2)
    assert status().published_run == 2


def test_a_run_that_began_before_a_stage_ends_without_it() -> None:
    accept()
    split(must_claim())
    forget("ocr")
    assert all(run_queue(queue) for queue in ("asr", "face", "text", "media"))
    assert state() == "indexed"
    assert "ocr" not in stages()
    change(video_runs.rerun, ["face"])
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
    change(video_runs.retry)
    run_queue("face", "media")
    assert state() == "indexed"


# --- threads, and stages of packages that are gone


def test_many_finishers_advance_a_stage_once() -> None:
    """The last parts of two stages end at the same moment, again and again: each next stage starts once."""
    for i in range(5):
        accept(f"v{i}")
        split(must_claim(), scenes=24, windows=6)
    claims = [found for queue in ("asr", "face", "ocr") for found in iter(partial(claim, queue), None)]

    at_once([lambda mine=claims[n::6]: [finish(found) for found in mine] for n in range(6)])
    texts = read(select(Job.video_id).where(Job.stage == "text"))
    assert sorted(texts) == sorted(video_key("u1", f"v{i}") for i in range(5))
    assert get_engine().pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_run_ends_without_the_stage_of_a_package_that_is_gone() -> None:
    """Its job waits in a queue that no node consumes; a node of another queue that claims one fails it at once."""
    accept()
    first = must_claim()
    added = {"stages": Run.stages.op("||")(["gone"]), "stage_runs": Run.stage_runs.op("||")({"gone": 1})}
    execute(update(Run).values(added))
    execute(
        text(
            "INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, part, max_failures)"
            " SELECT subject_id, video_id, user_id, q.queue, run, 'gone', q.part, max_failures"
            " FROM jobs, (VALUES ('gone', 0), ('media', 1)) q (queue, part) WHERE stage = 'split'"
        )
    )
    split(first)
    run_queue("asr", "face", "ocr", "text")
    claims = {claimed.stage: claimed for claimed in (must_claim(), must_claim())}
    fail(claims["gone"], Conflict("stage 'gone' is unknown to this node"))
    finish(claims["sidecar"])
    assert state() == "indexed"
    gone = [
        (found.state, found.error)
        for found in read(select(Job).where(Job.stage == "gone").order_by(Job.part))
    ]
    unknown = ("failed", "stage 'gone' is unknown to this node")
    assert gone == [("cancelled", "no installed package has this stage"), unknown]
    change(video_runs.rerun, ())
    change(video_runs.cancel)
    execute(update(Run).where(Run.run == 2).values(stages=["split", "gone"]))
    change(video_runs.retry)
    assert "gone" not in stages()


def test_a_run_that_waits_only_for_a_stage_that_is_gone_is_advanced() -> None:
    accept()
    split(must_claim())
    run_queue("asr", "face", "ocr", "text")
    execute(update(Job).where(Job.stage == "sidecar").values(stage="gone"))
    assert transact(video_runs.find_stuck) == [KEY]
    change(video_runs.advance)
    assert transact(video_runs.find_stuck) == []
    assert stages()["sidecar"] == "queued"


def test_a_run_opened_without_a_stage_that_is_published_ends_without_it() -> None:
    """Its package was away for a moment: what the published run has of it doesn't hold back the new one."""
    index()
    change(video_runs.rerun, ("text",))
    forget("ocr")
    run_queue("text", "media")
    assert state() == "indexed"
