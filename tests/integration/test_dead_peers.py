"""A peer that is gone, or silent, with a transaction open: it holds up nothing but its own rows, and those not for long."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
import yaml
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from db.engine import (
    get_engine,
    make_engine,
    reading,
    set_engine,
    statements_may_take,
    transact,
    with_database_retry,
)
from db.ids import video_key
from db.ledger import attempts, claims, subjects, video_runs
from db.ledger.jobs import WakeUp
from db.limits import Limits, configured_limits
from db.tables import Job, Run, Video
from local.servers import postgres as embedded
from shared.errors import DatabaseBusy, DatabaseUnavailable, ModelFailure, StatementTimeout
from shared.settings import Settings, get_settings
from tests.integration.test_lease import lease_of
from tests.support.fleet import ROOT, eventually, run_to_end
from tests.support.ledger import KEY, accept, claim, execute, expire, job, must_claim, read, state
from worker import reconcile, runner

pytestmark = pytest.mark.usefixtures("database")

SHORT = Limits(lock_s=1.0, statement_s=2.0, idle_s=1.5, peer_s=6.0)
BRIEF = replace(SHORT, statement_s=0.5)


@contextmanager
def silent_on(url: str, statement: str, *, idle_s: float = 0.0) -> Iterator[None]:
    """A client that has opened a transaction, locked something and says nothing more."""
    options = f"-c idle_in_transaction_session_timeout={round(idle_s * 1000)}"
    with closing(psycopg.connect(url, options=options)) as connection:
        connection.execute(statement)  # psycopg begins a transaction by itself
        yield
        # Postgres releases the locks of a closed connection when it gets to it, those of a transaction before it answers.
        with suppress(psycopg.Error):
            connection.rollback()


def row_of(video_id: str) -> str:
    return f"SELECT 1 FROM videos WHERE external_id = '{video_id}' FOR UPDATE"


@contextmanager
def limited(url: str, limits: Limits | None = None) -> Iterator[None]:
    """Sessions of this process use this database, with these limits."""
    before = get_engine()
    own = make_engine(url.replace("postgresql://", "postgresql+psycopg://"), limits=limits)
    set_engine(own)
    try:
        yield
    finally:
        set_engine(before)
        own.dispose()


@pytest.fixture(autouse=True)
def nothing_paused() -> None:
    reconcile._paused.clear()


def ticks(count: int, *, within_s: float) -> None:
    """So many ticks of a node, each in the time given."""
    for _ in range(count):
        thread = threading.Thread(target=reconcile.fleet, daemon=True)
        thread.start()
        thread.join(within_s)
        assert not thread.is_alive(), f"a tick took longer than {within_s:g} s"


#: Of every session of ours; by these a row is free within a minute.
OURS = {
    "lock_timeout": "10000",
    "statement_timeout": "60000",
    "idle_in_transaction_session_timeout": "30000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "client_connection_check_interval": "5000",
}


def shown(connection: Any) -> dict[str, str]:
    rows = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(OURS)])
    return dict(rows.fetchall())


def test_every_session_has_limits_also_those_of_strangers_at_servers_that_we_start(database: str) -> None:
    with get_engine().connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None and shown(raw) == OURS
        assert raw.info.get_parameters()["tcp_user_timeout"] == "30000"
    with psycopg.connect(database) as stranger:
        theirs = shown(stranger)
    assert theirs["idle_in_transaction_session_timeout"] == "45000"
    assert all(theirs[name] == value for name, value in OURS.items() if name.startswith(("tcp", "client")))


def test_composes_postgres_has_the_limits_of_the_embedded_one(tmp_path: Path) -> None:
    command = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["postgres"]["command"]
    for option in embedded.server_command(tmp_path, 1):
        if option.startswith(("tcp_", "client_connection", "idle_in_transaction")):
            assert option in command


def test_options_of_the_url_are_kept_and_win(database: str) -> None:
    url = database.replace("postgresql://", "postgresql+psycopg://")
    engine = make_engine(url + "?options=-c%20lock_timeout%3D123%20-c%20work_mem%3D5MB", pooled=False)
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW lock_timeout")) == "123ms"
        assert connection.scalar(text("SHOW work_mem")) == "5MB"
        assert connection.scalar(text("SHOW statement_timeout")) == "1min"


# --- errors


def test_a_lock_that_is_not_given_up_is_said_once_and_soon(database: str) -> None:
    accept()
    with limited(database, SHORT), silent_on(database, row_of("v1")):
        began = time.monotonic()
        with pytest.raises(DatabaseBusy, match=r"another transaction has locked .*: try again in a minute"):
            transact(lambda session: subjects.lock_video(session, KEY))
        assert time.monotonic() - began < 5.0, "waited once, not ten times"


def test_the_end_of_a_job_outlasts_a_dead_peer(database: str) -> None:
    accept()
    with limited(database, SHORT), silent_on(database, row_of("v1"), idle_s=3.0):
        found = with_database_retry(lambda session: subjects.lock_video(session, KEY), 0.0, locked_s=20.0)
    assert found is not None and runner.LOCKED_S > 2 * 60.0


def test_a_statement_that_takes_too_long_is_no_outage_and_not_repeated(database: str) -> None:
    work = Mock(side_effect=lambda session: session.execute(text("SELECT pg_sleep(30)")))
    slow = pytest.raises(StatementTimeout, match=r"took too long: .*DATABASE_STATEMENT_S")
    with limited(database, BRIEF), slow:
        with_database_retry(work, 20.0, locked_s=20.0)
    assert work.call_count == 1


def test_jobs_have_a_longer_limit_of_their_own(database: str) -> None:
    with limited(database, BRIEF):
        with statements_may_take(20.0):
            transact(lambda session: session.execute(text("SELECT pg_sleep(1)")))
            with reading() as session:
                assert session.scalar(text("SHOW statement_timeout")) == "20s"
        with reading() as session:
            assert session.scalar(text("SHOW statement_timeout")) == "500ms", "nothing is left in the pool"


def test_a_session_that_postgres_ended_for_its_silence_is_tried_again(database: str) -> None:
    accept()
    tries: list[None] = []

    def work(session: Session) -> str | None:
        tries.append(None)
        subjects.lock_video(session, KEY)
        if len(tries) == 1:
            time.sleep(1.2)  # longer than idle_s: a process that was frozen
        return session.scalar(select(Video.state).where(Video.video_id == KEY))

    with limited(database, replace(SHORT, idle_s=0.5)):
        assert with_database_retry(work, 10.0) == "uploaded"
        assert len(tries) == 2
        tries.clear()
        with pytest.raises(DatabaseUnavailable):
            transact(work)


def test_a_heartbeat_outlives_a_locked_job(database: str) -> None:
    accept()
    claimed = must_claim()
    locked = f"SELECT 1 FROM jobs WHERE job_id = {claimed.job_id} FOR UPDATE"
    with limited(database, SHORT), lease_of(claimed) as report:
        with capture_logs() as logs, silent_on(database, locked):
            gave_up = "lease not renewed"
            eventually(lambda: gave_up in [line["event"] for line in logs], within_s=10, what=gave_up)
        report(0.7)
        eventually(lambda: job(claimed.job_id).progress == 0.7, within_s=10, what="beats go on")


# --- reconciling


def abandoned(video_id: str) -> claims.Claim:
    """A video whose job's worker is gone."""
    accept(video_id)
    claimed = must_claim(owner="gone@h:1.a:0:2")
    assert claimed.video_id == video_key("u1", video_id)
    expire(claimed)
    return claimed


