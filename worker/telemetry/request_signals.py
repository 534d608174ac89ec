"""What every task of a node has, whatever it does: its trace, and for a request its metrics, one line in the log and perhaps an event.

Jobs are counted by `worker.runner`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from celery import signals

from shared import trace_context, tracing
from shared.broker import SENT_HEADER
from shared.logs import get_logger
from shared.routing import TASK_QUEUE
from worker.telemetry import custom_events, metrics

log = get_logger(__name__)

#: Requests that began before Celery's own begin (a batch), by id: seconds of the monotonic clock.
_began_s: dict[str, float] = {}
_MOST_BEGUN = 10_000


@dataclass(frozen=True)
class _Open:
    began_s: float
    stack: ExitStack
    span: tracing.Span


_STATUS = {"SUCCESS": "ok", "IGNORED": "deferred"}
#: Task -> the name of the model that answers it where the answer doesn't say; None: no model.
_default_model: Callable[[str], str | None] = lambda task: None  # noqa: E731
#: By task id.
_open: dict[str, _Open] = {}


def connect(default_model: Callable[[str], str | None]) -> None:
    """Watch the tasks of this process and of its children.

    Args:
        default_model: task -> the name of the model that answers it where the answer doesn't say; None: no model.
    """
    global _default_model
    _default_model = default_model
    signals.task_prerun.connect(_begin, weak=False)
    signals.task_postrun.connect(_end, weak=False)
    signals.worker_process_shutdown.connect(_flush, weak=False)


def note_began(task_id: str, began_s: float) -> None:
    """Say when a request began, by the monotonic clock, if not with Celery's task: for its latency."""
    if len(_began_s) < _MOST_BEGUN:
        _began_s[task_id] = began_s


def _begin(task_id: str, task: Any, **_: object) -> None:
    parent = trace_context.parse(task.request.get(trace_context.HEADER))
    stack, found = ExitStack(), tracing.Span()
    if task.name in TASK_QUEUE:
        span = tracing.span(
            task.name,
            parent=parent or tracing.root(),
            kind="consumer",
            attributes={"request_id": task_id},
        )
        found = stack.enter_context(span)
    else:
        # A wake-up message: the job's span is in the trace of its row (worker/runner.py).
        stack.enter_context(trace_context.using(parent))
    began_s = _began_s.pop(task_id, None)
    sent = task.request.get(SENT_HEADER)
    # Those of a batch are counted with it (worker/online/batch.py).
    if began_s is None and sent is not None and task.name in TASK_QUEUE:
        metrics.observe_wait(TASK_QUEUE[task.name], time.time() - sent)
    _open[task_id] = _Open(began_s or time.monotonic(), stack, found)


def _end(task_id: str, task: Any, retval: Any, state: str | None = None, **_: object) -> None:
    ended = _open.pop(task_id, None)
    if ended is None:
        return
    seconds = time.monotonic() - ended.began_s
    with ended.stack:
        if task.name in TASK_QUEUE:
            _count_request(task.name, retval, state, seconds)
            _note_request(task_id, task.name, retval, state, round(1000 * seconds, 1), ended.span)


def _count_request(task: str, retval: Any, state: str | None, seconds: float) -> None:
    model = retval.get("model") if isinstance(retval, dict) else None
    metrics.observe_request(
        task,
        TASK_QUEUE[task].partition(".")[0],
        seconds,
        _STATUS.get(state or "", "failed"),
        model if isinstance(model, str) else _default_model(task),
    )


def _note_request(
    task_id: str, task: str, retval: Any, state: str | None, latency_ms: float, span: tracing.Span
) -> None:
    answer = retval if isinstance(retval, dict) else {}
    model, dimension = answer.get("model"), answer.get("dim")
    error_class = type(retval).__name__ if isinstance(retval, BaseException) else None
    if error_class is not None and state == "FAILURE":
        span.fail(error_class)
    span.note(model=model, dimension=dimension, state=state)
    shown = {"model": model, "dimension": dimension, "error_class": error_class}
    log.info(
        "request ended",
        request_id=task_id,
        task=task,
        state=state,
        latency_ms=latency_ms,
        **{key: value for key, value in shown.items() if value is not None},
    )
    if model is not None and dimension is not None and state == "SUCCESS":
        custom_events.embedding_generated(model, dimension, latency_ms, request_id=task_id)


def _flush(**_: object) -> None:
    custom_events.flush()
    tracing.flush()
