"""One task per queue: a wake-up message that claims the best job of its queue and runs it."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.exceptions import Reject

from shared.errors import DatabaseUnavailable
from shared.routing import JOB_QUEUES, queue_limit_s, wake_up_task
from worker.app import app
from worker.runtime import get_runtime


def _register(queue: str) -> Task:
    @app.task(
        name=wake_up_task(queue),
        ignore_result=True,
        acks_late=True,
        reject_on_worker_lost=True,
        # A stage keeps its own limit; this one ends a child whose lease thread is gone too. A job that is to run alone waits
        # before it begins, at most as long as another one may run.
        time_limit=2 * queue_limit_s(queue) + 60,
    )
    def work(job_id: int | None = None) -> dict[str, Any]:
        """Claim the best job of this queue; ``job_id`` is only for the logs."""
        from worker.runner import work as run_one

        try:
            return run_one(queue, get_runtime())
        except DatabaseUnavailable as error:
            raise Reject(str(error), requeue=True) from error

    return work


WORK: dict[str, Task] = {queue: _register(queue) for queue in JOB_QUEUES}
