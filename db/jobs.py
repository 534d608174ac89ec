"""The ledger: claim, lease, finish, fail, expire. A job is done once, whatever dies.

A job is about a subject: a video, a person, or a switch of models. Lock order is always the subject's row first, then jobs. A claim and a beat touch one job's row and nothing else.
Times are ``clock_timestamp()`` of Postgres; no worker's clock is trusted. Every function works inside the caller's
transaction (``db.engine.transact``) and may run again. A function that makes jobs claimable returns their bells, to
be rung after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.orm import Session

from db.tables import Job, ModelSwitch, Person, Video
from shared.errors import LeaseLost, ScenefleetError
from shared.routing import LANES

MAX_ERROR_CHARS = 2000
#: What a job is about; its row is locked first, and says which run counts.
Subject = Video | Person | ModelSwitch
NOW = func.clock_timestamp()


def seconds_from_now(seconds: float) -> Any:
    """A time by Postgres's clock, as an SQL expression."""
    return NOW + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


@dataclass(frozen=True)
class Bell:
    """Work waits in this lane; the job's id rides along for the logs."""

    lane: str
    job_id: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt at a job, ours while the lease lasts."""

    job_id: int
    attempt: int
    owner: str
    #: Empty when the job is not about a video.
    video_id: str
    user_id: str
    lane: str
    run: int
    stage: str
    part: int
    failures: int
    payload: Mapping[str, Any]
    subject_kind: str = "video"
    #: Of a subject that is no video.
    subject_id: str = ""

    @property
    def storage_part(self) -> str:
        """The folder only this attempt writes to."""
        return f"{self.job_id}.{self.attempt}"

    @property
    def subject(self) -> tuple[str, str]:
        """Kind and id of what the job is about."""
        return (self.subject_kind, self.video_id if self.subject_kind == "video" else self.subject_id)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When a job is tried again, and when it is given up."""

    max_outages: int
    backoff_s: float
    backoff_max_s: float


# The users who wait in a lane are found by hopping through the index, and of each only the next few jobs are looked
# at: a claim costs the same with ten waiting jobs as with a million.
_CLAIM = text(
    """
    WITH RECURSIVE waiting AS (
        (SELECT user_id FROM jobs WHERE lane = :lane AND state = 'queued' ORDER BY user_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT jobs.user_id FROM jobs
            WHERE jobs.lane = :lane AND jobs.state = 'queued' AND jobs.user_id > waiting.user_id
            ORDER BY jobs.user_id LIMIT 1
        ) FROM waiting WHERE waiting.user_id IS NOT NULL
    ), busy AS (
        SELECT user_id, count(*) AS running FROM jobs WHERE state = 'running' AND lane = :lane GROUP BY user_id
    ), best AS MATERIALIZED (
        SELECT next.job_id, next.priority, next.created_at, coalesce(busy.running, 0) AS running
        FROM waiting LEFT JOIN busy USING (user_id) CROSS JOIN LATERAL (
            SELECT job_id, priority, created_at FROM jobs
            WHERE lane = :lane AND state = 'queued' AND user_id = waiting.user_id
              AND not_before <= clock_timestamp()
            ORDER BY priority DESC, created_at, job_id LIMIT 16
        ) next
        ORDER BY next.priority DESC, running, next.created_at, next.job_id LIMIT :width
    )
    UPDATE jobs SET
        state = 'running', attempt = attempt + 1, lease_owner = :owner,
        lease_until = clock_timestamp() + make_interval(secs => :lease_s),
        started_at = clock_timestamp(), finished_at = NULL, progress = 0
    WHERE job_id = (
        SELECT jobs.job_id FROM jobs JOIN best USING (job_id) WHERE jobs.state = 'queued'
        ORDER BY best.priority DESC, best.running, best.created_at, best.job_id
        LIMIT 1 FOR UPDATE OF jobs SKIP LOCKED
    )
    RETURNING job_id, attempt, lease_owner AS owner, coalesce(video_id, '') AS video_id, user_id, lane, run, stage, part,
        failures, payload, subject_kind, subject_id
    """
)
#: What a user asked to be erased is erased, however long the storage is away: these stages are never given up.
_ERASURES = ("erase", "forget")
#: How many of the best jobs a claim looks at: more than there are claims at the same moment.
_CLAIM_WIDTH = 64


