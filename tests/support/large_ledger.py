"""Fills a database with a ledger that has run for long: ended runs, users who wait, deferred jobs, people. By one process, in SQL."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

#: Jobs of one ended run of a video.
JOBS_A_RUN = 20
#: The user of all people, of the deferred jobs of one account, and of the first ended video ``v1``.
CROWDED = "u0"

_STAGES = (
    "ARRAY['split','asr','asr','asr','asr','asr','asr','asr','asr','text','text','vision','vision','vision','vision',"
    "'face','face','face','sidecar','sweep']"
)
_PARTS = "ARRAY[0,0,1,2,3,4,5,6,7,0,1,0,1,2,3,0,1,2,0,0]"
_QUEUES = (
    "ARRAY['media','asr','asr','asr','asr','asr','asr','asr','asr','text','text','vision','vision','vision','vision',"
    "'face','face','face','media','housekeeping']"
)
_MADE = """'{"split": 1, "asr": 1, "text": 1, "vision": 1, "face": 1, "ocr": 1, "sidecar": 1}'::jsonb"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a ledger is."""

    #: Jobs of ended runs, ``JOBS_A_RUN`` to a video.
    ended_jobs: int
    #: Users with one job that can run.
    waiting_users: int
    #: Jobs that may run later only: half of one account in asr, the others of all users in housekeeping.
    deferred_jobs: int
    #: Unknown people of one user.
    people: int

    @property
    def videos(self) -> int:
        return self.ended_jobs // JOBS_A_RUN


def fill(url: str, size: Size) -> None:
    """Add such a ledger to an empty database; ``url``: a superuser's."""
    half = size.deferred_jobs // 2
    users = max(size.waiting_users, 1)
    later = "clock_timestamp() + interval '1 day' + place * interval '1 second'"
    statements = [
        # Neither triggers nor checks of foreign keys.
        "SET session_replication_role = replica",
        f"""INSERT INTO videos (video_id, external_id, user_id, storage_key, state, run, published_run, duration_s, indexed_at)
        SELECT 'v' || n, 'v' || n, 'u' || (n - 1) % {users}, 'uploads/x', 'indexed', 1, 1, 60,
            clock_timestamp() - n * interval '300 seconds' FROM generate_series(1, {size.videos}) n""",
        f"""INSERT INTO runs (video_id, run, stages, stage_runs, ended_at)
        SELECT 'v' || n, 1, '["split"]', {_MADE}, clock_timestamp() FROM generate_series(1, {size.videos}) n""",
        f"""INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, part, state, progress, finished_at, started_at)
        SELECT 'v' || n, 'v' || n, 'u' || (n - 1) % {users}, ({_QUEUES})[i], 1, ({_STAGES})[i], ({_PARTS})[i], 'done', 1,
            clock_timestamp() - n * interval '300 seconds', clock_timestamp() - n * interval '300 seconds'
        FROM generate_series(1, {size.videos}) n, generate_series(1, {JOBS_A_RUN}) i""",
        f"""INSERT INTO videos (video_id, external_id, user_id, storage_key, state, run)
        SELECT 'w' || n, 'w' || n, 'u' || n - 1, 'uploads/x', 'processing', 1 FROM generate_series(1, {size.waiting_users}) n""",
        f"""INSERT INTO runs (video_id, run, stages, stage_runs)
        SELECT 'w' || n, 1, '["split", "asr", "text", "sidecar"]', {_MADE} FROM generate_series(1, {size.waiting_users}) n""",
        f"""INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, state, depth, not_before)
        SELECT 'w' || n, 'w' || n, 'u' || n - 1, 'asr', 1, 'asr', 'queued', 2, clock_timestamp() - n * interval '1 second'
        FROM generate_series(1, {size.waiting_users}) n""",
        f"""INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, part, state, depth, not_before)
        SELECT 'w1', 'w1', '{CROWDED}', 'asr', 1, 'asr', place, 'queued', 2, {later} FROM generate_series(1, {half}) place""",
        f"""INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, part, state, depth, not_before)
        SELECT 'w' || 1 + place % {users}, 'w' || 1 + place % {users}, 'u' || place % {users}, 'housekeeping', 1, 'sweep',
            place / {users}, 'queued', 5, {later} FROM generate_series(0, {half - 1}) place""",
        f"""INSERT INTO queue_usage (queue, account, waiting, waiting_since, level)
        SELECT 'asr', 'u' || n - 1, true, clock_timestamp(), random() FROM generate_series(1, {size.waiting_users}) n""",
        # As their inserts leave them.
        """INSERT INTO queue_usage (queue, account, due_at, level)
        SELECT 'housekeeping', account, min(not_before), random() FROM jobs
        WHERE queue = 'housekeeping' AND state = 'queued' GROUP BY account""",
        f"""INSERT INTO people (person_id, external_id, user_id, name, kind, run, ended_run)
        SELECT 'p' || n, 'p' || n, '{CROWDED}', 'unknown ' || n, 'unknown', 1, 1 FROM generate_series(1, {size.people}) n""",
        "RESET session_replication_role",
    ]
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("VACUUM ANALYZE")
