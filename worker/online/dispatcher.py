"""Fills the buffer with a node's online requests, and sends batches to its pool; in the node's main process.

Requests have a channel of their own, whose prefetch holds two batches per child. A batch is sent when a child has neither a
batch nor a job, so it is as large as the wait made it, and a request waits for one job at most: the next job's message is
taken after the job has ended, and a batch that waits then goes first.

A message is acknowledged when its answer is stored. If the node dies or loses Redis, the broker delivers it again; the buffer
of the lost connection is forgotten with its dispatcher. If a child dies, the requests of its batch that have no answer yet
are computed again, each alone; one that loses its child twice fails.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded
from celery.states import READY_STATES
from celery.worker import state as worker_state
from celery.worker.strategy import default
from kombu.common import ignore_errors
from redis.exceptions import RedisError

from shared.admission import HEADER
from shared.errors import InvalidRequest, Overloaded, ScenefleetError, StageTimeout, WorkerLost
from shared.logs import get_logger
from shared.settings import Settings
from worker.broker.celery_patches import call_after_acknowledge
from worker.online import batch
from worker.online.buffer import Buffer, Part, Waiting
from worker.online.operations import OPERATIONS
from worker.online.overload import RETRY_AFTER_S
from worker.telemetry import metrics

log = get_logger(__name__)

#: Attribute of a Celery consumer: its dispatcher.
_ATTRIBUTE = "scenefleet_dispatcher"
#: Messages that a node takes from its online queue beyond those it computes, in batches.
_PREFETCHED_BATCHES = 2
#: Maximum size of a message's body in sizes of its contract, which counts UTF-8: JSON may escape two bytes by six.
_ESCAPED = 4
#: Batches after whose loss a request fails.
MAX_LOSSES = 2
#: How long a node takes no requests after some whose model it lacks, seconds.
_LEFT_S = 5.0


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """What Celery does with the message of an online request: check it as any other, then give it to the dispatcher."""
    return cast("Callable[..., Any]", default(task, app, _Diverted(consumer), **options))


def online_queues(consumer: Any) -> list[Any]:
    """The queues that the dispatcher of a Celery consumer takes requests from."""
    dispatcher = getattr(consumer, _ATTRIBUTE, None)
    return list(dispatcher._tasks.queues) if dispatcher is not None and dispatcher.consuming else []


class _Diverted:
    """A Celery consumer whose requests go to its dispatcher; without one (no node) to the pool."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def on_task_request(self, request: Any) -> None:
        dispatcher = getattr(self._consumer, _ATTRIBUTE, None)
        if dispatcher is None:
            self._consumer.on_task_request(request)
        else:
            dispatcher.add(request)


