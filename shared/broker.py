"""Celery's configuration for workers and clients: each line replaces a default that loses data or messages."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from celery.app.amqp import AMQP
from kombu import Queue

from . import routing, trace_context
from .redaction import HIDDEN

#: Header: when the message was sent, seconds since 1970 by the sender's clock. How long it has waited is told from this: RabbitMQ
#: does not say.
SENT_HEADER = "scenefleet_sent"


class TracingAMQP(AMQP):  # type: ignore[misc]
    """Builds messages that say when they were sent, and belong to the trace of the code that sends them."""

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        message = super().as_task_v2(*args, **options)
        message.headers[SENT_HEADER] = time.time()
        context = trace_context.current()
        if context is not None:
            message.headers[trace_context.HEADER] = str(context)
        return message


class HidingAMQP(TracingAMQP):
    """Builds messages whose headers don't repeat the arguments as text, which workers would log and Flower show."""

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        return super().as_task_v2(*args, **{**options, "argsrepr": HIDDEN, "kwargsrepr": HIDDEN})


def celery_url(redis_url: str) -> str:
    """REDIS_URL as Celery and Flower write it.

    They differ from redis-py for a Unix socket only, as the embedded Redis has: ``unix://:password@/path?db=0`` is
    ``redis+socket://:password@/path?virtual_host=0`` for them.
    """
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    names = {"db": "virtual_host"}
    query = [(names.get(name, name), value) for name, value in parse_qsl(parts.query)]
    # Not by urlunsplit: it leaves the slashes out where there is no password.
    return f"redis+socket://{parts.netloc}{parts.path}?{urlencode(query or [('virtual_host', '0')])}"


def broker_config(
    redis_url: str, *, broker_url: str = "", visibility_timeout_s: int = 3600, result_expires_s: int = 600
) -> dict[str, Any]:
    """The Celery settings of clients; workers add queues (``worker.app``).

    Args:
        broker_url: a RabbitMQ that has the queues; Redis still has the results. Empty: Redis has both.
    """
    url = celery_url(redis_url)
    return {
        "broker_url": broker_url or url,
        "result_backend": url,
        "result_expires": result_expires_s,
        "redis_socket_connect_timeout": 3,
        "redis_socket_timeout": 30,
        # Celery's store of answers can't take it for a Unix socket, which needs none.
        "redis_socket_keepalive": url == redis_url,
        "redis_retry_on_timeout": True,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "enable_utc": True,
        "timezone": "UTC",
        # Queues without a named exchange: kombu's bindings live in Redis and a FLUSHALL deletes them.
        "task_queues": [Queue(name) for name in sorted({*routing.TASK_QUEUE.values()})],
        "task_create_missing_queues": False,
        "task_default_queue": routing.REQUESTS,
        "task_default_exchange": "",
        "task_default_routing_key": routing.REQUESTS,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        **(_RABBITMQ if broker_url else _redis_options(visibility_timeout_s)),
    }


_RABBITMQ: dict[str, Any] = {
    "broker_connection_timeout": 3,
    # Nothing would send heartbeats over a connection that only sends messages, and the server would end it when idle.
    # Consumers have them (worker/boot.py).
    "broker_heartbeat": 0,
    # A message counts as sent when the server has it.
    "broker_transport_options": {"confirm_publish": True},
}


def _redis_options(visibility_timeout_s: int) -> dict[str, Any]:
    return {
        "broker_transport_options": {
            "socket_connect_timeout": 3,
            "socket_timeout": 30,
            "socket_keepalive": True,
            "visibility_timeout": visibility_timeout_s,
            "unacked_restore_interval": 10,
            # Every time; the default is every tenth.
            "unacked_restore_throttle": 1,
            "unacked_restore_limit": 1000,
            "queue_order_strategy": "priority",
        },
    }