def strand(video_id: str) -> None:
    """A video that nothing advances: its job has ended without what follows."""
    accept(video_id)
    execute(update(Job).where(Job.video_id == video_key("u1", video_id)).values(state="failed"))


def states() -> dict[str, str]:
    with reading() as session:
        split = select(Video.external_id, Job.state).join(Job, Job.video_id == Video.video_id)
        return {row.external_id: row.state for row in session.execute(split.where(Job.stage == "split"))}


def ended() -> set[str]:
    ended = select(Video.external_id).join(Run, Run.video_id == Video.video_id)
    return set(read(ended.where(Run.ended_at.is_not(None))))


def test_a_silent_connection_holds_up_no_other_video(database: str) -> None:
    for video_id in ("held", "free"):
        abandoned(video_id)
    for video_id in ("stuck-held", "stuck-free"):
        strand(video_id)
    silent = "SELECT 1 FROM videos WHERE external_id IN ('held', 'stuck-held') FOR UPDATE"
    with silent_on(database, silent, idle_s=15.0):
        ticks(2, within_s=5.0)
        assert states()["free"] == "queued", "its job can be claimed again"
        assert states()["held"] == "running", "comes when its row is free"
        assert ended() == {"stuck-free"}
        # Somebody else's claim and beat touch other rows.
        found = eventually(claim, within_s=10, what="a job is claimed after its backoff")
        assert found is not None and found.video_id == video_key("u1", "free")

        def caught_up() -> bool:
            ticks(1, within_s=5.0)
            return states()["held"] == "queued" and "stuck-held" in ended()

        eventually(caught_up, within_s=40, what="the silent connection is ended", every_s=1.0)


def test_a_locked_job_holds_up_no_other(database: str) -> None:
    held, free = abandoned("held"), abandoned("free")
    with silent_on(database, f"SELECT 1 FROM jobs WHERE job_id = {held.job_id} FOR UPDATE"):
        ticks(2, within_s=5.0)
        assert job(free.job_id).state == "queued"
        assert not transact(lambda session: attempts.release(session, "gone@h:")), (
            "a stopping node does not wait"
        )
    ticks(1, within_s=5.0)
    assert job(held.job_id).state == "queued"


