"""The sweep against what happens at the same moment: a newer run's objects and a retry's audio are not leftovers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from db.engine import transact
from db.expressions import NOW
from db.ledger import attempts, subjects, video_runs
from db.ledger.claims import Claim
from db.ledger.policy import RunPolicy
from db.scenes import write_scenes
from db.tables import Job, QueueUsage, Scene, Video
from shared.errors import BadMedia, LeaseLost
from shared.storage import Storage, StorageConfig, open_storage
from tests.integration import test_ledger as ledger
from tests.integration.test_ledger import KEY, POLICY, accept, claim, finish, must_claim, run_queue, split
from worker.stages import sweep
from worker.stages.context import Deferred, StageContext

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    found = open_storage(StorageConfig(backend="local", root=tmp_path / "storage"))
    found.ensure_buckets()
    return found


def context(claimed: Claim, storage: Any, folder: Path) -> StageContext:
    runtime: Any = SimpleNamespace(storage=storage)
    return StageContext(claimed=claimed, runtime=runtime, folder=folder, report=lambda fraction: None)


def change(act: Any) -> Any:
    return transact(lambda session: act(session, subjects.lock_video(session, KEY), POLICY))


def publish() -> Claim:
    """A published video; returns its sweep, claimed."""
    accept()
    split(must_claim())
    for queue in ("asr", "face", "ocr", "text"):
        assert run_queue(queue)
    finish(must_claim())
    return claim_sweep()


def rerun(session: Session, video: Video, policy: RunPolicy) -> None:
    video_runs.rerun(session, video, [], policy)


def claim_sweep() -> Claim:
    swept = must_claim("housekeeping")
    assert swept.stage == "sweep"
    return swept


def test_a_sweep_leaves_what_a_newer_run_stores_meanwhile(storage: Storage, tmp_path: Path) -> None:
    swept = publish()
    new = "keyframes/u1/v1/99.1/000000_0.jpg"

    def list_and_rerun(bucket: Any, prefix: str) -> list[Any]:
        found = list(storage.list(bucket, prefix))
        if bucket == "tmp":
            change(rerun)
            storage.put_bytes("sidecars", new, b"picture", "image/jpeg")
        return found

    interrupted = Mock(wraps=storage, list=list_and_rerun)
    with pytest.raises(LeaseLost):
        sweep.run(context(swept, interrupted, tmp_path))
    assert storage.exists("sidecars", new)


def test_a_sweep_waits_for_attempts_that_may_still_write(storage: Storage, tmp_path: Path) -> None:
    accept()
    held = must_claim()
    change(video_runs.cancel)
    swept = claim_sweep()
    with pytest.raises(Deferred):
        sweep.run(context(swept, storage, tmp_path))
    transact(lambda session: attempts.end_lease(session, held))
    assert sweep.run(context(swept, storage, tmp_path)).result == {"removed": 0}


def test_a_sweep_drops_rows_and_objects_of_a_cancelled_rerun(storage: Storage, tmp_path: Path) -> None:
    finish(publish())
    change(rerun)
    again = must_claim()
    mine = "keyframes/u1/v1/9.1/000000_0.jpg"
    storage.put_bytes("sidecars", mine, b"picture", "image/jpeg")
    keyframes = [{"ordinal": 0, "key": mine}]
    scene = {"idx": 0, "start_s": 0.0, "end_s": 1.0, "kind": "start", "keyframes": keyframes}

    def write(session: Session) -> None:
        write_scenes(session, KEY, "u1", again.run, [scene])

    finish(again, write, audio_key=None, windows=[])
    change(video_runs.cancel)
    swept = claim_sweep()
    finish(swept, sweep.run(context(swept, storage, tmp_path)).write)
    assert not storage.exists("sidecars", mine)
    versions = transact(lambda session: {row.split_version for row in session.query(Scene)})
    assert versions == {1}, "the published split stays, the cancelled one is gone"


def test_a_sweep_keeps_what_an_unpublished_run_made(storage: Storage, tmp_path: Path) -> None:
    """Nothing is published: a rerun of a later stage builds on this split."""
    accept()
    split(must_claim(), scenes=1)
    storage.put_bytes("sidecars", "keyframes/u1/v1/1.1/0.jpg", b"picture", "image/jpeg")
    keyframes = [{"ordinal": 0, "key": "keyframes/u1/v1/1.1/0.jpg"}]
    transact(lambda session: session.execute(update(Scene).values(keyframes=keyframes)))
    change(video_runs.cancel)
    swept = claim_sweep()
    finish(swept, sweep.run(context(swept, storage, tmp_path)).write)
    assert storage.exists("sidecars", "keyframes/u1/v1/1.1/0.jpg")


def test_a_retry_during_the_sweep_makes_its_audio_reembed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep of a failed run is claimed while a retry decides, which must not use the audio then."""
    accept()
    split(must_claim(), windows=1)
    ledger.fail(must_claim("asr"), BadMedia("on purpose"))
    for queue in ("face", "ocr"):
        while (claimed := claim(queue)) is not None:
            finish(claimed)
    finish(must_claim())
    assert ledger.stages()["sweep"] == "queued"
    ledger.execute(update(Job).values(not_before=NOW))
    ledger.execute(update(QueueUsage).where(QueueUsage.due_at.is_not(None)).values(due_at=NOW))
    look = video_runs.stage_states
    taken: list[Claim] = []

    def claimed_meanwhile(session: Session, video_id: str, run: int) -> Any:
        states = look(session, video_id, run)
        if not taken:
            taken.append(must_claim("housekeeping"))
        return states

    monkeypatch.setattr(video_runs, "stage_states", claimed_meanwhile)

    change(video_runs.retry)
    assert taken[0].stage == "sweep"
    shown = ledger.stages()
    assert (shown["split"], shown["audio"]) == ("reused", "queued"), shown
    with pytest.raises(LeaseLost):
        finish(taken[0])
