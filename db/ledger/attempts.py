"""Attempts: what whoever holds a claim may do with its job, and what others do when the holder is gone.

Lock order is the subject's row first, then jobs, then rows of ``queue_usage`` (db/ledger/usage.py), at the very end; a
beat touches one job's row, and waits for nothing. Times are ``clock_timestamp()`` of Postgres; no worker's clock is
trusted. Every function works inside the caller's transaction (``db.engine.transact``) and may run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.orm import Session

from db.expressions import NOW, seconds_from_now, seconds_since
from db.ledger import subjects, usage
from db.ledger.claims import Claim
from db.ledger.jobs import RAN_S, Subject, SubjectRow, WakeUp
from db.ledger.policy import RunPolicy
from db.tables import Job, JobState, Video
from shared import graph
from shared.errors import LeaseLost, ScenefleetError
from shared.paths import hide_paths

MAX_ERROR_CHARS = 2000


def mark_started(session: Session, claimed: Claim) -> None:
    """The video's first job runs: it is being processed. Where somebody has the row locked, work does not wait for this."""
    if claimed.subject.kind != "video":
        return
    free = (
        select(Video.video_id)
        .where(Video.video_id == claimed.video_id, Video.run == claimed.run, Video.state == "uploaded")
        .with_for_update(skip_locked=True)
    )
    session.execute(update(Video).where(Video.video_id.in_(free)).values(state="processing"))


def _mine(claimed: Claim) -> ColumnElement[bool]:
    return (
        (Job.job_id == claimed.job_id)
        & (Job.attempt == claimed.attempt)
        & (Job.lease_owner == claimed.owner)
        & (Job.state == JobState.RUNNING)
    )


def beat(session: Session, claimed: Claim, progress: float, lease_s: float) -> bool:
    """Renew the lease and report progress (0..1). False: the job is no longer ours, stop."""
    result = session.execute(
        update(Job)
        .where(_mine(claimed))
        .values(lease_until=seconds_from_now(lease_s), progress=min(max(progress, 0.0), 1.0))
    )
    return result.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def end_lease(session: Session, claimed: Claim) -> None:
    """Say that a lost attempt has stopped, so that a delete need not wait for its lease to run out."""
    since_s = seconds_since(Job.finished_at)
    late = session.execute(
        update(Job)
        .where(
            Job.job_id == claimed.job_id,
            Job.attempt == claimed.attempt,
            Job.lease_owner == claimed.owner,
            Job.state != JobState.RUNNING,
        )
        .values(
            lease_owner=None,
            lease_until=None,
            device_seconds=func.coalesce(Job.device_seconds, 0.0) + since_s,
        )
        .returning(Job.queue, Job.account, since_s.label("seconds"))
    )
    for row in late:
        usage.add_seconds(session, row.queue, row.account, row.seconds)


def fence(session: Session, claimed: Claim) -> tuple[SubjectRow, Job]:
    """Lock the subject, then the job, and prove that this attempt may still change anything.

    Raises:
        LeaseLost: another attempt, a cancel, a rerun or a delete took the job.
    """
    subject = subjects.lock(session, claimed.subject)
    job = session.scalars(select(Job).where(_mine(claimed)).with_for_update()).one_or_none()
    if subject is None or job is None:
        raise LeaseLost(f"job {claimed.job_id} attempt {claimed.attempt} is no longer ours")
    stage = graph.find_stage(job.stage)
    over = job.run != subject.run and not stage.outlives_run
    if over or (subject.deleted_at is not None and not stage.outlives_subject):
        raise LeaseLost(f"job {claimed.job_id} belongs to run {job.run}, which is over")
    return subject, job


def finish(
    session: Session,
    claimed: Claim,
    write: Callable[[Session], None],
    result: Mapping[str, Any],
    policy: RunPolicy,
) -> list[WakeUp]:
    """Write the outputs, mark the job done and start what follows, in one transaction.

    Done again after a commit whose answer was lost, it changes nothing; the reconciler sends the wake-up messages then.

    Raises:
        LeaseLost: the attempt is fenced out; nothing is written.
    """
    try:
        subject, job = fence(session, claimed)
    except LeaseLost:
        if is_finished(session, claimed):
            return []
        raise
    write(session)
    job.result = dict(result)
    job.progress = 1.0
    job.error_class = job.error = None
    _end(session, job, JobState.DONE)
    return subjects.advance(session, subject, policy)


def is_finished(session: Session, claimed: Claim) -> bool:
    """Whether this attempt has been committed as done: no other one can have done that."""
    done = (Job.job_id == claimed.job_id) & (Job.attempt == claimed.attempt) & (Job.state == JobState.DONE)
    return session.scalars(select(Job.job_id).where(done)).one_or_none() is not None


def fail(session: Session, claimed: Claim, error: BaseException, policy: RunPolicy) -> list[WakeUp]:
    """Record an attempt's error: queue the job again with backoff, or give it up.

    Raises:
        LeaseLost: the attempt is fenced out.
    """
    subject, job = fence(session, claimed)
    return _fail(session, subject, job, error, policy)


