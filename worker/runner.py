"""One wake-up message: claim the best job of a queue, run its stage under a lease, finish or fail it in the ledger."""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from db.engine import outages, statements_may_take
from db.ids import name_video
from db.ledger import attempts
from db.ledger.claims import Claim, claim, claim_again
from db.ledger.jobs import WakeUp
from shared import graph, trace_context, tracing
from shared.errors import LeaseLost, Outage, ScenefleetError, StorageUnavailable
from shared.logs import get_logger
from shared.storage import Bucket
from worker import changes, stages
from worker.lease import hold
from worker.runtime import Runtime
from worker.stages.context import Deferred, StageContext
from worker.telemetry import metrics
from worker.wakeup import notify

log = get_logger(__name__)

#: A full disk, an exceeded quota, a file-size limit: errors of the machine, not of the video.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: How long the end of a job waits for a locked row, seconds. Rows of a dead peer are free within 60 s; the longest
#: transaction of scenefleet, the publication of 50,000 scenes, takes about 90 s.
LOCKED_S = 150.0
#: First pause of a job that is to run alone while another one is, and how often one that waits looks, seconds.
_ALONE_AGAIN_S, _ALONE_LOOK_S = 5.0, 0.1


def work(queue: str, runtime: Runtime) -> dict[str, Any]:
    """Claim and run one job. Returns what ran, for logs and Flower.

    Raises:
        DatabaseUnavailable: Postgres stayed unavailable; the wake-up message must go back to the queue.
    """
    if not runtime.job_locks.begin():
        # The reconciler sends the message again.
        return {"queue": queue, "idle": True, "reason": "another job runs alone on this node"}
    try:
        return _work(queue, runtime)
    finally:
        runtime.job_locks.end()


def _work(queue: str, runtime: Runtime) -> dict[str, Any]:
    settings = runtime.settings
    claimed = _claim(queue, runtime)
    if claimed is None:
        return {"queue": queue, "idle": True}
    shown: dict[str, Any] = {"job_id": claimed.job_id, "attempt": claimed.attempt, f"{claimed.subject.kind}_id": claimed.subject.id,
             "stage": claimed.stage, "part": claimed.part, "run": claimed.run}  # fmt: skip
    # The wake-up message may have been sent for another job.
    woken_by, parent = trace_context.current(), trace_context.parse(claimed.traceparent)
    trace_id = {} if parent is None else {"trace_id": parent.trace_id}
    with (
        structlog.contextvars.bound_contextvars(**shown, **trace_id),
        statements_may_take(settings.database_job_statement_s),
        tracing.span(
            f"stage {claimed.stage}", parent=parent, kind="consumer", links=[woken_by], attributes=shown
        ) as span,
    ):
        started = time.monotonic()
        metrics.observe_wait(queue, claimed.waited_s)
        outcome = _run(claimed, runtime)
        span.note(outcome=outcome)
        if outcome in ("failed", "lost"):
            span.fail(outcome)
        seconds = time.monotonic() - started
        metrics.observe_job(claimed.stage, outcome, seconds)
        log.info("job ended", outcome=outcome, seconds=round(seconds, 3))
    if settings.user_max_running_jobs:
        # The message of the user's next job may have found this job at the limit.
        notify([WakeUp(queue, claimed.job_id)])
    return {**shown, "outcome": outcome}


def _claim(queue: str, runtime: Runtime) -> Claim | None:
    tries = 0

    def take(session: Session) -> Claim | None:
        nonlocal tries
        tries += 1
        choose = claim if tries == 1 else claim_again
        return choose(session, queue, runtime.owner, runtime.settings.lease_s)

    return runtime.transact(take)


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
        LeaseLost: at any time, also while a failure is recorded.
    """
    settings, note = runtime.settings, changes.of_claim(claimed)
    try:
        if claimed.deaths:
            _wait_alone(claimed, runtime)
        runtime.attempt_dir(claimed.storage_part)
        with hold(
            claimed,
            lease_s=settings.lease_s,
            heartbeat_s=settings.heartbeat_s,
            time_limit_s=graph.find_stage(claimed.stage).time_limit_s,
            on_time_limit=lambda error: _fail(claimed, error, runtime),
            on_progress=lambda: changes.publish(note),
        ) as report:
            runtime.transact(lambda session: attempts.mark_started(session, claimed))
            changes.publish(note)
            context = StageContext(
                claimed=claimed, runtime=runtime, folder=folder, report=report, stored=stored
            )
            with outages():
                outcome = stages.run(context)
            report(1.0)
            wake_ups = runtime.transact(
                lambda session: attempts.finish(
                    session, claimed, outcome.write, outcome.result, runtime.policy
                ),
                locked_s=LOCKED_S,
            )
        notify(wake_ups)
        changes.publish(note)
        return "done"
    except LeaseLost:
        raise
    except Deferred as pause:
        wait_s, progressed = pause.wait_s, pause.progressed
        wake_ups = runtime.transact(
            lambda session: attempts.defer(session, claimed, wait_s, runtime.policy, progressed=progressed),
            locked_s=LOCKED_S,
        )
        notify(wake_ups)
        changes.publish(note)
        return "deferred"
    except Exception as error:
        cause: Exception = error
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            cause = StorageUnavailable(f"no room left in {folder.parent}: free some disk space")
        if isinstance(cause, ScenefleetError):
            log.warning("job failed", error_class=cause.code, error=cause)
        else:
            log.exception("job failed")
        return _fail(claimed, cause, runtime)


def _wait_alone(claimed: Claim, runtime: Runtime) -> None:
    """Wait until no other job runs on this node; none begins meanwhile.

    Raises:
        Deferred: another job waits for the same.
        LeaseLost: as ``hold``.
    """
    locks, settings = runtime.job_locks, runtime.settings
    if not locks.close_gate():
        raise Deferred(_ALONE_AGAIN_S)
    with hold(
        claimed,
        lease_s=settings.lease_s,
        heartbeat_s=settings.heartbeat_s,
        # Other jobs have their own limits.
        time_limit_s=math.inf,
        on_time_limit=lambda error: None,
    ) as report:
        while not locks.is_alone():
            report(0.0)
            time.sleep(_ALONE_LOOK_S)
    runtime.transact(lambda session: attempts.mark_alone(session, claimed))


def _fail(claimed: Claim, error: Exception, runtime: Runtime) -> str:
    metrics.count_failure(
        claimed.stage, error.code if isinstance(error, ScenefleetError) else type(error).__name__
    )
    notify(
        runtime.transact(
            lambda session: attempts.fail(session, claimed, error, runtime.policy), locked_s=LOCKED_S
        )
    )
    changes.publish(changes.of_claim(claimed))
    return "failed"


def _clean_up(claimed: Claim, runtime: Runtime, stored: Sequence[tuple[Bucket, str]]) -> None:
    """Remove the objects of a lost attempt, then end its lease, for which a delete waits."""
    try:
        # A commit whose answer was lost: the job is done, and rows refer to what this attempt stored.
        if runtime.transact(lambda session: attempts.is_finished(session, claimed)):
            return
        if claimed.subject.kind == "video":
            name = runtime.transact(lambda session: name_video(session, claimed.video_id))
            for bucket, prefix in stages.attempt_prefixes(claimed, name):
                runtime.storage.delete_prefix(bucket, prefix)
        for bucket, key in stored:
            runtime.storage.delete(bucket, key)
        runtime.transact(lambda session: attempts.end_lease(session, claimed))
    except Outage as error:
        # The sweep removes the rest, and the lease expires.
        log.warning("clean-up put off", error=error)
