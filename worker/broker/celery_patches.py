"""All changes to Celery 5.6 and kombu 5.7; each docstring says what a change is for.

``worker.app`` and ``worker.boot`` apply them. The versions are pinned: before they are raised,
tests/acceptance/test_hostile_messages.py must pass. Clients share one more change, ``shared.broker.HidingAMQP``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from queue import Empty
from types import SimpleNamespace
from typing import Any

from celery import Task, current_app
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.exceptions import NotRegistered
from celery.worker.request import Request
from celery.worker.state import revoked
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils import json as kombu_json
from redis.exceptions import ResponseError

from shared import routing
from shared.errors import InvalidRequest
from shared.fleet_clock import SENT_AT
from shared.logs import get_logger
from shared.redaction import HIDDEN, error_class_of
from shared.settings import get_settings
from worker.broker.clock import fleet_clock
from worker.broker.messages import (
    NotAMessage,
    UnreadableBody,
    check_control,
    check_task,
    check_unacknowledged,
    describe,
)

log = get_logger(__name__)

#: Queues whose messages are tasks; others are remote control, and answers to it.
_COMMANDS, _REPLIES = ".celery.pidbox", ".reply.celery.pidbox"
_TASK_QUEUES = frozenset((*routing.QUEUES, *(routing.gate_queue(node) for node in routing.NODES)))
#: What kombu raises when an item is no JSON.
_NO_JSON = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


def _drop(reason: str, raw: Any, queue: str) -> None:
    log.error("message dropped", queue=queue, problem=reason, **describe(raw, _may_show))


def _may_show(task: str) -> bool:
    return task in current_app.tasks or get_settings().log_payloads


def takes_tasks(queue: str) -> bool:
    """Whether a queue's messages are tasks."""
    return queue in _TASK_QUEUES


def checked_task(raw: Any, queue: str) -> dict[str, Any] | None:
    """What Celery may see of a task's message. None: it was dropped, and its sender told if that is possible."""
    try:
        message = check_task(raw, queue)
    except UnreadableBody as error:
        _drop(str(error), raw, queue)
        if _is_known(error.headers["task"]):
            answer_unread(
                error.headers, InvalidRequest(f"the message can't be read, {error}: send plain JSON")
            )
        return None
    except NotAMessage as error:
        _drop(str(error), raw, queue)
        return None
    headers = message["headers"]
    # Where its sender does not say: Redis keeps it with the message, also if another node gets the message later.
    headers.setdefault(SENT_AT, fleet_clock.now())
    if not _is_known(headers["task"]):
        _drop("it is for a task that does not exist", raw, queue)
        answer_unread({**headers, **message["properties"]}, NotRegistered(headers["task"]))
        return None
    return message


def checked_control(raw: Any, queue: str) -> dict[str, Any] | None:
    """What Celery may see of a message of remote control. None: it was dropped."""
    try:
        return check_control(raw, command=queue.endswith(_COMMANDS) and not queue.endswith(_REPLIES))
    except NotAMessage as error:
        _drop(str(error), raw, queue)
        return None


def handed_on(
    message: dict[str, Any],
    item: Any,
    queue: str,
    callback: Callable[[Any], Any],
    lost: tuple[type[Exception], ...],
) -> bool:
    """Call Celery with a checked message, as the transport's ``item``. False: it could not use it.

    Raises: ``lost``, the transport's errors of a lost connection.
    """
    try:
        callback(item)
    except lost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, the next message is not to blame
        _drop(f"Celery can't use it ({type(error).__name__})", message, queue)
        return False
    return True


