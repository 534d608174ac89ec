"""A lease over a real job: renewed while work goes on, lost on a cancel, ended with the process past its limit."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from sqlalchemy import update

from db.engine import transact
from db.ledger.claims import Claim
from db.tables import Job
from shared.errors import LeaseLost
from shared.exit_status import ExitStatus
from tests.integration.test_ledger import accept, job, must_claim
from tests.support.fleet import eventually, run_to_end
from worker.lease import hold

pytestmark = pytest.mark.usefixtures("database")


def lease_of(claimed: Claim) -> AbstractContextManager[Callable[[float], None]]:
    return hold(claimed, lease_s=30.0, heartbeat_s=0.05, time_limit_s=60.0, on_time_limit=pytest.fail)


def test_a_lease_is_renewed_and_reports_progress() -> None:
    accept()
    claimed = must_claim(lease_s=1.0)
    first = job(claimed.job_id).lease_until
    assert first is not None
    with lease_of(claimed) as report:
        report(0.4)
        eventually(lambda: job(claimed.job_id).progress == 0.4, within_s=20, what="progress is stored")
        until = job(claimed.job_id).lease_until
    assert until is not None and until > first


def test_a_cancelled_job_stops_at_its_next_report() -> None:
    accept()
    claimed = must_claim()

    with lease_of(claimed) as report:
        transact(lambda session: session.execute(update(Job).values(state="cancelled")))
        with pytest.raises(LeaseLost):
            eventually(lambda: report(0.1), within_s=20, what="the job is lost", every_s=0.01)


def test_past_its_limit_the_process_records_the_failure_and_ends(database: str) -> None:
    accept()
    claimed = must_claim()
    code = f"""
        import time
        from db.ledger.claims import Claim
        from db.ledger.jobs import Subject
        from worker.lease import hold
        from worker.runner import _fail
        from worker.runtime import get_runtime
        claimed = Claim(**{vars(claimed)!r})
        with hold(claimed, lease_s=60, heartbeat_s=0.05, time_limit_s=0.2,
                  on_time_limit=lambda error: _fail(claimed, error, get_runtime())):
            time.sleep(60)  # native code that never returns
    """
    environment = {**os.environ, "POSTGRES_URL": database, "REDIS_URL": "redis://127.0.0.1:1/0"}
    ended = run_to_end([sys.executable, "-c", textwrap.dedent(code)], environment, timeout_s=50)
    assert ended.returncode == ExitStatus.TIME_LIMIT, ended.stderr
    found = job(claimed.job_id)
    assert (found.state, found.failures, found.error_class) == ("queued", 1, "StageTimeout")
    assert found.error is not None and "limit of 0.2 s" in found.error
