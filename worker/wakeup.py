"""Sends wake-up messages: each says that a queue has work. The reconciler replaces lost ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from amqp import AMQPError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from db.ledger.jobs import MOST_WAKE_UPS, WakeUp
from shared.logs import get_logger
from shared.routing import wake_up_task
from worker.app import app

log = get_logger(__name__)

_CONFIRM_S = 3


def notify(wake_ups: Iterable[WakeUp], connection: Any = None) -> None:
    """Send wake-up messages through the default exchange, at most ``MOST_WAKE_UPS`` per queue."""
    sent: Counter[str] = Counter()
    try:
        for wake_up in wake_ups:
            sent[wake_up.queue] += 1
            if sent[wake_up.queue] > MOST_WAKE_UPS:
                continue
            app.send_task(
                wake_up_task(wake_up.queue),
                kwargs={"job_id": wake_up.job_id},
                queue=wake_up.queue,
                ignore_result=True,
                retry=False,
                # For RabbitMQ, which confirms each message.
                confirm_timeout=_CONFIRM_S,
                connection=connection,
            )
    except (OperationalError, RedisError, AMQPError, OSError) as error:
        log.warning("wake-up message not sent, the reconciler will", error=error)
