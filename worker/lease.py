"""Holds a claim: a thread renews its lease, reports progress, notices a cancelled job and keeps the time limit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from db.engine import transact
from db.ledger import attempts
from db.ledger.claims import Claim
from shared.errors import DatabaseUnavailable, LeaseLost, StageTimeout
from shared.exit_status import ExitStatus
from shared.logs import get_logger

log = get_logger(__name__)


@contextmanager
def hold(
    claimed: Claim,
    *,
    lease_s: float,
    heartbeat_s: float,
    time_limit_s: float,
    on_time_limit: Callable[[StageTimeout], object],
    on_progress: Callable[[], object] = lambda: None,
) -> Iterator[Callable[[float], None]]:
    """Renew a claim while the ``with`` block runs, which gets a function that reports progress (0..1).

    The function raises LeaseLost if the job was cancelled, deleted or given to another worker.

    Args:
        lease_s, heartbeat_s: duration of a lease, and the interval at which it is renewed.
        time_limit_s: after this time the failure is recorded and the process ends: native code can't be interrupted.
        on_time_limit: records the failure.
        on_progress: is called when new progress has been recorded.
    """
    started_s, progress, recorded = time.monotonic(), 0.0, 0.0
    lost, done = threading.Event(), threading.Event()

    def report(fraction: float) -> None:
        nonlocal progress
        progress = fraction
        if lost.is_set():
            raise LeaseLost(f"job {claimed.job_id} attempt {claimed.attempt} is no longer ours")

    def beat_until_done() -> None:
        nonlocal recorded
        while not done.wait(heartbeat_s):
            if time.monotonic() - started_s > time_limit_s:
                _end_process(claimed, time_limit_s, on_time_limit)
            reached = progress
            try:
                held = transact(lambda session: attempts.beat(session, claimed, reached, lease_s))  # noqa: B023
            except DatabaseUnavailable as error:
                # If the lease expires meanwhile, the fence decides at the end of the job.
                log.warning("lease not renewed", job_id=claimed.job_id, error=error)
                continue
            except Exception:
                # Without this thread there would be no time limit.
                log.exception("lease not renewed", job_id=claimed.job_id)
                continue
            if not held:
                lost.set()
                return
            if reached != recorded:
                recorded = reached
                on_progress()

    thread = threading.Thread(target=beat_until_done, name="lease", daemon=True)
    thread.start()
    try:
        yield report
    finally:
        done.set()
        thread.join()


def _end_process(
    claimed: Claim, time_limit_s: float, on_time_limit: Callable[[StageTimeout], object]
) -> None:
    error = StageTimeout(
        f"stage {claimed.stage} ran longer than its limit of {time_limit_s:g} s: "
        "the file may be damaged, or the machine too slow for it"
    )
    log.error("time limit", job_id=claimed.job_id, error=error)
    try:
        on_time_limit(error)
    finally:
        os._exit(ExitStatus.TIME_LIMIT)
