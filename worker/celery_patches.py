"""All changes to Celery 5.6 and kombu 5.7: what each class and function is for is said in its docstring.

``worker.app`` and ``worker.boot`` apply them; nothing here does so by itself. Their versions are pinned, and
tests/acceptance/test_hostile_messages.py must pass before they are raised. The one change that callers share, arguments
left out of the headers of what is sent, is ``shared.broker.HidingAMQP``.
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
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils import json as kombu_json
from redis.exceptions import ResponseError

from shared import routing
from shared.errors import InvalidRequest
from shared.logs import get_logger
from shared.redaction import HIDDEN, error_class_of
from shared.settings import get_settings
from worker.messages import (
    NotAMessage,
    TaskMessage,
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


def _drop(reason: str, raw: Any, queue: str) -> None:
    log.error("message dropped", queue=queue, problem=reason, **describe(raw, _may_show))


def _may_show(task: str) -> bool:
    return task in current_app.tasks or get_settings().log_payloads


class QoS(redis.QoS):  # type: ignore[misc]
    """Checks what was taken and not acknowledged before it is put back.

    kombu 5.7 trusts what stands in ``unacked``: an entry of another kind raises in the main process, at every restore.
    """

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            # One of the keys is of another kind: nothing can be put back, and nothing else is to suffer.
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
    """Checks every message between Redis and Celery, and drops what is none with one line in the log.

    kombu 5.7 and Celery 5.6 end the worker when a part of a message is of a kind they do not expect, and put the
    message back, so that it ends one worker after another.
    """

    QoS = QoS

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        consumed = super().basic_consume(queue, *args, **kwargs)
        callbacks = self.connection._callbacks
        take = self._take_task if queue in _TASK_QUEUES else self._take_control
        callback = callbacks[queue]
        callbacks[queue] = lambda raw: take(raw, queue, callback)
        return consumed

    def _take_task(self, raw: Any, queue: str, callback: Callable[[Any], Any]) -> None:
        try:
            message = check_task(raw, queue)
        except UnreadableBody as error:
            _drop(str(error), raw, queue)
            if _is_known(error.headers["task"]) and not error.headers.get("ignore_result"):
                _answer(error.headers, InvalidRequest(f"the message can't be read, {error}: send plain JSON"))
            return
        except NotAMessage as error:
            _drop(str(error), raw, queue)
            return
        if not _is_known(message.task):
            _drop("it is for a task that does not exist", raw, queue)
            if not message.ignore_result:
                properties = message.raw["properties"]
                _answer({**message.raw["headers"], **properties}, NotRegistered(message.task))
            return
        self._hand_on(message, queue, callback)

    def _hand_on(self, message: TaskMessage, queue: str, callback: Callable[[Any], Any]) -> None:
        try:
            callback(message.raw)
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the next message is not to blame
            # The message has been noted as taken.
            _drop(f"Celery can't use it ({type(error).__name__})", message.raw, queue)
            self.basic_reject(message.raw["properties"]["delivery_tag"], requeue=False)

    def _take_control(self, raw: Any, queue: str, callback: Callable[[Any], Any]) -> None:
        try:
            message = check_control(raw, command=queue.endswith(_COMMANDS) and not queue.endswith(_REPLIES))
        except NotAMessage as error:
            _drop(str(error), raw, queue)
            return
        try:
            callback(message)
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001 - as above; nothing of this kind is noted as taken
            _drop(f"Celery can't use it ({type(error).__name__})", message, queue)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            # Not even JSON. It has been taken off the queue and is not noted as taken: nothing to acknowledge.
            log.error("message dropped", problem=f"it is no JSON ({type(error).__name__})")
            raise Empty from error

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            log.error("control message dropped", problem=f"it is no JSON ({type(error).__name__})")
            return False


def _is_known(task: str) -> bool:
    # Celery's own (chord_unlock, backend_cleanup) are not for callers.
    return task in current_app.tasks and not task.startswith("celery.")


def _answer(headers: Mapping[str, Any], error: Exception) -> None:
    """Tell whoever sent a message why it was dropped, as Celery does when it does not know a task."""
    request = SimpleNamespace(
        task=headers["task"],
        id=headers["id"],
        root_id=headers.get("root_id"),
        correlation_id=headers.get("correlation_id"),
        reply_to=headers.get("reply_to"),
        chord=None,
        chain=None,
        errbacks=None,
    )
    try:
        current_app.backend.mark_as_failure(headers["id"], error, request=request)
    except Exception as failure:  # noqa: BLE001 - the sender waits in vain, others must not
        log.warning("dropped message not answered", id=headers["id"], error=type(failure).__name__)


class Transport(redis.Transport):  # type: ignore[misc]
    """Puts a message back whose queue this node no longer consumes, unread: kombu 5.7 would parse it, unchecked."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue in self._callbacks:
            super()._deliver(message, queue)
            return
        # This node has just stopped to consume the queue: back to where it was, unlooked at.
        with next(iter(self.channels)).conn_or_acquire() as client:
            client.rpush(queue, json.dumps(message))