class Dispatcher:
    """The online requests of one node over one connection; everything runs in Celery's event loop.

    Args:
        consumer: Celery's, connected, with a started pool.
        queue: the node's online queue.
    """

    def __init__(self, consumer: Any, settings: Settings, queue: str) -> None:
        self._consumer, self._settings, self.queue = consumer, settings, queue
        self._buffer = Buffer()
        #: Batches in the pool.
        self._batches = 0
        self._is_due = self._is_closed = False
        #: Until then other nodes take the requests, monotonic.
        self._left_until_s = 0.0
        self._timer: Any = None
        self._channel = consumer.connection.channel()
        self._tasks = consumer.app.amqp.Consumer(self._channel, accept=consumer.app.conf.accept_content)
        self._tasks.on_message = consumer.create_task_handler()
        slots = consumer.pool.num_processes
        self._tasks.qos(prefetch_count=_PREFETCHED_BATCHES * settings.batch_size * slots)
        setattr(consumer, _ATTRIBUTE, self)
        call_after_acknowledge(self._soon)

    # --- the queue

    @property
    def consuming(self) -> bool:
        return bool(self._tasks.consuming_from(self.queue))

    def consume(self) -> None:
        """Take messages from the queue, unless they are left to other nodes."""
        if time.monotonic() < self._left_until_s:
            return
        self._tasks.add_queue(self._consumer.app.amqp.queues[self.queue])
        self._tasks.consume()

    def pause(self) -> None:
        """Take no further messages; what is in the buffer is still computed."""
        self._tasks.cancel_by_queue(self.queue)

    def close(self) -> None:
        """Send no further batches. Messages without an answer go back to the queue with the connection."""
        self._is_closed = True
        call_after_acknowledge(None)
        delattr(self._consumer, _ATTRIBUTE)
        if self._timer is not None:
            self._timer.cancel()
        ignore_errors(self._consumer, self._tasks.cancel)

    # --- requests

    def add(self, request: Any) -> None:
        """Take a request into the buffer, or refuse it while the buffer is full."""
        operation, settings = OPERATIONS[request.type], self._settings
        most_bytes = operation.contract.max_bytes
        if len(request.body) > _ESCAPED * most_bytes:
            # The buffer would hold it until a child refuses it.
            said = f"the payload of {operation.contract.__name__} has {len(request.body)} bytes, more than {most_bytes}"
            self._fail(request, InvalidRequest(f"{said}: send storage keys, not data"))
            return
        tokens = operation.count_tokens(request.kwargs)
        if self._buffer.items and (
            self._buffer.items + len(tokens) > settings.online_queue_items
            or self._buffer.tokens + sum(tokens) > settings.online_queue_tokens
        ):
            said = f"queue {self.queue} has {self._buffer.items} items that wait in this node"
            metrics.count_rejected(self.queue, "node full")
            self._fail(request, Overloaded(said, RETRY_AFTER_S))
            return
        is_reserved = HEADER in request.request_dict
        unreserved = self._buffer.unreserved_items
        if not is_reserved and unreserved and unreserved + len(tokens) > settings.online_user_items:
            said = (
                f"queue {self.queue} has {unreserved} items in this node of callers that did not reserve them"
            )
            metrics.count_rejected(self.queue, "not reserved")
            self._fail(request, Overloaded(said, RETRY_AFTER_S))
            return
        most = operation.most or settings.batch_size
        self._buffer.add(Waiting(request, request.type, tokens, most, time.time(), is_reserved))
        self._soon()

    def look(self) -> None:
        """Send batches while a child is idle."""
        self._is_due = False
        while (
            not self._is_closed
            and len(self._buffer)
            and self._idle_slots() > 0
            and not self._waits_for_more()
        ):
            settings = self._settings
            parts = self._buffer.take(settings.batch_size, settings.batch_tokens)
            # Drops what has expired or was revoked, and tells Celery.
            parts = [part for part in parts if not part.waiting.request.revoked()]
            if parts:
                self._send(parts)

    def _soon(self) -> None:
        """Look once in the next round of the event loop."""
        if not self._is_due:
            self._is_due = True
            self._consumer.hub.call_soon(self.look)

    def _idle_slots(self) -> int:
        jobs = sum(request.type not in OPERATIONS for request in worker_state.reserved_requests)
        return int(self._consumer.pool.num_processes) - jobs - self._batches

    def _waits_for_more(self) -> bool:
        """Whether BATCH_TIMEOUT_MS lets a batch that is not full wait; then look again at its end."""
        oldest, timeout_s = self._buffer.oldest, self._settings.batch_timeout_ms / 1000
        if oldest is None or not timeout_s or self._buffer.items >= self._settings.batch_size:
            return False
        left_s = oldest.since_s + timeout_s - time.time()
        if not 0 < left_s <= timeout_s:
            return False
        if self._timer is None:
            self._timer = self._consumer.timer.call_after(left_s, self._end_wait)
        return True

    def _end_wait(self) -> None:
        self._timer = None
        self.look()

    def _send(self, parts: Sequence[Part]) -> None:
        self._batches += 1
        done = _Once(self, parts)
        self._consumer.pool.apply_async(
            batch.run,
            args=([_member(part) for part in parts],),
            accept_callback=done.on_accepted,
            callback=done.on_outcomes,
            error_callback=done.on_lost,
            # A caller's own limit would end the batch of others.
            timeout=max(part.waiting.request.task.time_limit for part in parts),
            correlation_id=str(uuid.uuid4()),
        )

    # --- what the pool says

    def end(self, parts: Sequence[Part], outcomes: Sequence[batch.Outcome]) -> None:
        """A batch has been computed: send the next one, and acknowledge this one while the child computes that."""
        self._batches -= 1
        answered = []
        for part, (kind, value) in zip(parts, outcomes, strict=True):
            waiting = part.waiting
            if kind == "answered":
                answered.append((waiting.request, value))
            elif self._is_closed:
                # The broker delivers it again.
                continue
            elif kind == "more":
                waiting.outputs.append(value)
                self._buffer.add(waiting)
            elif kind == "elsewhere":
                self._leave(waiting.request)
            elif not waiting.request.revoked():
                # This process's clock is a moment behind.
                self._buffer.put_back(part)
        others = self._batches
        self.look()
        if self._batches == others:
            self._acknowledge(answered)
        else:
            # In the second round from now: in the first one the loop writes the batch to the child.
            call_soon = self._consumer.hub.call_soon
            call_soon(partial(call_soon, partial(self._acknowledge, answered)))

    def _leave(self, request: Any) -> None:
        """Give a request back to its queue, for a node that has its model."""
        self.pause()
        self._left_until_s = time.monotonic() + _LEFT_S
        request.reject(requeue=True)
        worker_state.task_ready(request)

    def _acknowledge(self, answered: Sequence[tuple[Any, Any]]) -> None:
        """Acknowledge answered requests; ``answered``: each with what Celery's tracer has returned."""
        for request, traced in answered:
            try:
                request.on_success(traced)
            except Exception as error:  # noqa: BLE001 - the others are answered, too; it is delivered again
                log.warning("request not acknowledged", id=request.id, kind=type(error).__name__)
        # What has come meanwhile; a callback of this round is not called before the loop has waited.
        self.look()

    def lose(self, parts: Sequence[Part], error: BaseException) -> None:
        """The process of a batch has died or was ended: put back what has no answer."""
        self._batches -= 1
        log.warning("batch lost", queue=self.queue, requests=len(parts), kind=type(error).__name__)
        if self._is_closed:
            return
        for part in reversed(parts):
            self._buffer.put_back(part)
        for part in parts:
            if self._is_settled(part.waiting, error):
                self._buffer.remove(part.waiting)
        self._soon()

    def _is_settled(self, waiting: Waiting, error: BaseException) -> bool:
        """Whether a request that was lost has an answer; it gets one after its last loss."""
        request = waiting.request
        try:
            if request._already_revoked or self._is_answered(request):
                return True
            if waiting.losses >= MAX_LOSSES:
                self._fail(request, _lost(error))
                return True
        except RedisError as failure:
            log.warning("lost request not looked up", id=request.id, kind=type(failure).__name__)
        return False

    def _is_answered(self, request: Any) -> bool:
        """Whether the dead process had stored the answer; then the message is done."""
        if request.ignore_result:
            return False
        if request.app.backend.get_task_meta(request.id, cache=False)["status"] not in READY_STATES:
            return False
        worker_state.task_ready(request, successful=True)
        request.acknowledge()
        return True

    def _fail(self, request: Any, error: ScenefleetError) -> None:
        """Answer a request with an error of this process."""
        request.task.backend.mark_as_failure(
            request.id, error, request=request._context, store_result=request.store_errors
        )
        worker_state.task_ready(request)
        request.acknowledge()
        request.send_event("task-failed", exception=repr(error), traceback="")
        log.warning("request refused", task=request.type, id=request.id, kind=error.code)


