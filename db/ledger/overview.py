"""The ledger as an operator sees it: the jobs of each queue, and what has failed for good, of all users.

Every statement reads partial indexes: its cost depends on what waits, runs or has failed, or was done in the last minute, not on
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
        SELECT queue, count(*) AS jobs FROM jobs
        WHERE state = 'done' AND finished_at > (SELECT now FROM clock) - interval '1 minute' GROUP BY queue
    ),
    failed AS MATERIALIZED (SELECT queue, count(*) AS jobs FROM ({_FAILED}) found GROUP BY queue)
    SELECT queues.queue, due.jobs AS waiting, coalesce(running.jobs, 0) AS running, later.jobs AS deferred,
        extract(epoch FROM clock.now - due.oldest)::float8 AS oldest_s, coalesce(done.jobs, 0) AS done_last_minute,
        coalesce(failed.jobs, 0) AS failed
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
