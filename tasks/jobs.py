"""One task per lane: a bell that claims the best job of its lane and runs it."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.exceptions import Reject

from shared.errors import DatabaseUnavailable
from shared.routing import LANES, bell_task, lane_limit_s
from worker.app import app
from worker.runtime import get_runtime


def _register(lane: str) -> Task:
    @app.task(
        name=bell_task(lane),
        ignore_result=True,
        acks_late=True,
        reject_on_worker_lost=True,
        # A stage keeps its own limit; this one ends a child whose lease thread is gone too.
        time_limit=lane_limit_s(lane) + 60,
    )
    def work(job_id: int | None = None) -> dict[str, Any]:
        """Claim the best job of this lane; ``job_id`` is only for the logs."""
        from worker.runner import work as run_one

        try:
            return run_one(lane, get_runtime())
        except DatabaseUnavailable as error:
            raise Reject(str(error), requeue=True) from error

    return work


WORK: dict[str, Task] = {lane: _register(lane) for lane in LANES}
