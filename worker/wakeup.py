"""Ringing: a Celery message that says a lane has work. Losing one loses nothing, the reconciler rings again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from db.ledger.jobs import Bell
from shared.logs import get_logger
from shared.routing import bell_task
from worker.app import app

log = get_logger(__name__)


def ring(bells: Iterable[Bell], connection: Any = None) -> int:
    """Send one message per bell through the default exchange. Returns how many went out."""
    sent = 0
    try:
        for bell in bells:
            app.send_task(
                bell_task(bell.lane),
                kwargs={"job_id": bell.job_id},
                queue=bell.lane,
                ignore_result=True,
                retry=False,
                connection=connection,
            )
            sent += 1
    except (OperationalError, RedisError, OSError) as error:
        log.warning("bell not rung, the reconciler will", error=error)
    return sent
