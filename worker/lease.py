"""Holds a claim: a thread renews its lease, reports progress, notices a cancelled job and keeps the time limit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from db.engine import transact
from db.ledger import attempts
from db.ledger.claims import Claim
from shared.errors import DatabaseUnavailable, LeaseLost, StageTimeout
from shared.exit_status import ExitStatus
from shared.logs import get_logger

log = get_logger(__name__)


class Lease:
    """Renews a claim while the ``with`` block runs.

    Args:
        lease_s, heartbeat_s: duration of a lease, and the interval at which it is renewed.
        time_limit_s: after this time the failure is recorded and the process ends: native code can't be interrupted.
        on_time_limit: records the failure.
    """

    def __init__(
        self,
        claimed: Claim,
        *,
        lease_s: float,
        heartbeat_s: float,
        time_limit_s: float,
        on_time_limit: Callable[[StageTimeout], object],
    ) -> None:
        self._claimed = claimed
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._time_limit_s = time_limit_s
        self._on_time_limit = on_time_limit
        self._progress = 0.0
        self._lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_done, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def report(self, fraction: float) -> None:
        """Report progress (0..1).

        Raises:
            LeaseLost: the job was cancelled, deleted or given to another worker.
        """
        self._progress = fraction
        if self._lost.is_set():
            raise LeaseLost(f"job {self._claimed.job_id} attempt {self._claimed.attempt} is no longer ours")

    def _beat_until_done(self) -> None:
        while not self._done.wait(self._heartbeat_s):
            if time.monotonic() - self._started > self._time_limit_s:
                self._end_process()
            try:
                held = transact(
                    lambda session: attempts.beat(session, self._claimed, self._progress, self._lease_s)
                )
            except DatabaseUnavailable as error:
                # If the lease expires meanwhile, the fence decides at the end of the job.
                log.warning("lease not renewed", job_id=self._claimed.job_id, error=error)
                continue
            except Exception:
                # Without this thread there would be no time limit.
                log.exception("lease not renewed", job_id=self._claimed.job_id)
                continue
            if not held:
                self._lost.set()
                return

    def _end_process(self) -> None:
        error = StageTimeout(
            f"stage {self._claimed.stage} ran longer than its limit of {self._time_limit_s:g} s: "
            "the file may be damaged, or the machine too slow for it"
        )
        log.error("time limit", job_id=self._claimed.job_id, error=error)
        try:
            self._on_time_limit(error)
        finally:
            os._exit(ExitStatus.TIME_LIMIT)
