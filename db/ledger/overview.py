"""The ledger as an operator sees it: the jobs of each queue, and what has failed for good, of all users.

Every statement reads partial indexes: its cost depends on what waits, runs or has failed, or was done in the last 10 minutes, not on
the size of the archive. Counts stop at ``COUNTED``.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import graph
from shared.contracts.fleet import COUNTED, FailureKind, QueueView
from shared.routing import JOB_QUEUES

# Those that a retry runs again: of the newest run of a video that is still there, or of something else.
_FAILED = """
    SELECT jobs.*, videos.external_id FROM jobs LEFT JOIN videos USING (video_id)
    WHERE jobs.state = 'failed'
        AND (jobs.video_id IS NULL OR (jobs.run = videos.run AND videos.deleted_at IS NULL))
"""
_QUEUES = text(
    f"""
    WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
    running AS MATERIALIZED (SELECT queue, count(*) AS jobs FROM jobs WHERE state = 'running' GROUP BY queue),
    done AS MATERIALIZED (
        SELECT queue, count(*) AS lately, count(*) FILTER (WHERE finished_at > now - interval '1 minute') AS jobs
        FROM jobs CROSS JOIN clock
        WHERE state = 'done' AND finished_at > (SELECT now FROM clock) - interval '10 minutes' GROUP BY queue
    ),
    failed AS MATERIALIZED (SELECT queue, count(*) AS jobs FROM ({_FAILED}) found GROUP BY queue)
    SELECT queues.queue, due.jobs AS waiting, coalesce(running.jobs, 0) AS running, later.jobs AS deferred,
        extract(epoch FROM clock.now - due.oldest)::float8 AS oldest_s, coalesce(done.jobs, 0) AS done_last_minute,
        coalesce(failed.jobs, 0) AS failed, (600.0 * due.jobs / done.lately)::float8 AS backlog_s
    FROM clock CROSS JOIN unnest(CAST(:queues AS text[])) WITH ORDINALITY AS queues(queue, place)
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, min(not_before) AS oldest FROM (
            SELECT not_before FROM jobs WHERE queue = queues.queue AND state = 'queued' AND not_before <= clock.now
            ORDER BY not_before LIMIT :counted
        ) first
    ) due
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs FROM (
            SELECT FROM jobs WHERE queue = queues.queue AND state = 'queued' AND not_before > clock.now LIMIT :counted
        ) first
    ) later
    LEFT JOIN running USING (queue) LEFT JOIN done USING (queue) LEFT JOIN failed USING (queue)
    ORDER BY place
    """
)
_FAILURES = text(
    f"""
    WITH failed AS MATERIALIZED (
        SELECT error_class, video_id, external_id, user_id, stage, error, finished_at, job_id FROM ({_FAILED}) found LIMIT :counted
    ), counted AS (
        SELECT error_class, count(*) AS count, count(DISTINCT video_id) AS videos, max(job_id) AS job_id
        FROM failed GROUP BY error_class
    )
    SELECT coalesce(error_class, '') AS error_class, count, videos, user_id, external_id AS video_id, stage, error,
        finished_at AS failed_at
    FROM (SELECT count, videos, job_id FROM counted) kinds JOIN failed USING (job_id)
    ORDER BY count DESC, error_class LIMIT 100
    """
)
# At random: videos that can't run again must not keep out the others.
_FAILED_VIDEOS = text(
    f"""
    SELECT video_id FROM (
        SELECT DISTINCT video_id FROM ({_FAILED}) found WHERE error_class = :error_class AND stage = ANY(:stages)
    ) videos WHERE video_id IS NOT NULL ORDER BY random() LIMIT :limit
    """
)


def queues(session: Session) -> tuple[QueueView, ...]:
    """Every queue of jobs, in the order of the pipeline's families."""
    rows = session.execute(_QUEUES, {"queues": list(JOB_QUEUES), "counted": COUNTED})
    return tuple(QueueView(**row._mapping) for row in rows)


def failures(session: Session) -> tuple[FailureKind, ...]:
    """What a retry would run again, by class of error, most frequent first."""
    return tuple(FailureKind(**row._mapping) for row in session.execute(_FAILURES, {"counted": COUNTED}))


def failed_videos(session: Session, error_class: str, limit: int) -> list[str]:
    """Primary keys of some videos whose newest run has a failed job with this class of error."""
    values = {"error_class": error_class, "stages": list(graph.PIPELINE_NAMES), "limit": limit}
    return list(session.scalars(_FAILED_VIDEOS, values))


_JOBS = text(
    """
    SELECT stage, state, count(*) AS jobs FROM (
        (SELECT stage, state FROM jobs WHERE state = 'queued' LIMIT :counted)
        UNION ALL (SELECT stage, state FROM jobs WHERE state = 'running' LIMIT :counted)
        UNION ALL (SELECT stage, state FROM jobs WHERE state = 'failed' LIMIT :counted)
    ) open GROUP BY stage, state
    """
)
_DEVICE = text("SELECT queue, sum(total_s) AS seconds FROM queue_usage GROUP BY queue")
_USERS = text(
    """
    WITH top AS MATERIALIZED (
        SELECT account FROM queue_usage WHERE account <> '' GROUP BY account ORDER BY sum(total_s) DESC, account LIMIT :users
    )
    SELECT queue, coalesce(top.account, '') AS account, sum(total_s) AS seconds
    FROM queue_usage LEFT JOIN top USING (account) GROUP BY 1, 2
    """
)
_VIDEOS = text(
    "SELECT state, count(*) AS videos, coalesce(sum(duration_s), 0) AS seconds FROM videos GROUP BY state"
)
_INDEXED = text(
    """
    SELECT count(*) AS videos, coalesce(sum(duration_s), 0)::float8 AS seconds FROM videos
    WHERE indexed_at > (SELECT clock_timestamp()) - interval '1 hour'
    """
)
_SIZE = text("SELECT pg_database_size(current_database())")


def jobs(session: Session) -> list[tuple[str, str, int]]:
    """(stage, state, jobs) of those that have not ended, or have failed."""
    return [tuple(row) for row in session.execute(_JOBS, {"counted": COUNTED})]


def device_seconds(session: Session) -> dict[str, float]:
    """Queue -> device seconds of all accounts."""
    return {row.queue: row.seconds for row in session.execute(_DEVICE)}


def device_seconds_of_users(session: Session, users: int) -> list[tuple[str, str, float]]:
    """(queue, account, device seconds) of the accounts with the most; of all others in sum, with an empty account."""
    return [tuple(row) for row in session.execute(_USERS, {"users": users})]


def videos(session: Session) -> list[tuple[str, int, float]]:
    """(state, videos, seconds). Reads the whole table: ask rarely."""
    return [tuple(row) for row in session.execute(_VIDEOS)]


def indexed_lately(session: Session) -> tuple[int, float]:
    """Videos indexed in the last hour, and their duration, seconds."""
    row = session.execute(_INDEXED).one()
    return row.videos, row.seconds


def size_bytes(session: Session) -> int:
    """Size of the database."""
    return int(session.execute(_SIZE).scalar_one())