class QoS(redis.QoS):  # type: ignore[misc]
    """Checks unacknowledged messages before they are put back: in kombu 5.7 an invalid one raises at every restore."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            # One of the keys has another type: nothing can be put back, and everything else continues.
            log.error("unacknowledged messages not restored", error=error)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        def restore(pipe: Any) -> None:
            entry = pipe.hget(self.unacked_key, tag)
            pipe.multi()
            self._remove_from_indices(tag, pipe)
            if not entry:
                return
            try:
                raw, queue = check_unacknowledged(entry)
            except NotAMessage as error:
                log.error("unacknowledged message dropped", problem=str(error), bytes=len(entry))
                return
            (pipe.lpush if leftmost else pipe.rpush)(queue, json.dumps(raw))

        with self.channel.conn_or_acquire(client) as client:
            client.transaction(restore, self.unacked_key)


class Channel(redis.Channel):  # type: ignore[misc]
    """Checks every message between Redis and Celery, and drops an invalid one with one line in the log.

    kombu 5.7 and Celery 5.6 end the worker when a part of a message has an unexpected type, and put the message back, so
    that it ends one worker after another.
    """

    QoS = QoS
    #: Messages that this process has taken from queues.
    taken = 0
    _client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """kombu 5.7 makes a client for every command, which takes as long as the command: one does for a pool."""
        if asynchronous:
            return super()._create_client(asynchronous)
        if self._client is None or self._client.connection_pool is not self.pool:
            self._client = super()._create_client()
        return self._client

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        consumed = super().basic_consume(queue, *args, **kwargs)
        callbacks = self.connection._callbacks
        take = self._take_task if queue in _TASK_QUEUES else self._take_control
        callback = callbacks[queue]
        callbacks[queue] = lambda raw: take(raw, queue, callback)
        return consumed

    def _take_task(self, raw: Any, queue: str, callback: Callable[[Any], Any]) -> None:
        Channel.taken += 1
        message = checked_task(raw, queue)
        if message is not None and not self._hand_on(message, queue, callback):
            # kombu has noted the message as taken.
            self.basic_reject(message["properties"]["delivery_tag"], requeue=False)

    def _take_control(self, raw: Any, queue: str, callback: Callable[[Any], Any]) -> None:
        message = checked_control(raw, queue)
        if message is not None:
            self._hand_on(message, queue, callback)

    def _hand_on(self, message: dict[str, Any], queue: str, callback: Callable[[Any], Any]) -> bool:
        return handed_on(message, message, queue, callback, self.connection_errors)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except _NO_JSON as error:
            # It has been taken off the queue and is not noted as taken: nothing to acknowledge.
            log.error("message dropped", problem=f"it is no JSON ({type(error).__name__})")
            raise Empty from error

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)
        except _NO_JSON as error:
            log.error("control message dropped", problem=f"it is no JSON ({type(error).__name__})")
            return False


def _is_known(task: str) -> bool:
    # Celery's own (chord_unlock, backend_cleanup) are not for callers.
    return task in current_app.tasks and not task.startswith("celery.")


def answer_unread(headers: Mapping[str, Any], error: Exception) -> None:
    """Tell the sender of a message why it was dropped, as Celery does for an unknown task."""
    if headers.get("ignore_result"):
        return
    names = ("root_id", "correlation_id", "reply_to", "chord", "chain", "errbacks")
    request = SimpleNamespace(
        task=headers["task"], id=headers["id"], **{name: headers.get(name) for name in names}
    )
    try:
        current_app.backend.mark_as_failure(headers["id"], error, request=request)
    except Exception as failure:  # noqa: BLE001 - the sender waits in vain, others must not
        log.warning("dropped message not answered", id=headers["id"], error=type(failure).__name__)


class Transport(redis.Transport):  # type: ignore[misc]
    """Puts a message back unread if this node no longer consumes its queue: kombu 5.7 would parse it unchecked."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue in self._callbacks:
            super()._deliver(message, queue)
            return
        with next(iter(self.channels)).conn_or_acquire() as client:
            client.rpush(queue, json.dumps(message))


def install_transport() -> None:
    """Use ``Transport`` for Redis's URLs and ``worker.broker.rabbitmq`` for RabbitMQ's in this process, and plain JSON.

    kombu 5.7's JSON makes objects of what looks like ``{"__type__": "uuid", "__value__": ...}``, and raises when it
    can't. A caller's data may look like anything.
    """
    TRANSPORT_ALIASES["amqp"] = "worker.broker.rabbitmq:Transport"
    TRANSPORT_ALIASES["amqps"] = "worker.broker.rabbitmq:SSLTransport"
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = f"{__name__}:Transport"
    kombu_json.loads.__defaults__ = (json.loads, True, None)


