"""Whose fault it was: services and workers that vanish at awkward moments, in one process over a real Postgres."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery.exceptions import Reject
from sqlalchemy import select, text
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.orm import Session

from db import videos
from db.engine import get_engine, reading, reading_only, transact, with_database_retry
from db.ledger import attempts, claims
from db.ledger.claims import Claim
from db.tables import Job
from shared.contracts import ProcessVideo, VideoRef
from shared.errors import DatabaseUnavailable
from shared.settings import Settings
from tasks.requests import Changed, commit
from tests.faults.proxy import LossyProxy
from tests.integration.conftest import Configure
from tests.integration.test_dead_peers import limited
from tests.integration.test_ledger import POLICY, accept, job, must_claim
from tests.support.fleet import eventually
from tests.support.ledger import read
from tests.support.services import TEMPLATE, PostgresServer, start_or_give_up
from worker import reconcile, runner, stages
from worker.runtime import Runtime
from worker.stages.context import Outcome, StageContext

pytestmark = pytest.mark.usefixtures("accepted")


def accept_in(session: Session, video_id: str) -> Changed:
    request = ProcessVideo(video_id=video_id, user_id="u1", storage_key=f"uploads/u1/{video_id}/a.mp4")
    return videos.accept(session, request, POLICY)


@pytest.fixture
def accepted(database: str) -> None:
    """A video whose first job waits."""
    accept()


@pytest.fixture
def runtime(database: str, tmp_path: Path) -> Runtime:
    made = Runtime(
        Settings(POSTGRES_URL=database, REDIS_URL="redis://127.0.0.1:1/0", SCENEFLEET_HOME=tmp_path / "home")
    )
    made.storage.ensure_buckets()
    made.owner, made.work_dir = "here:1.a:0:2", tmp_path / "work"
    return made


def outcome(job_id: int) -> tuple[str, int, int, str | None]:
    found = job(job_id)
    return found.state, found.failures, found.outages, found.error_class


def test_a_commit_whose_answer_was_lost_is_not_done_twice_nor_taken_for_lost(database: str) -> None:
    claimed = must_claim()
    written = []

    def write(session: Session) -> None:
        written.append(True)

    with LossyProxy(database, share=0.0) as proxy, limited(proxy.url):
        tries: list[bool] = []

        def once_lossy(session: Session) -> Any:
            tries.append(True)
            proxy.share = 1.0 if len(tries) == 1 else 0.0
            return attempts.finish(session, claimed, write, {"windows": []}, POLICY)

        assert with_database_retry(once_lossy, 20.0) == []
        assert (len(tries), proxy.lost) == (2, 1)
    assert written == [True]
    assert job(claimed.job_id).state == "done"


def test_what_a_commit_made_known_stays_when_its_answer_is_lost_and_patience_ends(
    runtime: Runtime, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt then records a failure, learns that the job is no longer its own, and must not tidy up."""
    runtime.settings = runtime.settings.model_copy(update={"database_wait_s": 0.0})
    with LossyProxy(database, share=0.0, most=1) as proxy, limited(proxy.url):

        def lose_the_answer(session: Session) -> None:
            proxy.share = 1.0

        def split(context: StageContext) -> Outcome:
            context.storage.put_bytes("sidecars", context.prefix("keyframes") + "a.jpg", b"a", "image/jpeg")
            return Outcome(result={"windows": []}, write=lose_the_answer)

        monkeypatch.setattr(stages, "run", split)
        ran = runner.work("media", runtime)
        assert proxy.lost == 1
    assert job(ran["job_id"]).state == "done"
    kept = [found.key for found in runtime.storage.list("sidecars", "")]
    assert kept == [f"keyframes/u1/v1/{ran['job_id']}.1/a.jpg"]


def test_a_claim_whose_answer_was_lost_is_taken_up_again(runtime: Runtime, database: str) -> None:
    """Not another job while the first one waits for the end of its lease."""
    accept("v2")
    with LossyProxy(database, share=1.0, most=1) as proxy, limited(proxy.url):
        found = runner._claim("media", runtime)
        assert proxy.lost == 1
    assert found is not None and found.attempt == 1
    running = read(select(Job.job_id).where(Job.state == "running"))
    assert running == [found.job_id]


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A Postgres of this module alone, which a test may stop and configure."""
    server = PostgresServer(tmp_path_factory.mktemp("stoppable"))
    start_or_give_up(server)
    try:
        server.create_template()
        yield server
    finally:
        server.stop()


@pytest.fixture
def own_server(stoppable: PostgresServer) -> Iterator[PostgresServer]:
    """That server, with one waiting video in an empty database, which this process's sessions use."""
    stoppable.execute(f"CREATE DATABASE own TEMPLATE {TEMPLATE}")
    with limited(stoppable.url("own")):
        accept()
        yield stoppable
    stoppable.execute("DROP DATABASE own WITH (FORCE)")


