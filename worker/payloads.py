"""What a worker shows of its tasks' arguments, results and errors: events, Flower, ``celery inspect`` and logs get none.

A message of a bare ``send_task`` brings its arguments as text in its headers, so hiding them is the worker's part too.
"""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.worker.request import Request as CeleryRequest

from shared.redaction import HIDDEN, error_class_of
from shared.settings import get_settings

#: Fields of task events that hold payload.
_FIELDS = ("args", "kwargs", "result", "traceback")


class HidingDispatcher(EventDispatcher):  # type: ignore[misc]
    """Sends events with ids, times and the classes of errors."""

    def send(self, type: str, *args: Any, **fields: Any) -> Any:
        for name in _FIELDS:
            if name in fields:
                fields[name] = HIDDEN
        if "exception" in fields:
            fields["exception"] = error_class_of(str(fields["exception"]))
        return super().send(type, *args, **fields)


class HidingEvents(Events):  # type: ignore[misc]
    dispatcher_cls = HidingDispatcher


class Request(CeleryRequest):  # type: ignore[misc]
    """A task's message in the main process, which Celery logs and shows."""

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
    """Base of all our tasks."""

    Request = f"{__name__}:Request"
