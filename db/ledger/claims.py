"""Claims: how the next job of a queue is chosen and taken. A claim locks one job's row, and waits for no lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.expressions import seconds_from_now
from db.ledger import usage
from db.ledger.jobs import MOST_WAKE_UPS, Subject
from db.locks import AdvisoryLock
from db.tables import Job, JobState
from shared.routing import JOB_QUEUES
from shared.settings import get_settings


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt at a job, valid while the lease lasts."""

    job_id: int
    attempt: int
    owner: str
    subject: Subject
    user_id: str
    queue: str
    run: int
    stage: str
    part: int
    failures: int
    #: Deaths of its process so far: after one it runs alone on its node.
    deaths: int = 0
    payload: Mapping[str, Any]
    #: The span that created the job.
    traceparent: str | None = None
    #: How long it was claimable.
    waited_s: float = 0.0

    @property
    def storage_part(self) -> str:
        """The folder that only this attempt writes to."""
        return f"{self.job_id}.{self.attempt}"

    @property
    def video_id(self) -> str:
        """The video's primary key.

        Raises:
            ValueError: the job is not about a video.
        """
        if self.subject.kind != "video":
            raise ValueError(f"job {self.job_id} is about {self.subject}, not a video")
        return self.subject.id


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


# The order of accounts is that of an index, except for the few ("special") with a weight or with running jobs, whose
# seconds so far (at least one each) count too. The claim tries one account after another and takes the first job that
# is not locked: its cost depends on the accounts tried, not on how many accounts or jobs wait.
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
        RETURNING jobs.job_id, attempt, lease_owner AS owner, subject_kind, subject_id, user_id, queue, run,
            stage, part, failures, deaths, payload, traceparent,
            extract(epoch FROM clock_timestamp() - not_before)::float8 AS waited_s
    )
    SELECT taken.*, ARRAY(
        SELECT account FROM turns WHERE turn < coalesce((SELECT turn FROM chosen), 2147483647)
    ) AS passed_over
    FROM (SELECT) AS one LEFT JOIN taken ON true
    """
)
#: Maximum number of accounts without running jobs that a claim tries: more than there are simultaneous claims.
_CLAIM_WIDTH = 64
#: Maximum number of such looks, if no account of the one before had a job.
_CLAIM_LOOKS = 20
#: With a limit on running jobs, one claim at a time counts them; the queue is the second half of the lock's key.
_LIMIT_LOCK = text(f"SELECT pg_advisory_xact_lock({AdvisoryLock.RUNNING_JOBS:d}, hashtext(:queue))")


def claim(
    session: Session, queue: str, owner: str, lease_s: float, rules: ClaimRules | None = None
) -> Claim | None:
    """Take the best claimable job of a queue: of the account with the least recent device time there, then by age.

    The order among the jobs of an account is: priority, which increases while a job waits, then the later stage, then age.
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
            return Claim(subject=Subject(row.pop("subject_kind"), row.pop("subject_id")), **row)
        if not resting or len(passed_over) < _CLAIM_WIDTH:
            break
    return None


_UNANSWERED = text(
    """
    UPDATE jobs SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE job_id = (
        SELECT job_id FROM jobs WHERE state = 'running' AND queue = :queue AND lease_owner = :owner LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING job_id, attempt, lease_owner AS owner, subject_kind, subject_id, user_id, queue, run,
        stage, part, failures, deaths, payload, traceparent
    """
)


def claim_again(
    session: Session, queue: str, owner: str, lease_s: float, rules: ClaimRules | None = None
) -> Claim | None:
    """``claim``, after one whose commit may have arrived although its answer did not.

    A process runs one job at a time, so a running job of this owner is the one it claimed then: otherwise it would stay
    idle until its lease has expired.
    """
    row = (
        session.execute(_UNANSWERED, {"queue": queue, "owner": owner, "lease_s": lease_s}).mappings().first()
    )
    if row is None:
        return claim(session, queue, owner, lease_s, rules)
    values = dict(row)
    return Claim(subject=Subject(values.pop("subject_kind"), values.pop("subject_id")), **values)


def others_wait(session: Session, queue: str, stages: Sequence[str], since_s: float) -> bool:
    """Whether jobs of other stages than these have been claimable in a queue for so long, seconds: no slot is free."""
    due = (Job.queue == queue, Job.state == JobState.QUEUED, Job.not_before < seconds_from_now(-since_s))
    found = select(Job.job_id).where(*due, Job.stage.not_in(stages)).limit(1)
    return session.scalars(found).first() is not None


_CLAIMABLE = text(
    """
    SELECT queues.queue, waiting.job_id FROM unnest(CAST(:queues AS text[])) AS queues(queue) CROSS JOIN LATERAL (
        SELECT job_id FROM jobs
        WHERE queue = queues.queue AND state = 'queued' AND not_before <= (SELECT clock_timestamp())
        ORDER BY not_before LIMIT :most
    ) waiting
    """
)
# With a limit on running jobs: accounts that have reached it need no wake-up messages.
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
# By the index: a scan of the table may find the first queued job behind millions of ended ones.
_ANY_DUE = text(
    """
    SELECT EXISTS (
        SELECT FROM unnest(CAST(:queues AS text[])) AS queues(queue) CROSS JOIN LATERAL (
            SELECT FROM jobs
            WHERE queue = queues.queue AND state = 'queued' AND not_before <= (SELECT clock_timestamp())
            ORDER BY not_before LIMIT 1
        ) first
    )
    """
)


def any_due(session: Session) -> bool:
    """Whether any job can be claimed now."""
    return bool(session.execute(_ANY_DUE, {"queues": list(JOB_QUEUES)}).scalar_one())


def claimable(session: Session, rules: ClaimRules | None = None) -> dict[str, list[int]]:
    """Queue -> the ids of jobs that can be claimed now, at most ``MOST_WAKE_UPS``."""
    rules = configured_rules() if rules is None else rules
    if rules.max_running:
        rows = session.execute(_CLAIMABLE_LIMITED, {"max_running": rules.max_running})
    else:
        rows = session.execute(_CLAIMABLE, {"queues": list(JOB_QUEUES), "most": MOST_WAKE_UPS})
    queues: dict[str, list[int]] = {}
    for queue, job_id in rows:
        queues.setdefault(queue, []).append(job_id)
    return {queue: ids[:MOST_WAKE_UPS] for queue, ids in queues.items()}
