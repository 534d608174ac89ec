"""What the ledger's frequent statements cost as it grows older and more wait: in buffers of Postgres, not in time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from db.engine import make_engine, set_engine, transact
from db.expressions import NOW, seconds_from_now
from db.ids import video_key
from db.ledger import attempts, jobs, retention, subjects, usage, video_runs
from db.ledger.jobs import MOST_WAKE_UPS, WakeUp
from db.people import revisions
from db.tables import Job, QueueUsage, Run, Scene, Video
from shared import graph, nodes
from shared.errors import BadMedia
from tests.integration.conftest import Configure
from tests.support import large_ledger
from tests.support.large_ledger import Size
from tests.support.ledger import (
    KEY,
    POLICY,
    accept,
    claim,
    execute,
    fail,
    finish,
    must_claim,
    read,
    run_queue,
    set_job,
    split,
    state,
)
from tests.support.ledger_statements import statements
from tests.support.plans import Cost, costs_of
from tests.support.services import TEMPLATE, PostgresServer, RedisServer
from worker import reconcile, wakeup

LONG_AGO_S = -40 * 24 * 3600.0


@contextmanager
def filled(postgres: PostgresServer, name: str, size: Size) -> Iterator[None]:
    """Let this process's sessions use a database with such a ledger."""
    name = f"costs_{os.getpid()}_{name}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    large_ledger.fill(postgres.url(name), size)
    engine = make_engine(postgres.url(name).replace("postgresql://", "postgresql+psycopg://"))
    set_engine(engine)
    try:
        yield
    finally:
        set_engine(None)
        engine.dispose()
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def buffers(act: Callable[..., object]) -> int:
    """The most of several times: some look at one page after the other, and the first time reads catalogues."""
    costs_of(act)
    return max(sum(cost.buffers for cost in costs_of(act)) for _ in range(3))


def test_no_frequent_statement_grows_with_the_age_of_the_ledger(postgres: PostgresServer) -> None:
    found: dict[str, dict[str, int]] = {}
    for name, ended_jobs, waiting, deferred, people in (
        ("young", 2_000, 1_000, 2_000, 500),
        ("old", 40_000, 2_000, 10_000, 10_000),
    ):
        size = Size(ended_jobs=ended_jobs, waiting_users=waiting, deferred_jobs=deferred, people=people)
        with filled(postgres, name, size):
            found[name] = {statement: buffers(act) for statement, act in statements().items()}
    young, old = found["young"], found["old"]
    grown = {name: (young[name], old[name]) for name in old if old[name] > 1.5 * young[name] + 100}
    assert not grown, "buffers when young, and when old"
    assert max(old.values()) < 5_000


@pytest.mark.usefixtures("database")
def test_the_end_of_a_part_does_not_count_the_others() -> None:
    accept()
    split(must_claim(), windows=2_000)
    execute(text("ANALYZE jobs"))
    claimed = must_claim("asr")
    costs = costs_of(lambda session: attempts.finish(session, claimed, lambda _: None, {}, POLICY))
    assert not [cost for cost in costs if _rows(cost) > 10], "rows read"
    assert sum(cost.buffers for cost in costs) < 300


def _rows(cost: Cost) -> float:
    return max(float(node["Actual Rows"]) * node["Actual Loops"] for node in cost.nodes())


@pytest.mark.usefixtures("database")
def test_what_follows_starts_with_the_end_of_the_last_part() -> None:
    accept()
    split(must_claim(), windows=3)
    first, second, third = (must_claim("asr") for _ in range(3))
    finish(second)
    fail(third, BadMedia("no words"))
    assert claim("text") is None
    finish(first)
    # One window failed: the words of the others are not embedded.
    stages = read(select(Job.state).where(Job.stage == "text"))
    assert stages == ["skipped"]


# --- pages


@pytest.mark.usefixtures("database")
def test_successive_looks_find_every_stuck_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PAGE_SIZE", 2)
    monkeypatch.setattr(jobs, "_page_after", {})
    names = {f"v{number}" for number in range(7)}
    for name in names:
        accept(name)
    execute(update(Job).where(Job.video_id != video_key("u1", "v3")).values(state="done"))
    looks = [transact(video_runs.find_stuck) for _ in range(8)]
    assert all(len(look) <= 2 for look in looks)
    assert {one for look in looks for one in look} == {video_key("u1", name) for name in names - {"v3"}}


