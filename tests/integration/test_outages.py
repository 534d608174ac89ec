"""Whose fault it was: services and workers that vanish at awkward moments, in one process over a real Postgres."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.engine import with_database_retry
from db.ledger import attempts
from shared.settings import Settings
from tests.faults.proxy import LossyProxy
from tests.integration.test_dead_peers import limited
from tests.integration.test_ledger import POLICY, accept, job, must_claim
from worker import reconcile, runner, stages
from worker.runtime import Runtime
from worker.stages.context import Outcome, StageContext

pytestmark = pytest.mark.usefixtures("accepted")


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
