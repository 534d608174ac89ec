"""The ledger: claim, lease, finish, fail, expire. A job is done once, whatever dies.

A job is about a subject: a video, a person, or a switch of models. Lock order is always the subject's row first, then jobs, then
rows of ``queue_usage`` (db/ledger/usage.py), at the very end. A claim and a beat touch one job's row, and wait for nothing.
Times are ``clock_timestamp()`` of Postgres; no worker's clock is trusted. Every function works inside the caller's
transaction (``db.engine.transact``) and may run again. A function that makes jobs claimable returns their wake-up messages, to
be rung after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Double,
    Text,
    any_,
    case,
    cast,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from db.ledger import usage
from db.locks import AdvisoryLock
from db.tables import Job, ModelSwitch, Person, Video
from shared import graph
from shared.errors import LeaseLost, ScenefleetError
from shared.paths import hide_paths
from shared.routing import JOB_QUEUES
from shared.settings import get_settings

MAX_ERROR_CHARS = 2000
#: What a job is about; its row is locked first, and says which run counts.
Subject = Video | Person | ModelSwitch
NOW = func.clock_timestamp()


def seconds(count: float) -> Any:
    """An interval, as an SQL expression."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


def seconds_from_now(count: float) -> Any:
    """A time by Postgres's clock, as an SQL expression."""
    return NOW + seconds(count)


@dataclass(frozen=True)
class WakeUp:
    """Work waits in this queue; the job's id rides along for the logs."""

    queue: str
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
    queue: str
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
    #: Longest pause of a job that waits for something else.
    defer_max_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class ClaimRules:
    """How a claim chooses among accounts, and among the jobs of one."""

    usage_half_life_s: float = 3600.0
    #: Account -> share; others have 1. The empty account is the fleet's own.
    weights: Mapping[str, float] = field(default_factory=dict)
    #: A waiting job gains a step of priority after so long, seconds.
    priority_ageing_s: float = 300.0
    #: Jobs of one account that may run at once in one queue; 0: no limit.
    max_running: int = 0


def configured_rules() -> ClaimRules:
    """The rules of this process's settings."""
    settings = get_settings()
    return ClaimRules(
        usage_half_life_s=settings.usage_half_life_s,
        weights={**settings.weights, "": settings.fleet_weight},
        priority_ageing_s=settings.priority_ageing_s,
        max_running=settings.user_max_running_jobs,
    )


