"""Counts requests: Celery's signals in the process that answers them. Jobs are counted by `worker.runner`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery import signals

from shared.routing import TASK_QUEUE
from worker.telemetry import metrics

_STATUS = {"SUCCESS": "ok", "IGNORED": "deferred"}
#: Task id -> when it began, monotonic. One at a time: a child has one thread for tasks.
_began: dict[str, float] = {}
#: The same of requests that began before their task, in a batch.
_began_in_batch: dict[str, float] = {}


def note_began(task_ids: Iterable[str], began_s: float) -> None:
    """Say when the requests of a batch began, by the monotonic clock; those of an earlier batch are forgotten."""
    _began_in_batch.clear()
    _began_in_batch.update(dict.fromkeys(task_ids, began_s))


def count_requests(default_model: Callable[[str], str | None]) -> None:
    """Count the requests that this process answers from now on.

    Args:
        default_model: task -> the name of the model that answers it where the answer doesn't say; None: no model.
    """

    @signals.task_prerun.connect(weak=False)
    def began(task_id: str, task: Any, **_: Any) -> None:
        if task.name in TASK_QUEUE:
            _began.clear()
            _began[task_id] = _began_in_batch.pop(task_id, time.monotonic())

    @signals.task_postrun.connect(weak=False)
    def ended(task_id: str, task: Any, retval: Any, state: str | None, **_: Any) -> None:
        since = _began.pop(task_id, None)
        if since is None:
            return
        family = TASK_QUEUE[task.name].partition(".")[0]
        model = retval.get("model") if isinstance(retval, Mapping) else None
        metrics.observe_request(
            task.name,
            family,
            time.monotonic() - since,
            _STATUS.get(state or "", "failed"),
            model if isinstance(model, str) else default_model(task.name),
        )