@pytest.mark.usefixtures("database")
def test_successive_looks_find_every_outdated_sidecar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "_PAGE_SIZE", 2)
    monkeypatch.setattr(revisions, "_page_after", "")
    names = [f"v{number}" for number in range(5)]
    for name in names:
        accept(name)
        split(must_claim())
    execute(update(Video).values(published_run=1))
    execute(update(Scene).values(live=True, people_changed=True))
    looks = [transact(revisions.stale_videos) for _ in range(3)]
    assert {one for look in looks for one in look} == {video_key("u1", name) for name in names}
    assert transact(lambda session: revisions.is_stale(session, KEY))


@pytest.mark.usefixtures("database")
def test_successive_looks_find_every_unmarked_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_PAGE_SIZE", 2)
    monkeypatch.setattr(usage, "_page_after", ("", ""))
    for number in range(5):
        accept("v", f"u{number}")
    execute(text("DELETE FROM queue_usage WHERE account <> 'u1'"))
    looks = [transact(usage.find_unmarked) for _ in range(3)]
    assert sorted(one for look in looks for one in look) == [("media", f"u{n}") for n in (0, 2, 3, 4)]


# --- deferred jobs


def sweep_later(part: int, wait_s: float) -> None:
    def work(session: Session) -> None:
        due = {"part": part, "not_before": seconds_from_now(wait_s)}
        jobs.insert(session, [jobs.make_job(lock(session), graph.SWEEP, POLICY, **due)])

    transact(work)


def lock(session: Session) -> Video:
    video = subjects.lock_video(session, KEY)
    assert video is not None
    return video


@pytest.mark.usefixtures("database")
def test_an_account_whose_jobs_are_deferred_does_not_wait() -> None:
    accept()
    claimed = must_claim()
    transact(lambda session: attempts.defer(session, claimed, 60.0, POLICY))
    (row,) = read(select(QueueUsage).where(QueueUsage.queue == "media"))
    assert row.waiting, "as the account waited when the job was claimed"
    assert claim() is None
    (row,) = read(select(QueueUsage).where(QueueUsage.queue == "media"))
    (due,) = read(select(Job.not_before))
    assert not row.waiting and row.due_at == due

    for part, wait_s in enumerate((60.0, 30.0, 90.0)):
        sweep_later(part, wait_s)
    (row,) = read(select(QueueUsage).where(QueueUsage.queue == "housekeeping"))
    (due,) = read(select(func.min(Job.not_before)).where(Job.stage == "sweep"))
    assert not row.waiting and row.due_at == due
    assert claim("housekeeping") is None
    execute(update(Job).values(not_before=NOW))
    execute(update(QueueUsage).values(due_at=NOW))
    assert must_claim("housekeeping").stage == "sweep"


# --- what is removed


def age(*, seconds: float = LONG_AGO_S) -> None:
    """Move the ends of jobs and runs into the past."""
    execute(update(Job).where(Job.finished_at.is_not(None)).values(finished_at=seconds_from_now(seconds)))
    execute(update(Run).where(Run.superseded_at.is_not(None)).values(superseded_at=seconds_from_now(seconds)))


def remove() -> None:
    transact(retention.remove_ended)
    for video_id, run in transact(retention.replaced_runs):
        transact(lambda session: retention.remove_run(session, video_id, run))  # noqa: B023


def index() -> None:
    """Take the newest run to its end."""
    split(must_claim())
    run_queue("asr", "face", "ocr", "text", "media", "housekeeping")
    assert state() == "indexed"


def rerun(*stages: str) -> None:
    transact(lambda session: video_runs.rerun(session, lock(session), stages, POLICY))


@pytest.mark.usefixtures("database")
def test_replaced_runs_and_ended_housekeeping_are_removed() -> None:
    accept()
    index()
    before = read(select(func.count()).select_from(Job))
    for _ in range(5):
        rerun()
        index()
        age()
        remove()
    # As many as after the first run, without its sweep.
    assert read(select(func.count()).select_from(Job)) == [before[0] - 1]
    assert read(select(Run.run)) == [6]
    rerun("text")
    run_queue("text", "media", "housekeeping")
    assert state() == "indexed"