class _Once:
    """The callbacks of one batch. The pool may report its end twice, as a time limit and as the death of its child."""

    def __init__(self, dispatcher: Dispatcher, parts: Sequence[Part]) -> None:
        self._dispatcher, self._parts = dispatcher, parts
        self._ended = False

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        for part in self._parts:
            # Once for all parts of a request; a revocation with ``terminate`` ends the process of the last one.
            if part.waiting.request.time_start is None:
                part.waiting.request.on_accepted(pid, time_accepted)
            part.waiting.request.worker_pid = pid

    def on_outcomes(self, outcomes: Sequence[batch.Outcome]) -> None:
        if not self._ended:
            self._ended = True
            self._dispatcher.end(self._parts, outcomes)

    def on_lost(self, einfo: ExceptionInfo) -> None:
        if not self._ended:
            self._ended = True
            error = einfo.exception
            self._dispatcher.lose(self._parts, getattr(error, "exc", error))


def _member(part: Part) -> batch.Member:
    request = part.waiting.request
    # The body has them, too.
    headers = {name: value for name, value in request.request_dict.items() if name not in ("args", "kwargs")}
    return batch.Member(
        task=request.type,
        task_id=request.id,
        headers=headers,
        body=request.body,
        content_type=request._content_type,
        content_encoding=request._content_encoding,
        first=part.first,
        end=part.end,
        last=part.last,
        # Others don't need them, and they may be megabytes.
        outputs=tuple(part.waiting.outputs) if part.last else (),
        received_s=part.waiting.since_s,
    )


def _lost(error: BaseException) -> ScenefleetError:
    if isinstance(error, TimeLimitExceeded):
        return StageTimeout("the request took longer than its time limit: send a smaller one")
    return WorkerLost(
        "the process that ran the request crashed, twice: send it again, and check the node's log"
    )