def claim(session: Session, lane: str, owner: str, lease_s: float) -> Claim | None:
    """Take the best claimable job of a lane: by priority, then the user with the fewest running, then age."""
    row = (
        session.execute(_CLAIM, {"lane": lane, "owner": owner, "lease_s": lease_s, "width": _CLAIM_WIDTH})
        .mappings()
        .one_or_none()
    )
    return None if row is None else Claim(**row)


def mark_started(session: Session, claimed: Claim) -> None:
    """The video's first job runs: it is being processed."""
    session.execute(
        update(Video)
        .where(
            Video.video_id == claimed.video_id,
            Video.run == claimed.run,
            Video.state == "uploaded",
        )
        .values(state="processing")
    )


def _mine(claimed: Claim) -> Any:
    return (
        (Job.job_id == claimed.job_id)
        & (Job.attempt == claimed.attempt)
        & (Job.lease_owner == claimed.owner)
        & (Job.state == "running")
    )


def beat(session: Session, claimed: Claim, progress: float, lease_s: float) -> bool:
    """Renew the lease and report progress (0..1). False: the job is no longer ours, stop."""
    result = session.execute(
        update(Job)
        .where(_mine(claimed))
        .values(
            lease_until=seconds_from_now(lease_s),
            progress=min(max(progress, 0.0), 1.0),
        )
    )
    return result.rowcount == 1  # type: ignore[attr-defined, no-any-return]


def let_go(session: Session, claimed: Claim) -> None:
    """Say that a lost attempt has stopped, so that a delete need not wait for its lease to run out."""
    session.execute(
        update(Job)
        .where(
            Job.job_id == claimed.job_id,
            Job.attempt == claimed.attempt,
            Job.lease_owner == claimed.owner,
            Job.state != "running",
        )
        .values(lease_owner=None, lease_until=None)
    )


def lock_video(session: Session, video_id: str, *, skip_locked: bool = False) -> Video | None:
    """The video's row, locked: the first lock of every transaction that changes its jobs.

    ``skip_locked``, here and below: None also where another transaction has it locked.
    """
    return session.scalars(
        select(Video).where(Video.video_id == video_id).with_for_update(skip_locked=skip_locked),
        execution_options={"populate_existing": True},
    ).one_or_none()


def lock_person(session: Session, person_id: str, *, skip_locked: bool = False) -> Person | None:
    """The person's row, locked; rows that refer to it may still be written (a video's transaction does that)."""
    return session.scalars(
        select(Person)
        .where(Person.person_id == person_id)
        .with_for_update(key_share=True, skip_locked=skip_locked),
        execution_options={"populate_existing": True},
    ).one_or_none()


def lock_switch(session: Session, switch_id: str, *, skip_locked: bool = False) -> ModelSwitch | None:
    """The switch's row, locked; whoever only makes sure that its models are kept need not wait."""
    return session.scalars(
        select(ModelSwitch)
        .where(ModelSwitch.switch_id == int(switch_id))
        .with_for_update(key_share=True, skip_locked=skip_locked),
        execution_options={"populate_existing": True},
    ).one_or_none()


_LOCKS: Mapping[str, Callable[..., Subject | None]] = {
    "video": lock_video,
    "person": lock_person,
    "switch": lock_switch,
}


def lock_subject(
    session: Session, kind: str, subject_id: str, *, skip_locked: bool = False
) -> Subject | None:
    """The row of what a job is about, locked."""
    return _LOCKS[kind](session, subject_id, skip_locked=skip_locked)