def test_a_subject_that_raises_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for video_id in ("a", "bad", "z"):
        strand(video_id)
    late = abandoned("late")
    advance = subjects.advance

    def fail(session: Session, row: Any, policy: Any) -> list[WakeUp]:
        if row.external_id == "bad":
            raise ValueError("a row nobody thought of")
        return advance(session, row, policy)

    monkeypatch.setattr(subjects, "advance", fail)

    def failed() -> list[tuple[str, str]]:
        with capture_logs() as logs:
            reconcile.fleet()
        return [(line["step"], line["subject"]) for line in logs if line["log_level"] == "error"]

    bad = [("stuck video", video_key("u1", "bad"))]
    assert failed() == bad
    assert (ended(), job(late.job_id).state) == ({"a", "z"}, "queued")
    assert failed() == [], "it is left alone for a while, and not for ever"
    time.sleep(1.1)
    assert failed() == bad
    monkeypatch.setattr(subjects, "advance", advance)
    eventually(lambda: reconcile.fleet() or ended() == {"a", "bad", "z"}, within_s=20, what="it goes on")


def test_a_step_that_raises_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    strand("a")
    late = abandoned("late")
    for step in ("expired_leases", "missing_wake_ups"):
        monkeypatch.setattr(reconcile, step, Mock(side_effect=ModelFailure("broken"), __name__=step))
    with capture_logs() as logs:
        reconcile.fleet()
    assert ended() == {"a"} and {line["log_level"] for line in logs} == {"warning"}
    monkeypatch.undo()
    reconcile._paused.clear()
    reconcile.fleet()
    assert job(late.job_id).state == "queued"


def test_owners_of_another_form_stop_nothing() -> None:
    accept()
    claimed = must_claim(owner="n@h:what is this")
    accept("v2")
    other = must_claim(owner="n@h:5.me:0:77")
    reconcile.own_children("n@h", "5.me", lambda: {76})
    assert (job(claimed.job_id).state, job(other.job_id).state) == ("running", "queued")


def test_more_stuck_videos_than_are_looked_at_have_their_turn() -> None:
    for number in range(8):
        strand(f"v{number}")
    with reading() as session:
        found = {video_id for _ in range(20) for video_id in video_runs.find_stuck(session, 2)}
    assert len(found) > 4


# --- forks


FORKS = """
import os, threading, time
from contextlib import suppress
from sqlalchemy import text
from db.engine import make_engine
from worker import forks as module

WAIT_S, LAST_WAIT_S = module.WAIT_S, module.LAST_WAIT_S = 1.0, 1.5
forks = module.forks
engine = forks.watch(make_engine(os.environ["POSTGRES_URL"].replace("postgresql://", "postgresql+psycopg://"), pooled=False))
forks.install()
asked, ended = threading.Event(), []

def housekeeping(stubborn):
    with forks.held_off():
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                asked.set()
                connection.execute(text("SELECT pg_sleep(30)"))
        except Exception as error:
            ended.append(type(error).__name__)
        time.sleep(stubborn)

def sockets():
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink("/proc/self/fd/" + descriptor))
    return {name for name in found if name.startswith("socket:")}

before = sockets()
for stubborn in (0.0, 2 * LAST_WAIT_S):
    asked.clear()
    thread = threading.Thread(target=housekeeping, args=(stubborn,), daemon=True)
    thread.start()
    asked.wait(20)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        with forks.held_off():
            os._exit(0 if sockets() == before else 9)
    took_s = time.monotonic() - began
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(f"{took_s:.1f} s, child {status}, {ended}")
    assert took_s < WAIT_S + LAST_WAIT_S + 1.0 and status == 0 and ended
    thread.join()
"""


def test_a_fork_waits_for_no_server(database: str) -> None:
    """A server that does not answer: the fork interrupts whoever waits for it, and the child gets no connection of theirs."""
    environment = {**os.environ, "POSTGRES_URL": database, "DATABASE_STATEMENT_S": "60"}
    done = run_to_end([sys.executable, "-c", FORKS], environment, timeout_s=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_limits_are_settings() -> None:
    limits = configured_limits(Settings(DATABASE_LOCK_S="3", DATABASE_IDLE_S="7"))  # type: ignore[call-arg]
    assert (limits.lock_s, limits.idle_s, limits.statement_s) == (3.0, 7.0, 60.0)
    assert get_settings().database_idle_s + get_settings().database_lock_s < 60.0


def test_a_job_does_not_wait_for_a_row_to_begin(database: str) -> None:
    accept()
    with limited(database, SHORT):
        with silent_on(database, row_of("v1")):
            claimed = must_claim()
            transact(lambda session: attempts.mark_started(session, claimed))
        transact(lambda session: attempts.mark_started(session, claimed))
    assert state() == "processing"
