"""Attempts: what the holder of a claim does with its job, and what others do when the holder is gone.

Lock order is the subject's row, then jobs, then rows of ``queue_usage`` (db/ledger/usage.py); ``beat`` locks only its
job's row. Times are ``clock_timestamp()`` of Postgres; no worker's clock is trusted. Every function works inside the
caller's transaction (``db.engine.transact``) and may run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.orm import Session

from db.expressions import NOW, seconds_from_now, seconds_since
from db.ledger import bisection, jobs, subjects, usage
from db.ledger.claims import Claim
from db.ledger.jobs import RAN_S, Subject, SubjectRow, WakeUp
from db.ledger.policy import RunPolicy
from db.tables import LIVE, Job, JobState, Video
from shared import graph
from shared.errors import LeaseLost, ScenefleetError, WorkerLost
from shared.paths import hide_paths

MAX_ERROR_CHARS = 2000


def mark_started(session: Session, claimed: Claim) -> None:
    """Set the state of a video whose first job runs to ``processing``, unless its row is locked."""
    if claimed.subject.kind != "video":
        return
    new = (Video.video_id == claimed.video_id) & (Video.run == claimed.run) & (Video.state == "uploaded")
    free = select(Video.video_id).where(new).with_for_update(skip_locked=True)
    session.execute(update(Video).where(Video.video_id.in_(free)).values(state="processing"))


def _is_attempt(of: Claim | Held) -> ColumnElement[bool]:
    return (Job.job_id == of.job_id) & (Job.attempt == of.attempt)


def _is_held(claimed: Claim) -> ColumnElement[bool]:
    return _is_attempt(claimed) & (Job.lease_owner == claimed.owner) & (Job.state == JobState.RUNNING)


def beat(session: Session, claimed: Claim, progress: float, lease_s: float) -> bool:
    """Renew the lease and report progress (0..1). False: the job belongs to this attempt no longer."""
    values = {"lease_until": seconds_from_now(lease_s), "progress": min(max(progress, 0.0), 1.0)}
    result = session.execute(update(Job).where(_is_held(claimed)).values(values))
    return result.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def mark_alone(session: Session, claimed: Claim) -> None:
    """Note that the attempt begins alone on its node. The time it has waited for that is not its user's.

    Raises:
        LeaseLost: the job belongs to this attempt no longer.
    """
    values = {"alone_attempt": claimed.attempt, "started_at": NOW}
    noted = session.execute(update(Job).where(_is_held(claimed)).values(values))
    if not noted.rowcount:  # type: ignore[attr-defined]
        raise LeaseLost(f"job {claimed.job_id} attempt {claimed.attempt} is no longer ours")


def end_lease(session: Session, claimed: Claim) -> None:
    """End the lease of a lost attempt that has stopped, so that a delete need not wait for its expiry."""
    since_s = seconds_since(Job.finished_at)
    total_s = func.coalesce(Job.device_seconds, 0.0) + since_s
    late = session.execute(
        update(Job)
        .where(_is_attempt(claimed), Job.lease_owner == claimed.owner, Job.state != JobState.RUNNING)
        .values(lease_owner=None, lease_until=None, device_seconds=total_s)
        .returning(Job.queue, Job.account, since_s.label("seconds"))
    )
    for row in late:
        usage.add_seconds(session, row.queue, row.account, row.seconds)


def fence(session: Session, claimed: Claim) -> tuple[SubjectRow, Job]:
    """Lock the subject, then the job, and check that the job still belongs to this attempt.

    Raises:
        LeaseLost: another attempt, a cancel, a rerun or a delete took the job.
    """
    subject = subjects.lock(session, claimed.subject)
    job = session.scalars(select(Job).where(_is_held(claimed)).with_for_update()).one_or_none()
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
    """Write the outputs, mark the job done and start what follows.

    Repeated after a commit whose answer was lost it changes nothing; the reconciler sends the wake-up messages then.

    Raises:
        LeaseLost: the attempt is fenced out; nothing is written.
    """
    try:
        subject, job = fence(session, claimed)
    except LeaseLost:
        if is_finished(session, claimed):
            return []
        raise
    if bisection.survived(job, policy):
        _requeue(session, job, 0.0)
        return [WakeUp(job.queue, job.job_id)]
    write(session)
    job.result = dict(result)
    job.progress = 1.0
    job.not_looked_at = bisection.left_out(job)
    if job.not_looked_at is None:
        job.error_class = job.error = None
    _end(session, job, JobState.DONE)
    return subjects.advance_after(session, subject, job, policy)


def is_finished(session: Session, claimed: Claim) -> bool:
    """Whether this attempt has been committed as done."""
    done = select(Job.job_id).where(_is_attempt(claimed), Job.state == JobState.DONE)
    return session.scalars(done).one_or_none() is not None


def fail(session: Session, claimed: Claim, error: BaseException, policy: RunPolicy) -> list[WakeUp]:
    """Record an attempt's error: queue the job again after a pause, or fail it for good.

    Raises:
        LeaseLost: the attempt is fenced out.
    """
    subject, job = fence(session, claimed)
    return _fail(session, subject, job, error, policy)


def _fail(
    session: Session, subject: SubjectRow, job: Job, error: BaseException, policy: RunPolicy
) -> list[WakeUp]:
    if isinstance(error, ScenefleetError):
        retryable, counted, job.error_class, message = error.retryable, error.counted, error.code, str(error)
    else:
        # May be transient (memory, a race in a library): it is retried, and counted.
        retryable, counted, job.error_class = True, True, type(error).__name__
        message = f"{type(error).__name__}: {error}"
    # Callers read it in the video's status; the node's log has all of it.
    message = hide_paths(message).replace("\x00", "\ufffd").encode(errors="replace").decode()
    job.error = message[:MAX_ERROR_CHARS]
    if isinstance(error, WorkerLost):
        job.deaths += 1
        job.deaths_alone += job.alone_attempt == job.attempt
    elif counted:
        job.failures += 1
    else:
        job.outages += 1
    may_be_given_up = graph.find_stage(job.stage).may_be_given_up
    tries = job.failures + job.outages + job.deaths
    wait_s = min(policy.backoff_max_s, policy.backoff_s * 2 ** min(tries - 1, 20))
    given_up = not retryable or job.failures >= job.max_failures or job.outages >= policy.max_outages
    if job.deaths >= policy.max_deaths and job.deaths_alone >= policy.max_deaths_alone and may_be_given_up:
        cut = bisection.cut(session, subject, job, policy)
        for half in cut or ():
            half.not_before = seconds_from_now(wait_s)
        jobs.insert(session, cut or ())
        given_up |= cut is None
    if given_up and may_be_given_up:
        _end(session, job, JobState.FAILED)
        return subjects.advance_after(session, subject, job, policy)
    _requeue(session, job, wait_s)
    return []


def defer(
    session: Session, claimed: Claim, wait_s: float, policy: RunPolicy, *, progressed: bool = False
) -> list[WakeUp]:
    """Queue the job again for later, without counting a failure.

    Args:
        wait_s: the first pause, which doubles with every further one up to ``policy.defer_max_s`` (if that is longer).
        progressed: the attempt made progress: the pause is ``wait_s``, and the next one does not grow.

    Raises:
        LeaseLost: the attempt is fenced out.
    """
    _, job = fence(session, claimed)
    if progressed:
        job.deferrals = job.deaths = job.deaths_alone = 0
    else:
        wait_s = max(wait_s, min(policy.defer_max_s, wait_s * 2.0 ** min(job.deferrals, 30)))
        job.deferrals += 1
    _requeue(session, job, wait_s)
    return [] if wait_s > 0 else [WakeUp(job.queue, job.job_id)]


def _stop_clock(session: Session, job: Job) -> None:
    """Add the attempt's device time to its job and its account; before its lease is ended."""
    seconds = max(0.0, session.execute(select(RAN_S).where(Job.job_id == job.job_id)).scalar_one() or 0.0)
    job.device_seconds = (job.device_seconds or 0.0) + seconds
    usage.add_seconds(session, job.queue, job.account, seconds)


