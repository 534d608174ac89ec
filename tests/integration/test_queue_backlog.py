"""The count that an autoscaler scales a family by: what it counts, and who may ask."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import func, select, text

from db.expressions import seconds_from_now
from tests.support.ledger import accept, claim, execute, fail, must_claim, read, set_job, split
from tests.support.services import PostgresServer

pytestmark = pytest.mark.usefixtures("database")


def backlog(queue: str = "media") -> int:
    (count,) = read(select(func.queue_backlog(queue)))
    return int(count)


def test_jobs_that_may_be_claimed_or_run_count() -> None:
    assert backlog() == 0
    for video_id in ("v1", "v2", "v3"):
        accept(video_id, "u1" if video_id == "v1" else "u2")
    assert backlog() == 3, "of every user"
    first, second = must_claim(), must_claim()
    assert backlog() == 3 and backlog("asr") == 0
    fail(second, OSError("again later"))
    set_job(second.job_id, not_before=seconds_from_now(60))
    assert backlog() == 2, "a job that has to wait before it is tried again counts for nothing yet"
    assert split(first) and backlog("face") == 1
    must_claim()
    assert claim() is None and backlog() == 1


def test_a_long_queue_is_counted_to_a_thousand() -> None:
    accept()
    columns = "subject_kind, subject_id, video_id, user_id, queue, run, stage"
    execute(
        text(
            f"INSERT INTO jobs ({columns}, part) SELECT {columns}, n FROM jobs, generate_series(1, 1500) AS n"
        )
    )
    assert backlog() == 1000


@pytest.fixture
def scaler(postgres: PostgresServer, database: str) -> Iterator[str]:
    """The URL of a login that was given nothing."""
    postgres.execute("CREATE ROLE test_scaler LOGIN PASSWORD 'scaler'")
    yield psycopg.conninfo.make_conninfo(database, user="test_scaler", password="scaler")
    postgres.execute("DROP OWNED BY test_scaler", database.rpartition("/")[2])
    postgres.execute("DROP ROLE test_scaler")


def test_a_role_with_that_right_alone_counts_and_reads_nothing(scaler: str, database: str) -> None:
    accept()
    question = "SELECT queue_backlog('media')"
    with psycopg.connect(scaler, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(question)
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute("GRANT EXECUTE ON FUNCTION queue_backlog(text) TO test_scaler")
        assert connection.execute(question).fetchall() == [(1,)]
        # A table of its own in the place of ours changes nothing.
        connection.execute(
            "CREATE TEMP TABLE jobs (queue text, state text DEFAULT 'queued', not_before timestamptz DEFAULT now())"
        )
        connection.execute("INSERT INTO pg_temp.jobs SELECT 'media' FROM generate_series(1, 9)")
        assert connection.execute(question).fetchall() == [(1,)]
        for table in ("jobs", "videos"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT FROM public.{table}")
