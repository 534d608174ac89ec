"""No user gets the fleet to himself: whose job is next, shares, limits and pauses, on a fleet of one process per queue."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from db import videos
from db.engine import reading, transact
from db.expressions import NOW, seconds_from_now
from db.ids import video_key
from db.ledger import attempts, claims, jobs, usage, video_runs
from db.ledger.claims import Claim, ClaimRules
from db.ledger.jobs import WakeUp
from db.ledger.policy import RunPolicy
from db.tables import Job, QueueUsage, Video
from shared import graph
from shared.contracts import ProcessVideo
from shared.errors import BadMedia, QuotaExceeded, StorageUnavailable, WorkerLost
from shared.routing import JOB_QUEUES
from tests.support import ledger
from tests.support.ledger import LEASE_S, claim, execute, fail, job, must_claim, read, set_job, split, state
from tests.support.threads import at_once

pytestmark = pytest.mark.usefixtures("database")

POLICY = RunPolicy(skips={}, max_failures=3, tmp_ttl_s=3600)
#: The videos that were accepted, by key.
NAMES: dict[str, str] = {}
#: How long every job of the simulated fleet takes.
JOB_S = 10.0


def accept(user: str, *names: str, priority: int = 0, plan: RunPolicy = POLICY) -> list[WakeUp]:
    """Accept videos of a user in one transaction."""

    def work(session: Session) -> list[WakeUp]:
        wake_ups = []
        for name in names:
            key = f"uploads/{user}/{name}/a.mp4"
            request = ProcessVideo(video_id=name, user_id=user, storage_key=key, priority=priority)
            wake_ups += videos.accept(session, request, plan)[1]
            NAMES[video_key(user, name)] = name
        return wake_ups

    return transact(work)


def numbered(name: str, count: int) -> list[str]:
    return [f"{name}{number:03}" for number in range(count)]


def take(claimed: Claim, seconds: float) -> None:
    """Let a running job have begun so long ago."""
    set_job(claimed.job_id, started_at=seconds_from_now(-seconds), lease_until=seconds_from_now(LEASE_S))


def finish(claimed: Claim, seconds: float = JOB_S) -> list[WakeUp]:
    """Finish a job that took so long; a split finds two scenes and one window."""
    take(claimed, seconds)
    if claimed.stage == "split":
        return split(claimed, scenes=2, windows=1, policy=POLICY)
    return ledger.finish(claimed, policy=POLICY)


def defer(claimed: Claim, wait_s: float, policy: RunPolicy = POLICY, **options: Any) -> list[WakeUp]:
    return transact(lambda session: attempts.defer(session, claimed, wait_s, policy, **options))


def change(act: Any, user: str, name: str, policy: RunPolicy = POLICY) -> None:
    """Change the run of a video."""
    transact(lambda session: act(session, videos.lock(session, name, user), policy))


def take_all(found: list[Claim], rules: ClaimRules | None = None) -> None:
    """Claim until there is nothing to claim."""
    while (claimed := claim(owner=threading.current_thread().name, rules=rules)) is not None:
        found.append(claimed)


def serve(count: int, rules: ClaimRules | None = None, **seconds: float) -> Counter[str]:
    """Claim and finish so many jobs; ``seconds``: of users whose jobs take another time. Returns the jobs of each user."""
    users: Counter[str] = Counter()
    for _ in range(count):
        claimed = must_claim(rules=rules)
        users[claimed.user_id] += 1
        finish(claimed, seconds.get(claimed.user_id, JOB_S))
    return users


def pause_s(job_id: int) -> float:
    """How long a queued job still waits."""
    return float(read(select(func.extract("epoch", Job.not_before - NOW)).where(Job.job_id == job_id))[0])


def let_pass(seconds: float) -> None:
    """Move everything that has a time in this ledger into the past."""
    for statement in (
        "UPDATE jobs SET not_before = not_before - make_interval(secs => :s),"
        " created_at = created_at - make_interval(secs => :s)",
        "UPDATE queue_usage SET level = level - :s * ln(2.0::float8) / half_life_s,"
        " due_at = due_at - make_interval(secs => :s), waiting_since = waiting_since - make_interval(secs => :s)",
    ):
        execute(text(statement).bindparams(s=seconds))


def fleet() -> Iterator[list[Claim]]:
    """One process per queue, each job as long as any other; yields what was claimed, round by round."""
    while True:
        claimed = [found for queue in JOB_QUEUES if (found := claim(queue, f"{queue}:1:0:2")) is not None]
        yield claimed
        for found in claimed:
            finish(found)


def device_time(user: str, queue: str = "media") -> QueueUsage:
    return read(select(QueueUsage).where(QueueUsage.queue == queue, QueueUsage.account == user))[0]


# --- between users


@pytest.mark.parametrize("before", [1, 4, 12])
def test_one_video_behind_five_hundred_is_published_after_three_more_jobs_per_queue(before: int) -> None:
    accept("a", *numbered("a", 500))
    rounds = fleet()
    for _ in range(before):
        next(rounds)
    accept("b", "b0")
    others: Counter[str] = Counter()
    for claimed in rounds:
        if state("b0") == "indexed":
            break
        others.update(found.queue for found in claimed if found.user_id == "a")
        assert sum(others.values()) < 60, "b's video never ends"
    assert max(others.values()) <= 3, others


def test_results_of_a_user_appear_one_by_one() -> None:
    accept("a", *numbered("a", 500))
    split: list[str] = []
    for claimed in fleet():
        if state("a000") == "indexed":
            break
        split += [NAMES[found.video_id] for found in claimed if found.stage == "split"]
        assert len(split) < 20, "the first is not published"
    assert split == ["a000", "a001", "a002"]


def test_priority_counts_among_the_jobs_of_its_user_only() -> None:
    accept("b", "b0", "b1")
    accept("a", "a0")
    accept("a", *(f"a{n}" for n in range(1, 60)), priority=9)
    order = []
    for _ in range(4):
        finish(claimed := must_claim())
        order.append(NAMES[claimed.video_id])
    assert sorted(order) == ["a1", "a2", "b0", "b1"], "each user's best two, in turns"


def test_a_low_priority_grows_while_it_waits() -> None:
    rules = ClaimRules(priority_ageing_s=300)
    accept("a", "low", priority=0)
    accept("a", "high", priority=9)
    claimed: list[str] = []
    while "low" not in claimed:
        # There is always another one of priority 9.
        accept("a", f"high{len(claimed)}", priority=9)
        claimed.append(NAMES[must_claim(rules=rules).video_id])
        let_pass(150)
        assert len(claimed) <= 30, claimed
    # 9 steps of 300 s, against those that have waited themselves.
    assert len(claimed) - 1 >= 9 * 300 / 150


def test_device_time_decides_not_the_number_of_jobs() -> None:
    accept("long", *numbered("l", 20))
    accept("short", *numbered("s", 20))
    assert serve(22, long=100.0) == {"short": 20, "long": 2}


def test_device_time_of_long_ago_counts_less() -> None:
    accept("a", *numbered("a", 9))
    finish(must_claim(), 1000.0)
    let_pass(4 * 3600)
    accept("b", *numbered("b", 9))
    finish(must_claim(), 100.0)
    claimed = must_claim()
    assert claimed.user_id == "a", "1,000 s of four half-lives ago are 63 s now"
    finish(claimed, 100.0)
    assert must_claim().user_id == "b"


def test_a_weight_is_a_share() -> None:
    accept("a", *numbered("a", 30))
    accept("b", *numbered("b", 30))
    assert serve(18, ClaimRules(weights={"a": 2.0})) == {"a": 12, "b": 6}


def test_the_fleets_own_work_takes_its_share_and_no_users_turn() -> None:
    """A switch of models makes jobs about the videos of many users, who have not asked for them."""
    rules = ClaimRules(weights={"": 0.25})
    common = {
        "subject_kind": "switch",
        "subject_id": "1",
        "queue": "media",
        "stage": "text_reembed",
        "run": 1,
    }
    made = [Job(**common, priority=-2, state="queued", part=part, user_id=f"u{part}") for part in range(30)]
    transact(lambda session: jobs.insert(session, made))
    accept("a", *numbered("a", 30))
    kinds: Counter[str] = Counter()
    for _ in range(20):
        claimed = must_claim(rules=rules)
        kinds[claimed.subject.kind] += 1
        take(claimed, JOB_S)
        if claimed.subject.kind == "video":
            finish(claimed)
        else:
            set_job(claimed.job_id, state="cancelled")
            transact(lambda session: usage.add_seconds(session, "media", "", JOB_S))
    assert kinds == {"video": 16, "switch": 4}


def test_running_jobs_count_with_the_time_they_have_taken() -> None:
    accept("a", *numbered("a", 9))
    accept("b", *numbered("b", 9))
    assert Counter(must_claim().user_id for _ in range(8)) == {"a": 4, "b": 4}
    accept("c", *numbered("c", 9))
    running = (Job.state == "running") & (Job.user_id == "a")
    execute(update(Job).where(running).values(started_at=seconds_from_now(-50)))
    claimed = [must_claim() for _ in range(6)]
    assert "a" not in {found.user_id for found in claimed}


def test_many_claims_at_once_find_different_jobs_of_many_users() -> None:
    for n in range(30):
        accept(f"u{n}", f"v{n}", f"w{n}")
    accept("many", *numbered("m", 30))
    found: list[Claim] = []
    at_once([partial(take_all, found)] * 6)
    assert len(found) == len({claimed.job_id for claimed in found}) == 90


def test_no_job_is_missed_while_others_say_that_nothing_waits() -> None:
    """Jobs are made while claims find nothing and note it: each is found, without anybody who repairs."""
    found: list[int] = []
    done: list[int] = []

    def make(thread: int) -> None:
        for n in range(40):
            accept(f"u{n % 3}", f"v{thread}x{n}")
        done.append(thread)

    def work() -> None:
        while True:
            over = len(done) == 4
            claimed = claim(owner=threading.current_thread().name)
            if claimed is not None:
                found.append(claimed.job_id)
            elif over:
                return

    at_once([*(partial(make, n) for n in range(4)), work, work, work])
    assert len(found) == len(set(found)) == 4 * 40


def test_an_ended_attempt_blocks_no_claim_and_no_end_of_another() -> None:
    """Usage is written as the last thing: a transaction that has ended a job and goes on holds nobody up."""
    accept("a", "a0", "a1", "a2")
    first, second = must_claim(), must_claim()

    def fail_first(session: Session) -> None:
        attempts.fail(session, first, BadMedia("x"), POLICY)
        finish(second)
        assert NAMES[must_claim().video_id] == "a2"

    transact(fail_first)
    assert device_time("a").total_s >= JOB_S


# --- the time of jobs


def test_device_seconds_are_kept_over_all_attempts() -> None:
    accept("a", "a0")
    take(claimed := must_claim(), 10)
    fail(claimed, StorageUnavailable("away"))
    take(again := must_claim(), 20)
    defer(again, 0.0, progressed=True)
    take(must_claim(), 40)
    assert transact(lambda session: attempts.release(session, "n:1:")) == 1
    lost = must_claim()
    # Its worker is gone since long: what came after the lease is not the user's.
    set_job(lost.job_id, started_at=seconds_from_now(-1080), lease_until=seconds_from_now(-1000))
    with reading() as session:
        (held,) = attempts.held_jobs(session)
    transact(lambda session: attempts.reclaim(session, held, WorkerLost("gone"), POLICY))
    finish(must_claim(), 160)
    assert lost.attempt == 4
    counted_s = [job(claimed.job_id).device_seconds, device_time("a").total_s]
    assert counted_s == pytest.approx([10 + 20 + 40 + 80 + 160] * 2, abs=5)


def test_a_cancelled_attempt_is_its_users_time_too() -> None:
    accept("a", "a0")
    take(claimed := must_claim(), 30)
    change(video_runs.cancel, "a", "a0")
    assert device_time("a").total_s == pytest.approx(30, abs=5)
    execute(update(Job).values(finished_at=seconds_from_now(-12)))
    transact(lambda session: attempts.end_lease(session, claimed))
    assert [device_time("a").total_s, job(claimed.job_id).device_seconds] == pytest.approx([42, 42], abs=5)


def test_usage_is_read_with_what_runs_and_waits() -> None:
    accept("a", "a0", "a1", "a2")
    finish(must_claim(), 100)
    take(must_claim(), 50)
    with reading() as session:
        (row,) = [found for found in usage.read(session) if (found.queue, found.account) == ("media", "a")]
    assert (row.queued, row.running) == (1, 1)
    assert row.recent_s == pytest.approx(150, abs=5) and row.total_s == pytest.approx(100, abs=5)


# --- pauses


def test_pauses_grow_until_there_is_progress() -> None:
    accept("a", "a0")
    waits, policy = [], replace(POLICY, defer_max_s=60.0)
    for _ in range(7):
        claimed = must_claim()
        assert defer(claimed, 2.0, policy) == []
        waits.append(round(pause_s(claimed.job_id)))
        assert claim() is None
        let_pass(61)
    assert waits == [2, 4, 8, 16, 32, 60, 60]
    claimed = must_claim()
    assert [wake_up.job_id for wake_up in defer(claimed, 0.0, progressed=True)] == [claimed.job_id]
    defer(must_claim(), 2.0, policy)
    assert round(pause_s(claimed.job_id)) == 2
    let_pass(3)
    defer(must_claim(), 3600.0, policy)
    assert pause_s(claimed.job_id) > 3590, "a stage that wants a longer pause gets it"


def test_deferred_jobs_of_one_user_hold_up_nobody() -> None:
    """59 erasures that wait for something came first, and want to be looked at again at once."""

    def erase_later(user: str, *names: str) -> None:
        accept(user, *names)
        for name in names:
            change(video_runs.begin_delete, user, name)

    def look(wait_s: float) -> str:
        defer(claimed := must_claim("housekeeping"), wait_s)
        return NAMES[claimed.video_id]

    erase_later("a", *numbered("a", 59))
    for _ in range(59):
        look(0.0)
    erase_later("b", "b0")
    assert "b0" in [look(0.0) for _ in range(3)]
    # Nor is its own user's newer work behind all of them: every deferred one has its turn at most once.
    execute(update(Job).values(deferrals=8))
    erase_later("a", "new")
    assert any(look(1.0) == "new" for _ in range(61))


def test_a_user_with_deferred_jobs_only_comes_back_in_time() -> None:
    accept("a", "a0")
    defer(claimed := must_claim(), 100.0)
    assert claim() is None
    assert not device_time("a").waiting and device_time("a").due_at is not None
    let_pass(101)
    assert must_claim().job_id == claimed.job_id


def test_housekeeping_is_no_work_of_the_pipelines_queues() -> None:
    housekeeping = {name for name, stage in graph.STAGES.items() if stage.queue == "housekeeping"}
    assert {"sweep", "erase_video", "match", "erase_person", "rewrite_sidecars", "discard"} <= housekeeping
    assert not housekeeping & set(graph.PIPELINE_NAMES)


# --- limits


def test_a_user_has_no_more_running_jobs_in_a_queue_than_allowed() -> None:
    rules = ClaimRules(max_running=2)
    accept("a", *numbered("a", 20))
    accept("b", "b0")
    found: list[Claim] = []
    at_once([partial(take_all, found, rules)] * 6)
    assert Counter(claimed.user_id for claimed in found) == {"a": 2, "b": 1}
    with reading() as session:
        assert claims.claimable(session, rules) == {}, "no message is sent for what can't be claimed"
        assert len(claims.claimable(session)["media"]) == 18
    finish(next(claimed for claimed in found if claimed.user_id == "a"))
    with reading() as session:
        assert len(claims.claimable(session, rules)["media"]) == 1
    assert must_claim(rules=rules).user_id == "a"
    assert claim(rules=rules) is None


def test_a_user_has_no_more_open_videos_than_allowed() -> None:
    plan = replace(POLICY, max_open_videos=3)
    refused: list[QuotaExceeded] = []

    def send(n: int) -> None:
        try:
            accept("a", f"a{n}", plan=plan)
        except QuotaExceeded as error:
            refused.append(error)

    at_once([partial(send, n) for n in range(8)])
    assert len(refused) == 5 and refused[0].retryable
    assert "'a' has 3 videos" in str(refused[0]) and "USER_MAX_OPEN_VIDEOS" in str(refused[0])
    stored = read(select(Video.external_id).where(Video.user_id == "a"))
    assert len(stored) == len(read(select(Job))) == 3, "nothing is stored of what was refused"
    accept("b", "b0", plan=plan)
    # The same request again is no other video.
    assert accept("a", stored[0], plan=plan) == []
    claimed = next(found for found in iter(must_claim, None) if found.user_id == "a")
    fail(claimed, BadMedia("x"), POLICY)
    accept("a", "another", plan=plan)
    with pytest.raises(QuotaExceeded):
        change(video_runs.retry, "a", NAMES[claimed.video_id], plan)


# --- what keeps it right


def test_a_changed_half_life_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    accept("a", "a0", "a1")
    accept("b", "b0", "b1")
    serve(2, a=100.0)
    monkeypatch.setattr("db.ledger.usage.get_settings", lambda: type("S", (), {"usage_half_life_s": 60.0})())
    transact(usage.tend)
    rules = ClaimRules(usage_half_life_s=60.0)
    with reading() as session:
        recent = {row.account: row.recent_s for row in usage.read(session) if row.queue == "media"}
    assert recent["a"] == pytest.approx(100, rel=0.2) and recent["b"] == pytest.approx(10, rel=0.2)
    assert must_claim(rules=rules).user_id == "b"


def test_users_that_wait_unnoticed_are_found() -> None:
    accept("a", "a0")
    execute(text("DELETE FROM queue_usage"))
    assert claim() is None
    unmarked = transact(usage.find_unmarked)
    assert unmarked == [("media", "a")]
    transact(lambda session: usage.mark(session, unmarked))
    assert transact(usage.find_unmarked) == []
    assert NAMES[must_claim().video_id] == "a0"


def test_users_whose_jobs_are_gone_are_passed_over_once() -> None:
    for n in range(150):
        accept(f"u{n}", f"v{n}")
    execute(text("DELETE FROM jobs WHERE user_id <> 'u149'"))
    assert must_claim().user_id == "u149"
    assert len(read(select(QueueUsage).where(QueueUsage.waiting, QueueUsage.queue == "media"))) < 25