# Whose turn it is stands in an index, but for the few accounts whose level it doesn't tell: those with a weight, and
# those with running jobs, whose seconds so far, one each at least, count too. From account to account it is looked for a job that is free,
# and the first one is taken: the cost is that of the accounts looked at, however many wait, with however many jobs.
_CLAIM = text(
    f"""
    WITH clock AS MATERIALIZED (
        SELECT now, extract(epoch FROM now)::float8 * {usage.RATE.format(half_life="CAST(:half_life_s AS float8)")} AS shift
        FROM (SELECT clock_timestamp() AS now) AS read
    ), busy AS MATERIALIZED (
        SELECT account, count(*) AS running,
            sum(greatest(extract(epoch FROM least(clock.now, lease_until) - started_at), 1))::float8 AS seconds
        FROM jobs CROSS JOIN clock WHERE state = 'running' AND queue = :queue GROUP BY account
    ), special AS MATERIALIZED (
        SELECT account, coalesce(running, 0) AS running, coalesce(seconds, 0) AS seconds, coalesce(weight, 1) AS weight
        FROM busy FULL JOIN unnest(CAST(:accounts AS text[]), CAST(:weights AS float8[])) AS given(account, weight)
            USING (account)
    ), candidates AS MATERIALIZED (
        (
            SELECT account, level, waiting_since FROM queue_usage
            WHERE queue = :queue AND waiting AND account <> ALL(ARRAY(SELECT account FROM special))
            ORDER BY level, waiting_since LIMIT :width
        )
        UNION ALL
        SELECT special.account,
            CASE WHEN seconds > 0 THEN ln(exp(greatest(level - shift, {usage.LEAST})) + seconds) + shift ELSE level END
                - ln(weight),
            waiting_since
        FROM special CROSS JOIN clock CROSS JOIN LATERAL (
            SELECT level, waiting_since FROM queue_usage
            WHERE queue = :queue AND queue_usage.account = special.account AND waiting LIMIT 1
        ) own
        WHERE :max_running = 0 OR running < :max_running
    ), turns AS MATERIALIZED (
        SELECT account, row_number() OVER (ORDER BY level, waiting_since, account) AS turn FROM candidates
    ), chosen AS MATERIALIZED (
        SELECT free.job_id, sorted.turn FROM (SELECT account, turn FROM turns ORDER BY turn) sorted
        CROSS JOIN LATERAL (
            SELECT job.job_id FROM (
                SELECT priority, depth, not_before
                FROM ({usage.HEADS.format(queue=":queue", account="sorted.account")}) first, clock
                WHERE not_before <= now
                ORDER BY priority + floor(extract(epoch FROM now - not_before)::float8 / CAST(:ageing_s AS float8)) DESC,
                    depth DESC, not_before
            ) head CROSS JOIN LATERAL (
                SELECT job_id FROM jobs
                WHERE queue = :queue AND account = sorted.account AND state = 'queued'
                    AND priority = head.priority AND depth = head.depth AND not_before <= (SELECT now FROM clock)
                ORDER BY not_before, job_id LIMIT 1 FOR UPDATE SKIP LOCKED
            ) job LIMIT 1
        ) free LIMIT 1
    ), taken AS (
        UPDATE jobs SET
            state = 'running', attempt = attempt + 1, lease_owner = :owner,
            lease_until = clock_timestamp() + make_interval(secs => :lease_s),
            started_at = clock_timestamp(), finished_at = NULL, progress = 0
        FROM chosen WHERE jobs.job_id = chosen.job_id
        RETURNING jobs.job_id, attempt, lease_owner AS owner, coalesce(video_id, '') AS video_id, user_id, queue, run,
            stage, part, failures, payload, subject_kind, subject_id
    )
    SELECT taken.*, ARRAY(
        SELECT account FROM turns WHERE turn < coalesce((SELECT turn FROM chosen), 2147483647)
    ) AS passed_over
    FROM (SELECT) AS one LEFT JOIN taken ON true
    """
)
#: How many accounts without running jobs a claim looks at: more than there are claims at the same moment.
_CLAIM_WIDTH = 64
#: How often it looks at the next ones, where none of those had a job.
_CLAIM_LOOKS = 20
#: With a limit on running jobs, one claim at a time counts them; the queue is the second half of the lock's key.
_LIMIT_LOCK = text(f"SELECT pg_advisory_xact_lock({AdvisoryLock.RUNNING_JOBS:d}, hashtext(:queue))")


def claim(
    session: Session, queue: str, owner: str, lease_s: float, rules: ClaimRules | None = None
) -> Claim | None:
    """Take the best claimable job of a queue: of the account that had the least device time there lately, then by age.

    Among an account's own jobs: by priority, which grows while they wait, then the later stage, then age.
    """
    rules = configured_rules() if rules is None else rules
    if rules.max_running:
        session.execute(_LIMIT_LOCK, {"queue": queue})
    usage.promote(session, queue)
    values = {
        "queue": queue,
        "owner": owner,
        "lease_s": lease_s,
        "width": _CLAIM_WIDTH,
        "half_life_s": rules.usage_half_life_s,
        "accounts": list(rules.weights),
        "weights": [float(weight) for weight in rules.weights.values()],
        "ageing_s": rules.priority_ageing_s,
        "max_running": rules.max_running,
    }
    for _ in range(_CLAIM_LOOKS):
        row = dict(session.execute(_CLAIM, values).mappings().one())
        passed_over = row.pop("passed_over")
        resting = usage.rest(session, queue, passed_over) if passed_over else 0
        if row["job_id"] is not None:
            return Claim(**row)
        if not resting or len(passed_over) < _CLAIM_WIDTH:
            break
    return None


