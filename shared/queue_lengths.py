"""How many messages wait in queues, by whichever broker has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kombu import Queue


def waiting(connection: Any, queues: Iterable[str]) -> dict[str, int]:
    """Messages per queue that wait; those taken and not acknowledged yet are not counted.

    Args:
        connection: kombu's, to Redis or RabbitMQ. A queue that RabbitMQ doesn't have yet is made.
    """
    with connection.channel() as channel:
        return {queue: int(Queue(queue)(channel).queue_declare().message_count) for queue in queues}
