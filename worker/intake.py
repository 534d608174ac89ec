"""Garbage in a queue is logged and dropped; the node lives.

kombu and Celery drop much of it (a wrong serializer, a broken body, an unknown task), but what is of a kind they do
not expect ends the whole worker, and a message that was taken is put back then, so that it ends one worker after
another for ever. Here every message is checked (worker/messages.py) between Redis and them.

It touches kombu's internals; its version is pinned, and tests/acceptance/test_hostile_messages.py must pass before it
is raised.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from queue import Empty
from types import SimpleNamespace
from typing import Any

from celery import current_app
from celery.exceptions import NotRegistered
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils import json as kombu_json
from redis.exceptions import ResponseError

from shared import routing
from shared.errors import InvalidRequest
from shared.logs import get_logger
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
    """Keeps what was taken and not acknowledged; what stands there is checked as if it stood in a queue."""

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
    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue in self._callbacks:
            super()._deliver(message, queue)
            return
        # This node has just stopped to consume the queue: back to where it was, unlooked at.
        with next(iter(self.channels)).conn_or_acquire() as client:
            client.rpush(queue, json.dumps(message))


def install_transport() -> None:
    """Use the transport above for Redis's URLs in this process, and JSON that stays what it is.

    kombu's JSON makes objects of what looks like ``{"__type__": "uuid", "__value__": ...}``, wherever it stands, and
    raises in the middle of everything when it can't. A caller's data may look like anything.
    """
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = f"{__name__}:Transport"
    kombu_json.loads.__defaults__ = (json.loads, True, None)