def _fail(
    session: Session, subject: SubjectRow, job: Job, error: BaseException, policy: RunPolicy
) -> list[WakeUp]:
    known = isinstance(error, ScenefleetError)
    # An unknown exception may be a passing one (memory, a library's race): it is retried, and counted.
    retryable = error.retryable if isinstance(error, ScenefleetError) else True
    counted = error.counted if isinstance(error, ScenefleetError) else True
    job.error_class = error.code if isinstance(error, ScenefleetError) else type(error).__name__
    # A caller reads it in the status of the video; the node's log has the whole of it.
    message = hide_paths(str(error) if known else f"{type(error).__name__}: {error}")
    job.error = message.replace("\x00", "\ufffd").encode(errors="replace").decode()[:MAX_ERROR_CHARS]
    if counted:
        job.failures += 1
    else:
        job.outages += 1
    given_up = not retryable or job.failures >= job.max_failures or job.outages >= policy.max_outages
    if given_up and graph.find_stage(job.stage).may_be_given_up:
        _end(session, job, JobState.FAILED)
        return subjects.advance(session, subject, policy)
    tries = job.failures + job.outages
    wait_s = min(policy.backoff_max_s, policy.backoff_s * 2 ** min(tries - 1, 20))
    _requeue(session, job, wait_s)
    return []


def defer(
    session: Session, claimed: Claim, wait_s: float, policy: RunPolicy, *, progressed: bool = False
) -> list[WakeUp]:
    """Put the job back for later; not an error.

    Args:
        wait_s: the first pause, which doubles with every further one up to ``policy.defer_max_s`` (if that is longer).
        progressed: the attempt got on with its work: the pause is ``wait_s``, and the next one does not grow.

    Raises:
        LeaseLost: the attempt is fenced out.
    """
    _, job = fence(session, claimed)
    if progressed:
        job.deferrals = 0
    else:
        wait_s = max(wait_s, min(policy.defer_max_s, wait_s * 2.0 ** min(job.deferrals, 30)))
        job.deferrals += 1
    _requeue(session, job, wait_s)
    return [] if wait_s > 0 else [WakeUp(job.queue, job.job_id)]


def _stop_clock(session: Session, job: Job) -> None:
    """Add what the attempt has taken to its job and to its account; before its lease is ended."""
    seconds = max(0.0, session.execute(select(RAN_S).where(Job.job_id == job.job_id)).scalar_one() or 0.0)
    job.device_seconds = (job.device_seconds or 0.0) + seconds
    usage.add_seconds(session, job.queue, job.account, seconds)


def _requeue(session: Session, job: Job, wait_s: float) -> None:
    _stop_clock(session, job)
    usage.add_waiting(session, job.queue, job.account)
    job.state = JobState.QUEUED
    job.not_before = seconds_from_now(wait_s)
    job.lease_owner = job.lease_until = None
    session.flush()


def _end(session: Session, job: Job, state: JobState) -> None:
    _stop_clock(session, job)
    job.state = state
    job.finished_at = NOW
    job.lease_owner = job.lease_until = None
    session.flush()


@dataclass(frozen=True)
class Held:
    """A running job as the reconciler sees it."""

    job_id: int
    attempt: int
    subject: Subject
    owner: str
    expired: bool


def held_jobs(session: Session) -> list[Held]:
    """Every running job, its owner and whether its lease has run out."""
    rows = session.execute(
        select(
            Job.job_id,
            Job.attempt,
            Job.subject_kind,
            Job.subject_id,
            Job.lease_owner,
            (Job.lease_until < NOW).label("expired"),
        ).where(Job.state == JobState.RUNNING)
    )
    return [
        Held(job_id, attempt, Subject(kind, subject_id), owner or "", bool(expired))
        for job_id, attempt, kind, subject_id, owner, expired in rows
    ]


def reclaim(session: Session, held: Held, error: ScenefleetError, policy: RunPolicy) -> list[WakeUp] | None:
    """Fail an attempt whose worker is gone. None: it has ended or been renewed meanwhile, or its rows are locked now."""
    subject = subjects.lock(session, held.subject, skip_locked=True)
    condition = (Job.job_id == held.job_id) & (Job.attempt == held.attempt) & (Job.state == JobState.RUNNING)
    if held.expired:
        condition &= Job.lease_until < NOW
    job = session.scalars(select(Job).where(condition).with_for_update(skip_locked=True)).one_or_none()
    if subject is None or job is None:
        return None
    return _fail(session, subject, job, error, policy)


def release(session: Session, owner_prefix: str) -> int:
    """Give back, uncounted and at once, what a stopping node still holds. Returns how many jobs."""
    released = session.execute(
        text(
            "UPDATE jobs SET state = 'queued', not_before = clock_timestamp(), lease_owner = NULL, lease_until = NULL,"
            " device_seconds = coalesce(device_seconds, 0) + extract(epoch FROM clock_timestamp() - started_at)"
            " WHERE job_id IN (SELECT job_id FROM jobs"
            " WHERE state = 'running' AND starts_with(lease_owner, :prefix) FOR UPDATE SKIP LOCKED)"
            " RETURNING queue, account, extract(epoch FROM clock_timestamp() - started_at) AS seconds"
        ),
        {"prefix": owner_prefix},
    ).all()
    for row in released:
        usage.add_seconds(session, row.queue, row.account, row.seconds)
        usage.add_waiting(session, row.queue, row.account)
    return len(released)


def leases_held(session: Session, video_id: str, *, but: int) -> int:
    """How many attempts may still be at work on a video, the job ``but`` left out."""
    return session.scalars(
        select(func.count())
        .select_from(Job)
        .where(
            Job.video_id == video_id,
            Job.job_id != but,
            Job.lease_owner.is_not(None),
            Job.lease_until > NOW,
        )
    ).one()