def fence(session: Session, claimed: Claim) -> tuple[Subject, Job]:
    """Lock the subject, then the job, and prove that this attempt may still change anything.

    Raises:
        LeaseLost: another attempt, a cancel, a rerun or a delete took the job.
    """
    subject = lock_subject(session, *claimed.subject)
    job = session.scalars(select(Job).where(_mine(claimed)).with_for_update()).one_or_none()
    if subject is None or job is None:
        raise LeaseLost(f"job {claimed.job_id} attempt {claimed.attempt} is no longer ours")
    if job.run != subject.run or (subject.deleted_at is not None and job.stage not in _ERASURES):
        raise LeaseLost(f"job {claimed.job_id} belongs to run {job.run}, which is over")
    return subject, job


def finish(
    session: Session,
    claimed: Claim,
    write: Callable[[Session], None],
    result: Mapping[str, Any],
    advance: Callable[[Session, Subject], list[Bell]],
) -> list[Bell]:
    """Write the outputs, mark the job done and start what follows, in one transaction.

    Done again after a commit whose answer was lost, it changes nothing; the reconciler rings the bells then.

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
    _end(session, job, "done")
    return advance(session, subject)


def is_finished(session: Session, claimed: Claim) -> bool:
    """Whether this very attempt has been committed as done: nobody else can have done that."""
    done = (Job.job_id == claimed.job_id) & (Job.attempt == claimed.attempt) & (Job.state == "done")
    return session.scalars(select(Job.job_id).where(done)).one_or_none() is not None


def fail(
    session: Session,
    claimed: Claim,
    error: BaseException,
    policy: RetryPolicy,
    advance: Callable[[Session, Subject], list[Bell]],
) -> list[Bell]:
    """Record an attempt's error: queue the job again with backoff, or give it up.

    Raises:
        LeaseLost: the attempt is fenced out.
    """
    subject, job = fence(session, claimed)
    return _fail(session, subject, job, error, policy, advance)


def _fail(
    session: Session,
    subject: Subject,
    job: Job,
    error: BaseException,
    policy: RetryPolicy,
    advance: Callable[[Session, Subject], list[Bell]],
) -> list[Bell]:
    known = isinstance(error, ScenefleetError)
    # An unknown exception may be a passing one (memory, a library's race): it is retried, and counted.
    retryable = error.retryable if isinstance(error, ScenefleetError) else True
    counted = error.counted if isinstance(error, ScenefleetError) else True
    job.error_class = error.code if isinstance(error, ScenefleetError) else type(error).__name__
    message = str(error) if known else f"{type(error).__name__}: {error}"
    job.error = message.replace("\x00", "\ufffd").encode(errors="replace").decode()[:MAX_ERROR_CHARS]
    if counted:
        job.failures += 1
    else:
        job.outages += 1
    given_up = not retryable or job.failures >= job.max_failures or job.outages >= policy.max_outages
    given_up = given_up and job.stage not in _ERASURES
    if given_up:
        _end(session, job, "failed")
        return advance(session, subject)
    tries = job.failures + job.outages
    wait_s = min(policy.backoff_max_s, policy.backoff_s * 2 ** min(tries - 1, 20))
    _requeue(session, job, wait_s)
    return []


def defer(session: Session, claimed: Claim, wait_s: float) -> None:
    """Put the job back for later; not an error.

    Raises:
        LeaseLost: the attempt is fenced out.
    """
    _, job = fence(session, claimed)
    _requeue(session, job, wait_s)


def _requeue(session: Session, job: Job, wait_s: float) -> None:
    job.state = "queued"
    job.not_before = seconds_from_now(wait_s)
    job.lease_owner = job.lease_until = None
    session.flush()


def _end(session: Session, job: Job, state: str) -> None:
    job.device_seconds = func.coalesce(Job.device_seconds, 0) + func.extract("epoch", NOW - Job.started_at)
    job.state = state
    job.finished_at = NOW
    job.lease_owner = job.lease_until = None
    session.flush()


@dataclass(frozen=True)
class Held:
    """A running job as the reconciler sees it."""

    job_id: int
    attempt: int
    subject_kind: str
    subject_id: str
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
        ).where(Job.state == "running")
    )
    return [
        Held(
            row.job_id,
            row.attempt,
            row.subject_kind,
            row.subject_id,
            row.lease_owner or "",
            bool(row.expired),
        )
        for row in rows
    ]


def take_back(
    session: Session,
    held: Held,
    error: ScenefleetError,
    policy: RetryPolicy,
    advance: Callable[[Session, Subject], list[Bell]],
) -> list[Bell] | None:
    """Fail an attempt whose worker is gone. None: it has ended or been renewed meanwhile, or its rows are locked now."""
    subject = lock_subject(session, held.subject_kind, held.subject_id, skip_locked=True)
    condition = (Job.job_id == held.job_id) & (Job.attempt == held.attempt) & (Job.state == "running")
    if held.expired:
        condition &= Job.lease_until < NOW
    job = session.scalars(select(Job).where(condition).with_for_update(skip_locked=True)).one_or_none()
    if subject is None or job is None:
        return None
    return _fail(session, subject, job, error, policy, advance)


def release(session: Session, owner_prefix: str) -> int:
    """Give back, uncounted and at once, what a stopping node still holds. Returns how many jobs."""
    result = session.execute(
        text(
            "UPDATE jobs SET state = 'queued', not_before = clock_timestamp(), lease_owner = NULL, lease_until = NULL"
            " WHERE job_id IN (SELECT job_id FROM jobs"
            " WHERE state = 'running' AND starts_with(lease_owner, :prefix) FOR UPDATE SKIP LOCKED)"
        ),
        {"prefix": owner_prefix},
    )
    return result.rowcount  # type: ignore[attr-defined, no-any-return]


def claimable(session: Session) -> dict[str, list[int]]:
    """Per lane, the ids of jobs that could be claimed now (at most 1,000 a lane: bells needed are few)."""
    rows = session.execute(
        text(
            """
            SELECT lanes.lane, waiting.job_id FROM unnest(CAST(:lanes AS text[])) AS lanes(lane) CROSS JOIN LATERAL (
                SELECT job_id FROM jobs
                WHERE lane = lanes.lane AND state = 'queued' AND not_before <= clock_timestamp() LIMIT 1000
            ) waiting
            """
        ),
        {"lanes": list(LANES)},
    )
    lanes: dict[str, list[int]] = {}
    for lane, job_id in rows:
        lanes.setdefault(lane, []).append(job_id)
    return lanes


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


def cancel(session: Session, *which: ColumnElement[bool]) -> int:
    """Cancel those of some jobs that have not ended; a running attempt keeps its lease until it notices. Returns how many."""
    result = session.execute(
        update(Job)
        .where(*which, Job.state.in_(("queued", "running")))
        .values(state="cancelled", finished_at=NOW)
    )
    return result.rowcount  # type: ignore[attr-defined, no-any-return]


def try_failed_again(session: Session, *which: ColumnElement[bool]) -> list[Bell]:
    """Queue those of some jobs again that were given up. Failures start from zero; attempts go on counting, they are the fence."""
    again = session.execute(
        update(Job)
        .where(*which, Job.state == "failed")
        .values(
            state="queued",
            failures=0,
            outages=0,
            not_before=NOW,
            error_class=None,
            error=None,
            finished_at=None,
        )
        .returning(Job.lane, Job.job_id)
    )
    return [Bell(row.lane, row.job_id) for row in again]


def insert(session: Session, jobs: Sequence[Job]) -> list[Bell]:
    """Add jobs; returns bells for those that can be claimed at once."""
    session.add_all(jobs)
    session.flush()
    return [Bell(job.lane, job.job_id) for job in jobs if job.state == "queued"]
