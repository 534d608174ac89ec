"""RabbitMQ as the broker: the checks of ``worker.broker.messages`` between kombu's transport and Celery."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kombu.transport import pyamqp

from worker.broker.celery_patches import checked_control, checked_task, handed_on, takes_tasks

#: Properties of AMQP that Celery reads, besides headers and the kind of content.
_PROPERTIES = ("correlation_id", "reply_to", "priority")


class Channel(pyamqp.Channel):  # type: ignore[misc]
    """Checks every message between RabbitMQ and Celery, as ``celery_patches.Channel`` does for Redis."""

    def basic_consume(self, queue: str = "", *args: Any, **options: Any) -> Any:
        callback = options.get("callback")
        if callback is not None:
            options["callback"] = partial(self._take, queue, callback, not options.get("no_ack"))
        return super().basic_consume(queue, *args, **options)

    def _take(self, queue: str, callback: Callable[[Any], Any], acknowledges: bool, item: Any) -> None:
        check = checked_task if takes_tasks(queue) else checked_control
        message = check(_as_json(item), queue)
        if message is not None:
            _replace(item, message)
            if handed_on(message, item, queue, callback, self.connection.connection_errors):
                return
        if acknowledges:
            self.basic_reject(item.delivery_tag, requeue=False)


def _as_json(item: Any) -> dict[str, Any]:
    """A message as kombu writes it for Redis, which is what ``worker.broker.messages`` reads."""
    properties, body = item.properties, item.body
    if isinstance(body, (bytes, bytearray)):
        try:
            body = body.decode()
        except UnicodeDecodeError:
            # No text: the check says so.
            body = bytes(body)
    info = item.delivery_info
    return {
        "body": body,
        "content-type": properties.get("content_type"),
        "content-encoding": properties.get("content_encoding"),
        "headers": properties.get("application_headers") or {},
        "properties": {
            **{name: properties[name] for name in _PROPERTIES if name in properties},
            "delivery_info": {name: info[name] for name in ("exchange", "routing_key")},
        },
    }


def _replace(item: Any, message: dict[str, Any]) -> None:
    """Leave of an item what was checked. Its tag is RabbitMQ's: no sender can choose it."""
    checked = message["properties"]
    item.body = message["body"]
    item.properties = {
        "content_type": message["content-type"],
        "content_encoding": message["content-encoding"],
        "application_headers": message["headers"],
        **{name: checked[name] for name in (*_PROPERTIES, "delivery_mode") if name in checked},
    }
    item.delivery_info.update(checked["delivery_info"])


class Connection(pyamqp.Connection):  # type: ignore[misc]
    """Makes checking channels."""

    Channel = Channel


class Transport(pyamqp.Transport):  # type: ignore[misc]
    """For ``amqp://``."""

    Connection = Connection


class SSLTransport(pyamqp.SSLTransport):  # type: ignore[misc]
    """For ``amqps://``."""

    Connection = Connection