def _requeue(session: Session, job: Job, wait_s: float) -> None:
    _stop_clock(session, job)
    usage.add_waiting(session, job.queue, job.account, deferred=wait_s > 0)
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
    user_id: str
    owner: str
    expired: bool


def held_jobs(session: Session) -> list[Held]:
    """Every running job, its owner and whether its lease has expired."""
    about = (Job.subject_kind, Job.subject_id, Job.user_id)
    held = (Job.job_id, Job.attempt, *about, Job.lease_owner, Job.lease_until < NOW)
    rows = session.execute(select(*held).where(Job.state == JobState.RUNNING))
    return [
        Held(job_id, attempt, Subject(kind, subject_id), user_id, owner or "", bool(expired))
        for job_id, attempt, kind, subject_id, user_id, owner, expired in rows
    ]


def reclaim(session: Session, held: Held, error: ScenefleetError, policy: RunPolicy) -> list[WakeUp] | None:
    """Fail an attempt whose worker is gone. None: it has ended or been renewed since, or its rows are locked."""
    subject = subjects.lock(session, held.subject, skip_locked=True)
    if subject is None:
        # Whoever has it may be about to take the job back too: leave them the job.
        return None
    condition = _is_attempt(held) & (Job.state == JobState.RUNNING)
    if held.expired:
        condition &= Job.lease_until < NOW
    job = session.scalars(select(Job).where(condition).with_for_update(skip_locked=True)).one_or_none()
    return None if job is None else _fail(session, subject, job, error, policy)


def release(session: Session, owner_prefix: str) -> int:
    """Queue the jobs of a stopping node again, without counting a failure. Returns how many."""
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


def leases_held(session: Session, video_id: str, *, but: int, late: bool = True) -> int:
    """The number of attempts that may still run for a video, without those of the job ``but``, and of late stages unless ``late``."""
    others = (Job.video_id == video_id) & (Job.job_id != but)
    if not late:
        others &= Job.stage.not_in(graph.LATE)
    held = Job.lease_owner.is_not(None) & (Job.lease_until > NOW)
    return session.scalars(select(func.count()).where(others, held)).one()


def live_jobs(session: Session, video_id: str, stages: Sequence[str]) -> list[int]:
    """The jobs of some stages of a video that wait, run, or whose attempt may still run."""
    held = Job.lease_owner.is_not(None) & (Job.lease_until > NOW)
    which = (Job.video_id == video_id, Job.stage.in_(stages), Job.state.in_(LIVE) | held)
    return list(session.scalars(select(Job.job_id).where(*which)))