def mark_started(session: Session, claimed: Claim) -> None:
    """The video's first job runs: it is being processed. Where somebody has the row locked, work does not wait for this."""
    free = (
        select(Video.video_id)
        .where(
            Video.video_id == claimed.video_id,
            Video.run == claimed.run,
            Video.state == "uploaded",
        )
        .with_for_update(skip_locked=True)
    )
    session.execute(update(Video).where(Video.video_id.in_(free)).values(state="processing"))


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


def end_lease(session: Session, claimed: Claim) -> None:
    """Say that a lost attempt has stopped, so that a delete need not wait for its lease to run out."""
    since_s = _seconds_since(Job.finished_at)
    late = session.execute(
        update(Job)
        .where(
            Job.job_id == claimed.job_id,
            Job.attempt == claimed.attempt,
            Job.lease_owner == claimed.owner,
            Job.state != "running",
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


def lock_video(session: Session, video_id: str, *, skip_locked: bool = False) -> Video | None:
    """The video's row, locked: the first lock of every transaction that changes its jobs.

    ``skip_locked``, here and below: None also where another transaction has it locked.
    """
    return session.scalars(
        select(Video).where(Video.video_id == video_id).with_for_update(skip_locked=skip_locked),
        execution_options={"populate_existing": True},
    ).one_or_none()


def lock_videos(session: Session, video_ids: Collection[str]) -> dict[str, Video]:
    """As ``lock_video``, several at once, by id."""
    found = session.scalars(
        select(Video)
        .where(Video.video_id == any_(array(video_ids)))
        .order_by(Video.video_id)
        .with_for_update(),
        execution_options={"populate_existing": True},
    )
    return {video.video_id: video for video in found}


def array(values: Collection[str]) -> BindParameter[Any]:
    """Texts as one parameter of a statement, for ``= any_(array(...))``: any number of them."""
    return literal(list(values), ARRAY(Text))


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
    advance: Callable[[Session, Subject], list[WakeUp]],
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
    advance: Callable[[Session, Subject], list[WakeUp]],
) -> list[WakeUp]:
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
    advance: Callable[[Session, Subject], list[WakeUp]],
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
        _end(session, job, "failed")
        return advance(session, subject)
    tries = job.failures + job.outages
    wait_s = min(policy.backoff_max_s, policy.backoff_s * 2 ** min(tries - 1, 20))
    _requeue(session, job, wait_s)
    return []


def defer(
    session: Session, claimed: Claim, wait_s: float, *, max_wait_s: float = 300.0, progressed: bool = False
) -> list[WakeUp]:
    """Put the job back for later; not an error.

    Args:
        wait_s: the first pause, which doubles with every further one up to ``max_wait_s`` (if that is longer).
        progressed: the attempt got on with its work: the pause is ``wait_s``, and the next one does not grow.

    Raises:
        LeaseLost: the attempt is fenced out.
    """
    _, job = fence(session, claimed)
    if progressed:
        job.deferrals = 0
    else:
        wait_s = max(wait_s, min(max_wait_s, wait_s * 2.0 ** min(job.deferrals, 30)))
        job.deferrals += 1
    _requeue(session, job, wait_s)
    return [] if wait_s > 0 else [WakeUp(job.queue, job.job_id)]


def _seconds_since(time: Any) -> Any:
    return cast(func.greatest(func.extract("epoch", NOW - time), 0), Double)


#: How long a running attempt has taken, seconds; what came after its lease had run out is not its user's.
_RAN_S = _seconds_since(Job.started_at) - func.greatest(
    func.coalesce(cast(func.extract("epoch", NOW - Job.lease_until), Double), 0.0), 0.0
)


def _stop_clock(session: Session, job: Job) -> None:
    """Add what the attempt has taken to its job and to its account; before its lease is ended."""
    seconds = max(0.0, session.execute(select(_RAN_S).where(Job.job_id == job.job_id)).scalar_one() or 0.0)
    job.device_seconds = (job.device_seconds or 0.0) + seconds
    usage.add_seconds(session, job.queue, job.account, seconds)


def _requeue(session: Session, job: Job, wait_s: float) -> None:
    _stop_clock(session, job)
    usage.add_waiting(session, job.queue, job.account)
    job.state = "queued"
    job.not_before = seconds_from_now(wait_s)
    job.lease_owner = job.lease_until = None
    session.flush()


def _end(session: Session, job: Job, state: str) -> None:
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


def reclaim(
    session: Session,
    held: Held,
    error: ScenefleetError,
    policy: RetryPolicy,
    advance: Callable[[Session, Subject], list[WakeUp]],
) -> list[WakeUp] | None:
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


_CLAIMABLE = text(
    """
    SELECT queues.queue, waiting.job_id FROM unnest(CAST(:queues AS text[])) AS queues(queue) CROSS JOIN LATERAL (
        SELECT job_id FROM jobs
        WHERE queue = queues.queue AND state = 'queued' AND not_before <= (SELECT clock_timestamp())
        ORDER BY not_before LIMIT :most
    ) waiting
    """
)
# Where accounts are limited, those that have reached the limit need no wake-up message, however much they have waiting.
_CLAIMABLE_LIMITED = text(
    """
    SELECT own.queue, waiting.job_id FROM queue_usage own LEFT JOIN (
        SELECT queue, account, count(*) AS running FROM jobs WHERE state = 'running' GROUP BY queue, account
    ) busy ON busy.queue = own.queue AND busy.account = own.account
    CROSS JOIN LATERAL (
        SELECT job_id FROM jobs
        WHERE queue = own.queue AND account = own.account AND state = 'queued' AND not_before <= (SELECT clock_timestamp())
        LIMIT greatest(:max_running - coalesce(busy.running, 0), 0)
    ) waiting
    WHERE own.waiting OR own.due_at <= clock_timestamp()
    """
)
#: Wake-up messages of one queue needed at once are few.
_MOST_CLAIMABLE = 1_000


def claimable(session: Session, rules: ClaimRules | None = None) -> dict[str, list[int]]:
    """Per queue, the ids of jobs that could be claimed now, at most 1,000 a queue."""
    rules = configured_rules() if rules is None else rules
    if rules.max_running:
        rows = session.execute(_CLAIMABLE_LIMITED, {"max_running": rules.max_running})
    else:
        rows = session.execute(_CLAIMABLE, {"queues": list(JOB_QUEUES), "most": _MOST_CLAIMABLE})
    queues: dict[str, list[int]] = {}
    for queue, job_id in rows:
        queues.setdefault(queue, []).append(job_id)
    return {queue: ids[:_MOST_CLAIMABLE] for queue, ids in queues.items()}


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
    # Only a running job has an owner; the rest of its attempt is added when that lets go.
    ran_s = case((Job.lease_owner.is_not(None), func.greatest(_RAN_S, 0.0)), else_=0.0)
    cancelled = session.execute(
        update(Job)
        .where(*which, Job.state.in_(("queued", "running")))
        .values(
            state="cancelled", finished_at=NOW, device_seconds=func.coalesce(Job.device_seconds, 0.0) + ran_s
        )
        .returning(Job.queue, Job.account, ran_s.label("seconds")),
        execution_options={"synchronize_session": False},
    ).all()
    for row in cancelled:
        if row.seconds:
            usage.add_seconds(session, row.queue, row.account, row.seconds)
    return len(cancelled)


def requeue_failed(session: Session, *which: ColumnElement[bool]) -> list[WakeUp]:
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
        .returning(Job.queue, Job.account, Job.job_id)
    ).all()
    for row in again:
        usage.add_waiting(session, row.queue, row.account)
    return [WakeUp(row.queue, row.job_id) for row in again]


def insert(session: Session, jobs: Sequence[Job]) -> list[WakeUp]:
    """Add jobs; returns wake-up messages for those that can be claimed at once."""
    for job in jobs:
        job.depth = graph.depth(job.stage)
    session.add_all(jobs)
    session.flush()
    for job in jobs:
        if job.state == "queued":
            usage.add_waiting(session, job.queue, job.account)
    return [WakeUp(job.queue, job.job_id) for job in jobs if job.state == "queued"]