class EventSender(EventDispatcher):  # type: ignore[misc]
    """Sends events without what callers sent, and without waiting for a broker that is away.

    Celery 5.6 puts arguments, results, errors and tracebacks into each. It sends a heartbeat again and again until the broker
    is back, in the event loop, which then does not notice that it has lost its connection, too. And it sends the events of tasks
    in each round of that loop, a sixth of what a small request costs the main process: ``worker.boot`` sends them together.
    """

    def hold(self) -> None:
        """From now on send events of tasks when ``flush_held`` is called, or when there are many."""
        self.on_send_buffered = None

    def flush_held(self) -> None:
        """Send the events of tasks that wait."""
        if any(self._group_buffer.values()):
            self.flush()

    def send(self, type: str, *args: Any, **fields: Any) -> Any:
        # One that is not sent waits for the next connection.
        fields["retry"] = False
        if not get_settings().log_payloads:
            for name in ("args", "kwargs", "result", "traceback"):
                if name in fields:
                    fields[name] = HIDDEN
            if "exception" in fields:
                fields["exception"] = error_class_of(str(fields["exception"]))
        return super().send(type, *args, **fields)


class FleetEvents(Events):  # type: ignore[misc]
    """Makes Celery use ``EventSender``: its class is no setting."""

    dispatcher_cls = EventSender


#: Called after a message was acknowledged or rejected: its child is free.
_after_acknowledge: Callable[[], object] | None = None


def call_after_acknowledge(call: Callable[[], object] | None) -> None:
    """Call this function from now on when a task has ended: Celery 5.6 has no signal for it in the main process."""
    global _after_acknowledge
    _after_acknowledge = call


class HidingRequest(Request):  # type: ignore[misc]
    """A task's message in the main process, without its arguments, which Celery 5.6 logs and shows.

    The headers of a message from a bare ``send_task`` hold them as text.
    """

    def acknowledge(self) -> None:
        super().acknowledge()
        if _after_acknowledge is not None:
            _after_acknowledge()

    def reject(self, requeue: bool = False) -> None:
        super().reject(requeue=requeue)
        if _after_acknowledge is not None:
            _after_acknowledge()

    def __init__(self, message: Any, *args: Any, **options: Any) -> None:
        super().__init__(message, *args, **options)
        if get_settings().log_payloads:
            return
        self._argsrepr = self._kwargsrepr = HIDDEN
        # What the child gets, and logs. A "shadow" is a name chosen by the sender.
        self._request_dict.update(argsrepr=HIDDEN, kwargsrepr=HIDDEN, shadow=None)
        self.name = self._type

    def maybe_expire(self) -> bool:
        """Celery 5.6 compares with the clock of this machine."""
        if not self.expires or fleet_clock.now() <= self.expires.timestamp():
            return False
        revoked.add(self.id)
        return True

    def info(self, safe: bool = False) -> dict[str, Any]:
        """For ``celery inspect active`` and Flower's pages."""
        shown: dict[str, Any] = super().info(safe=safe or not get_settings().log_payloads)
        return shown


class HidingTask(Task):  # type: ignore[misc]
    """Base of all our tasks: the only way to name another class of request (Celery 5.6)."""

    Request = f"{__name__}:HidingRequest"


def announce_stop(worker: Any, stopping: Callable[[], None]) -> None:
    """Call ``stopping`` before Celery ends the children of a stopping worker.

    Celery 5.6 sends ``worker_shutting_down`` after they have ended; ``wait_for_soft_shutdown`` is called first.
    """
    wait = worker.wait_for_soft_shutdown

    def wait_for_soft_shutdown() -> None:
        stopping()
        wait()

    worker.wait_for_soft_shutdown = wait_for_soft_shutdown


def allow_early_exits(pool: Any) -> None:
    """Let a worker start, and reconnect to the broker, although a child has just ended.

    Celery 5.6 exits with 1 at the start, without a reason, and by a ``ValueError`` when it watches its children again.
    """
    pool.did_start_ok = lambda: True
    children = pool._pool
    if "_track_child_process" in vars(children):
        return
    watch = children._track_child_process

    def watch_living(process: Any, hub: Any) -> None:
        # None: its end has been seen; the pool will replace it.
        if getattr(process, "_sentinel_poll", 0) is not None:
            watch(process, hub)

    children._track_child_process = watch_living


def stop_replacing_children(pool: Any) -> None:
    """Let children end that have work, and start no others: Celery 5.6 does so when its loop has ended, after a last one."""
    pool.on_close()
