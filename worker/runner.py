"""One wake-up message: claim the best job of a queue, run its stage under a lease, finish or fail it in the ledger."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.orm import Session

from db import switches
from db.engine import outages, statements_may_take, transact
from db.ids import name_video
from db.ledger import jobs, runs
from db.ledger.jobs import Claim, Subject, WakeUp
from db.people import enrolment
from db.tables import ModelSwitch, Person
from shared import graph
from shared.errors import (
    DatabaseBusy,
    DatabaseUnavailable,
    LeaseLost,
    Outage,
    ScenefleetError,
    StatementTimeout,
    StorageUnavailable,
)
from shared.logs import get_logger
from shared.storage import Bucket
from worker import stages
from worker.lease import Lease
from worker.runtime import Runtime
from worker.stages.context import Deferred, StageContext
from worker.wakeup import notify

log = get_logger(__name__)
T = TypeVar("T")

#: A full disk, a used-up quota, a file-size limit: the machine's trouble, not the video's.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


#: How long the end of a job waits for a row that another transaction holds, seconds. What a dead peer holds is free
#: within 60 s; the longest transaction of our own is the publication of 50,000 scenes, about 90 s.
LOCKED_S = 150.0


def with_database_retry(work: Callable[[Session], T], wait_s: float, *, locked_s: float = 0.0) -> T:
    """``transact``, waiting up to ``wait_s`` for a Postgres that is away, and up to ``locked_s`` for locks of others.

    Raises:
        StatementTimeout: at once; it would take as long again.
        DatabaseBusy: a lock was held for longer.
        DatabaseUnavailable: it stayed away.
    """
    began = time.monotonic()
    pause_s = 0.2
    while True:
        try:
            return transact(work)
        except StatementTimeout:
            raise
        except DatabaseUnavailable as error:
            limit_s = locked_s if isinstance(error, DatabaseBusy) else wait_s
            if time.monotonic() + pause_s > began + limit_s:
                raise
            time.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)


def work(queue: str, runtime: Runtime) -> dict[str, Any]:
    """Claim and run one job. Returns what ran, for logs and Flower.

    Raises:
        DatabaseUnavailable: Postgres stayed away; give the wake-up message back.
    """
    settings = runtime.settings
    claimed = with_database_retry(
        lambda session: jobs.claim(session, queue, runtime.owner, settings.lease_s), settings.database_wait_s
    )
    if claimed is None:
        return {"queue": queue, "idle": True}
    kind, subject_id = claimed.subject
    shown = {"job_id": claimed.job_id, "attempt": claimed.attempt, f"{kind}_id": subject_id, "stage": claimed.stage,
             "part": claimed.part, "run": claimed.run}  # fmt: skip
    with (
        structlog.contextvars.bound_contextvars(**shown),
        statements_may_take(settings.database_job_statement_s),
    ):
        started = time.monotonic()
        outcome = _run(claimed, runtime)
        log.info("job ended", outcome=outcome, seconds=round(time.monotonic() - started, 3))
    if settings.user_max_running_jobs:
        # Its user's next job may have rung while this one was in its way.
        notify([WakeUp(queue, claimed.job_id)])
    return {**shown, "outcome": outcome}


def _run(claimed: Claim, runtime: Runtime) -> str:
    folder = runtime.work_dir / claimed.storage_part
    stored: list[tuple[Bucket, str]] = []
    try:
        return _attempt(claimed, runtime, folder, stored)
    except LeaseLost as error:
        log.warning("job given up", reason=error)
        _clean_up(claimed, runtime, stored)
        return "lost"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _attempt(claimed: Claim, runtime: Runtime, folder: Path, stored: list[tuple[Bucket, str]]) -> str:
    """Run the stage, then finish, put back or fail the job.

    Raises:
        LeaseLost: at any point, also while a failure was recorded.
    """
    settings = runtime.settings
    stage = graph.find_stage(claimed.stage)
    try:
        runtime.attempt_dir(claimed.storage_part)
        lease = Lease(
            claimed,
            lease_s=settings.lease_s,
            heartbeat_s=settings.heartbeat_s,
            time_limit_s=stage.time_limit_s,
            on_time_limit=lambda error: _fail(claimed, error, runtime),
        )
        with lease:
            with_database_retry(lambda session: jobs.mark_started(session, claimed), settings.database_wait_s)
            context = StageContext(
                claimed=claimed, runtime=runtime, folder=folder, report=lease.report, stored=stored
            )
            with outages():
                outcome = stages.run(context)
            lease.report(1.0)
            wake_ups = with_database_retry(
                lambda session: jobs.finish(
                    session, claimed, outcome.write, outcome.result, lambda s, v: advance(s, v, runtime)
                ),
                settings.database_wait_s,
                locked_s=LOCKED_S,
            )
        notify(wake_ups)
        return "done"
    except LeaseLost:
        raise
    except Deferred as pause:
        wait_s, progressed = pause.wait_s, pause.progressed
        wake_ups = with_database_retry(
            lambda session: jobs.defer(
                session, claimed, wait_s, max_wait_s=runtime.policy.defer_max_s, progressed=progressed
            ),
            settings.database_wait_s,
            locked_s=LOCKED_S,
        )
        notify(wake_ups)
        return "deferred"
    except ScenefleetError as error:
        log.warning("job failed", error_class=error.code, error=error)
        return _fail(claimed, error, runtime)
    except OSError as error:
        if error.errno in _NO_ROOM:
            no_room = StorageUnavailable(f"no room left in {folder.parent}: free some disk space")
            log.warning("job failed", error_class=no_room.code, error=no_room)
            return _fail(claimed, no_room, runtime)
        log.exception("job failed")
        return _fail(claimed, error, runtime)
    except Exception as error:
        log.exception("job failed")
        return _fail(claimed, error, runtime)


def advance(session: Session, subject: Subject, runtime: Runtime) -> list[WakeUp]:
    """Start what follows the end of a job."""
    if isinstance(subject, Person):
        return enrolment.advance(session, subject, runtime.plan)
    if isinstance(subject, ModelSwitch):
        return switches.advance(session, subject, runtime.plan)
    return runs.advance(session, subject, runtime.plan)


def _fail(claimed: Claim, error: Exception, runtime: Runtime) -> str:
    wake_ups = with_database_retry(
        lambda session: jobs.fail(
            session, claimed, error, runtime.policy, lambda s, v: advance(s, v, runtime)
        ),
        runtime.settings.database_wait_s,
        locked_s=LOCKED_S,
    )
    notify(wake_ups)
    return "failed"


def _clean_up(claimed: Claim, runtime: Runtime, stored: Sequence[tuple[Bucket, str]]) -> None:
    """Remove what a lost attempt stored, then let its lease go: a delete is waiting for that."""
    try:
        # A commit whose answer was lost: the job is done, and what this attempt stored is what it made known.
        if with_database_retry(
            lambda session: jobs.is_finished(session, claimed), runtime.settings.database_wait_s
        ):
            return
        if claimed.subject_kind == "video":
            name = with_database_retry(
                lambda session: name_video(session, claimed.video_id), runtime.settings.database_wait_s
            )
            for bucket, prefix in stages.attempt_prefixes(claimed, name):
                runtime.storage.delete_prefix(bucket, prefix)
        for bucket, key in stored:
            runtime.storage.delete(bucket, key)
        with_database_retry(
            lambda session: jobs.end_lease(session, claimed), runtime.settings.database_wait_s
        )
    except Outage as error:
        # The sweep removes what is left; the lease runs out by itself.
        log.warning("clean-up put off", error=error)