@pytest.mark.usefixtures("database")
def test_what_a_later_run_reuses_stays() -> None:
    accept()
    index()
    rerun("text")
    run_queue("text", "media")
    assert state() == "indexed"
    age()
    remove()
    assert read(select(Run.run).order_by(Run.run)) == [1, 2]
    # It is looked at again when there is another run.
    assert read(select(Run.superseded_at).where(Run.run == 1)) == [None]
    rerun("text")
    run_queue("text", "media")
    assert state() == "indexed"
    age()
    remove()
    assert read(select(Run.run).order_by(Run.run)) == [1, 3]


@pytest.mark.usefixtures("database")
def test_what_may_still_be_needed_is_not_removed() -> None:
    accept()
    index()
    rerun()
    claimed = must_claim()
    rerun()
    age()
    execute(update(Job).where(Job.stage == "sweep").values(finished_at=NOW))
    remove()
    # The published one, the one whose attempt has its lease still, the newest.
    assert read(select(Run.run).order_by(Run.run)) == [1, 2, 3]
    assert read(select(Job.stage).where(Job.stage == "sweep")) == ["sweep"]
    set_job(claimed.job_id, lease_until=seconds_from_now(-1))
    age()
    execute(update(Run).where(Run.run == 2).values(superseded_at=seconds_from_now(LONG_AGO_S)))
    remove()
    assert read(select(Run.run).order_by(Run.run)) == [1, 3]


@pytest.mark.usefixtures("database")
def test_a_simulated_year_leaves_the_ledger_as_large_as_a_month() -> None:
    sizes = []
    accept()
    index()
    for _ in range(12):
        for _ in range(2):
            rerun("text")
            run_queue("text", "media", "housekeeping")
        for statement in (update(Job).values(finished_at=Job.finished_at - text("interval '31 days'")),
                          update(Run).values(superseded_at=Run.superseded_at - text("interval '31 days'"))):  # fmt: skip
            execute(statement)
        remove()
        sizes.append(
            (*read(select(func.count()).select_from(Job)), *read(select(func.count()).select_from(Run)))
        )
    assert sizes[1:] == [sizes[1]] * 11


# --- Redis


def test_nodes_are_listed_without_a_look_at_all_keys(redis_server: RedisServer) -> None:
    described = {
        "family": "asr",
        "state": "ready",
        "error": "",
        "pid": 7,
        "evictions": 0,
        "loads": {},
        "slots": [],
    }
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        client.flushall()
        client.mset({f"scenefleet:vector:{number}": "x" for number in range(5_000)})
        for name in ("asr@a", "asr@b", "asr@c", "asr@d"):
            nodes.publish(client, {**described, "node": name})
        client.config_resetstat()
        # It stopped, it died a minute ago, it died a week ago.
        nodes.withdraw(client, "asr@b")
        client.delete(nodes.state_key("asr@c"), nodes.state_key("asr@d"))
        client.hset("scenefleet:nodes", "asr@d", 0.0)
        assert set(nodes.read_nodes(redis_server.url)) == {"asr@a"}
        assert nodes.ready_families(client) == {"asr"}
        assert set(client.hkeys("scenefleet:nodes")) == {"asr@a", "asr@c"}
        used = client.info("commandstats")
        assert not {"cmdstat_scan", "cmdstat_keys"} & used.keys()
        client.flushall()


def test_wake_ups_are_capped_by_queue(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    sent: list[str] = []
    monkeypatch.setattr(wakeup.app, "send_task", lambda *_, queue, **__: sent.append(queue))
    wakeup.notify([WakeUp(queue, number) for number in range(3_000) for queue in ("asr", "media")])
    assert sent.count("asr") == sent.count("media") == MOST_WAKE_UPS


@pytest.mark.usefixtures("database")
def test_reconciling_removes_and_marks(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    monkeypatch.setattr(reconcile, "missing_wake_ups", lambda: None)
    monkeypatch.setattr(reconcile, "_tended_s", float("-inf"))
    accept()
    index()
    age()
    accept("v2")
    execute(text("DELETE FROM queue_usage"))
    reconcile.fleet()
    assert not read(select(Job.job_id).where(Job.stage == "sweep"))
    assert must_claim().stage == "split"