def install_transport() -> None:
    """Use ``Transport`` for Redis's URLs in this process, and JSON that stays what it is.

    kombu 5.7's JSON makes objects of what looks like ``{"__type__": "uuid", "__value__": ...}``, wherever it stands, and
    raises in the middle of everything when it can't. A caller's data may look like anything.
    """
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = f"{__name__}:Transport"
    kombu_json.loads.__defaults__ = (json.loads, True, None)


#: Fields of task events that hold payload.
_FIELDS = ("args", "kwargs", "result", "traceback")


class HidingDispatcher(EventDispatcher):  # type: ignore[misc]
    """Sends events with ids, times and classes of errors only.

    Celery 5.6 puts arguments, results, errors and tracebacks into every task event.
    """

    def send(self, type: str, *args: Any, **fields: Any) -> Any:
        for name in _FIELDS:
            if name in fields:
                fields[name] = HIDDEN
        if "exception" in fields:
            fields["exception"] = error_class_of(str(fields["exception"]))
        return super().send(type, *args, **fields)


class HidingEvents(Events):  # type: ignore[misc]
    """Makes Celery use the dispatcher above: its class is no setting."""

    dispatcher_cls = HidingDispatcher


class HidingRequest(Request):  # type: ignore[misc]
    """A task's message in the main process, which Celery 5.6 logs and shows with its arguments.

    A message of a bare ``send_task`` brings them as text in its headers, so hiding them is the worker's part too.
    """

    def __init__(self, message: Any, *args: Any, **options: Any) -> None:
        super().__init__(message, *args, **options)
        if get_settings().log_payloads:
            return
        self._argsrepr = self._kwargsrepr = HIDDEN
        # What the child gets, and logs. A "shadow" is a name of the sender's choice.
        self._request_dict.update(argsrepr=HIDDEN, kwargsrepr=HIDDEN, shadow=None)
        self.name = self._type

    def info(self, safe: bool = False) -> dict[str, Any]:
        """For ``celery inspect active`` and Flower's pages."""
        shown: dict[str, Any] = super().info(safe=safe or not get_settings().log_payloads)
        return shown


class HidingTask(Task):  # type: ignore[misc]
    """Base of all our tasks: the only way to name another class of request (Celery 5.6)."""

    Request = f"{__name__}:HidingRequest"


def announce_stop(worker: Any, stopping: Callable[[], None]) -> None:
    """Call ``stopping`` before Celery ends the children of a stopping worker.

    Celery 5.6 sends ``worker_shutting_down`` only after they are dead; this is the first thing its handler calls.
    """
    wait = worker.wait_for_soft_shutdown

    def wait_for_soft_shutdown() -> None:
        stopping()
        wait()

    worker.wait_for_soft_shutdown = wait_for_soft_shutdown


def allow_early_exits(pool: Any) -> None:
    """Let a worker start although a child has ended already; Celery 5.6 leaves with 1 then, and does not say why."""
    pool.did_start_ok = lambda: True