def test_a_server_that_takes_no_changes_is_an_outage_until_another_answers(
    own_server: PostgresServer, configure: Configure
) -> None:
    """As after a failover: the connections of the pool live, and lead to a server that is a standby now."""
    with get_engine().connect() as connection:
        raw = connection.connection.dbapi_connection
    own_server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    own_server.execute("SELECT pg_reload_conf()")
    is_read_only = "SHOW default_transaction_read_only"
    eventually(lambda: _shown(is_read_only) == "on", within_s=60, what="the setting is read")
    with reading() as session:
        assert session.scalars(select(Job.state)).all() == ["queued"], "what is there can be read"
    with pytest.raises(DatabaseUnavailable, match=r"takes no changes .*standby"):
        transact(lambda session: claims.claim(session, "media", "here", 60.0))
    with get_engine().connect() as connection:
        assert connection.connection.dbapi_connection is not raw, "the pool's connections are closed"
    # A message is given back, not answered with an error of ours.
    configure(DATABASE_WAIT_S="0")
    with pytest.raises(Reject) as given_back:
        commit(lambda session: accept_in(session, "v2"), VideoRef(user_id="u1", video_id="v2"))
    assert given_back.value.requeue

    def open_again() -> None:
        with psycopg.connect(own_server.url(), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")

    waiting = threading.Timer(0.5, open_again)
    waiting.start()
    claimed = with_database_retry(lambda session: claims.claim(session, "media", "here", 60.0), 60.0)
    waiting.join()
    assert claimed is not None and claimed.attempt == 1


def _shown(statement: str) -> str:
    with reading() as session:
        return str(session.scalar(text(statement)))


def test_our_own_read_only_transaction_that_writes_is_no_outage(database: str) -> None:
    with pytest.raises(InternalError, match="read-only transaction"), reading_only() as session:
        session.execute(text("DELETE FROM jobs"))


def test_a_server_killed_in_the_middle_of_commits_leaves_each_job_done_once(
    own_server: PostgresServer,
) -> None:
    """Each job is finished by one attempt, whose outputs are there once, whether the answer to its commit arrived or not."""
    for number in range(2, 10):
        accept(f"v{number}")
    transact(lambda session: session.execute(text("CREATE TABLE outputs (job_id bigint)")))
    finished = 0
    reached, going = threading.Event(), threading.Event()

    def finish_all() -> None:
        nonlocal finished
        while (claimed := with_database_retry(_take, 60.0)) is not None:
            if finished in (5, 12):
                reached.set()
                assert going.wait(60.0)
                going.clear()
            _finish(claimed)
            finished += 1

    worker = threading.Thread(target=finish_all, daemon=True)
    worker.start()
    for _ in range(2):
        assert reached.wait(60.0)
        reached.clear()
        going.set()
        own_server.stop(signal.SIGQUIT)
        own_server.start()
    worker.join(120.0)
    assert not worker.is_alive()
    assert _all("SELECT count(DISTINCT job_id), count(*) FROM outputs") == [(finished, finished)]
    of_media = "SELECT state, attempt, count(*) FROM jobs WHERE queue = 'media' GROUP BY 1, 2"
    assert _all(of_media) == [("done", 1, finished)]


def _take(session: Session) -> Claim | None:
    return claims.claim_again(session, "media", "here", 60.0)


def _finish(claimed: Claim) -> None:
    def write(session: Session) -> None:
        session.execute(text("INSERT INTO outputs VALUES (:job_id)"), {"job_id": claimed.job_id})

    done = {"windows": []}
    with_database_retry(lambda session: attempts.finish(session, claimed, write, done, POLICY), 60.0)


def _all(statement: str) -> list[tuple[Any, ...]]:
    with reading() as session:
        return [tuple(row) for row in session.execute(text(statement))]


def test_a_restarted_node_with_the_same_process_ids_is_another_life() -> None:
    """In a container the node is always the same pid, and so may its children be."""
    claimed = must_claim(owner=f"n@h:{os.getpid()}.old:0:77")
    reconcile.own_children("n@h", f"{os.getpid()}.new", lambda: {77})
    assert outcome(claimed.job_id) == ("queued", 0, 1, "NodeLost")


def test_a_dead_child_counts_unless_the_node_ends_its_children_itself() -> None:
    claimed = must_claim(owner="n@h:5.me:0:77")
    reconcile.own_children("n@h", "5.me", lambda: None)
    assert job(claimed.job_id).state == "running"
    reconcile.own_children("n@h", "5.me", lambda: {76})
    assert outcome(claimed.job_id) == ("queued", 0, 0, "WorkerLost")
    assert (job(claimed.job_id).deaths, job(claimed.job_id).deaths_alone) == (1, 0)


def test_a_raw_database_error_in_a_stage_is_an_outage(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:

    def away(context: StageContext) -> Outcome:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    monkeypatch.setattr(stages, "run", away)
    ran = runner.work("media", runtime)
    assert ran["outcome"] == "failed"
    assert outcome(ran["job_id"]) == ("queued", 0, 1, "DatabaseUnavailable")


def test_no_room_for_the_working_folder_is_an_outage(runtime: Runtime) -> None:
    # A file where the folder should be made: any error of the file system will do.
    runtime.work_dir.write_text("")
    ran = runner.work("media", runtime)
    assert job(ran["job_id"]).state == "queued", "not left running until its lease expires"


def test_a_storage_that_goes_away_while_a_video_is_read_is_to_blame_not_the_video(
    runtime: Runtime, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, root = runtime.storage, runtime.settings.storage_dir
    storage.put_file("uploads", "uploads/u1/v1/a.mp4", sample, "video/mp4")
    local_path = storage.local_path

    def unplug(bucket: Any, key: str) -> Path | None:
        path = local_path(bucket, key)
        root.rename(tmp_path / "away")
        return path

    monkeypatch.setattr(storage, "local_path", unplug)
    ran = runner.work("media", runtime)
    assert outcome(ran["job_id"]) == ("queued", 0, 1, "StorageUnavailable")
