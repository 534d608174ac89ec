"""Garbage in a queue is logged and dropped; the node lives.

Celery drops most of it (a wrong serializer, a broken body, an unknown task), but two kinds end the whole worker: what
is no message at all, and a message whose body or headers are not of the kinds expected. The second is put back when
the worker leaves, so that it would end one worker after another for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty
from types import NoneType
from typing import Any

from celery import Task
from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default
from kombu.transport import TRANSPORT_ALIASES, redis

from shared.logs import get_logger

log = get_logger(__name__)

#: What code that takes a message apart raises when a part is of another kind.
_MISFIT = (TypeError, ValueError, LookupError, AttributeError)


class NotAMessage(Exception):
    """What stood in the queue has not the form of a message."""


class Message(redis.Channel.Message):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
            self._check()
        except _MISFIT as error:
            raise NotAMessage(repr(error)) from error

    def _check(self) -> None:
        """Refuse what Celery would stumble over on its way to refusing the message."""
        parts = {
            "body": self.body,
            "content type": self.content_type,
            "content encoding": self.content_encoding,
            # An unknown task is looked up by its name and answered under its id.
            **{name: self.headers[name] for name in ("task", "id") if name in self.headers},
        }
        for name, part in parts.items():
            if not isinstance(part, (str, bytes)):
                raise NotAMessage(f"{name} is a {type(part).__name__}, not text")
        # Celery looks at these two when it has taken a child of the pool, and never gives that child back.
        limits = self.headers.get("timelimit") or (None, None)
        if len(limits) != 2 or not all(isinstance(limit, (int, float, NoneType)) for limit in limits):
            raise NotAMessage("timelimit is no pair of seconds")
        stamps = self.headers.get("stamped_headers") or ()
        if not isinstance(stamps, (list, tuple)) or not all(isinstance(stamp, str) for stamp in stamps):
            raise NotAMessage("stamped_headers is no list of names")


class Channel(redis.Channel):  # type: ignore[misc]
    Message = Message

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (NotAMessage, ValueError, RecursionError) as error:
            # It has been taken off the queue and is not counted as one of ours: nothing to acknowledge.
            log.error("not a message, dropped", error=error)
            raise Empty from error


class Transport(redis.Transport):  # type: ignore[misc]
    Channel = Channel


def install_transport() -> None:
    """Use the transport above for ``redis://`` URLs in this process."""
    TRANSPORT_ALIASES["redis"] = f"{__name__}:Transport"


def careful(task: Task, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's way to receive a task's messages, misfits refused as it refuses other invalid ones."""
    receive = default(task, app, consumer, **options)

    def task_message_handler(message: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return receive(message, *args, **kwargs)
        except _MISFIT as error:
            raise InvalidTaskError(f"the message does not fit {task.name}: {error!r}") from error

    return task_message_handler


class CarefulTask(Task):  # type: ignore[misc]
    """Base of all our tasks."""

    Strategy = f"{__name__}:careful"
    Request = "worker.payloads:Request"
