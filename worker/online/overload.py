"""Refuses the newest messages of a queue of requests that is too long.

Callers that reserve their place (shared/admission.py) are refused before they send. Those who do not have the limit of one user
together: while the queue has more messages than that, their newest are refused, and those of other callers stay.
"""

from __future__ import annotations

import json
import time
from typing import Any

from celery import current_app
from redis.exceptions import ResponseError

from shared.admission import HEADER, Limits
from shared.errors import Overloaded
from shared.logs import get_logger
from worker.broker.celery_patches import answer_unread
from worker.broker.messages import NotAMessage, check_task
from worker.telemetry import metrics

log = get_logger(__name__)

#: When a caller may send a refused request again, seconds.
RETRY_AFTER_S = 2.0
#: Messages that are refused at once; the event loop waits meanwhile.
_AT_ONCE = 200
#: How long the event loop may refuse messages before it goes on, seconds.
_REFUSING_S = 0.2
# New messages come in on the left. They wait in a list of their own until they are answered, should this process die.
# A text in a message has its quotes escaped, so it does not look like the header.
_MOVE_NEWEST = f"""
local length, place = redis.call('LLEN', KEYS[1]), 0
for _ = 1, math.min(length, ARGV[3]) do
    if length <= tonumber(ARGV[2]) then break end
    local raw = redis.call('LINDEX', KEYS[1], place)
    if length > tonumber(ARGV[1]) or not string.find(raw, '"{HEADER}": ?"') then
        redis.call('LREM', KEYS[1], 1, raw)
        redis.call('RPUSH', KEYS[2], raw)
        length = length - 1
    else
        place = place + 1
    end
end
return redis.call('LRANGE', KEYS[2], 0, ARGV[3] - 1)
"""


def refuse_newest(channel: Any, queue: str, limits: Limits) -> None:
    """Answer the newest messages beyond the limits with ``Overloaded``, for 0.2 s at most.

    Args:
        channel: kombu's, to Redis. RabbitMQ limits its queues itself (docs/deploy.md).
    """
    refused, ends_s = 0, time.monotonic() + _REFUSING_S
    try:
        with channel.conn_or_acquire() as client:
            while number := _refuse(client, queue, limits):
                refused += number
                if number < _AT_ONCE or time.monotonic() > ends_s:
                    break
    except ResponseError as error:
        # One of the keys has another type; everything else continues.
        log.error("queue not looked at", queue=queue, error=error)
        return
    if refused:
        metrics.count_rejected(queue, "queue full", refused)
        log.warning("requests refused: the queue is full", queue=queue, requests=refused)


def _refuse(client: Any, queue: str, limits: Limits) -> int:
    refused = f"scenefleet:refused:{queue}"
    limit = limits.queue_items
    # Never more than the queue's: all messages count for that.
    unreserved = min(limit, limits.user_items)
    moved = client.eval(_MOVE_NEWEST, 2, queue, refused, limit, unreserved, _AT_ONCE)
    if not moved:
        return 0
    with current_app.backend.together():
        for raw in moved:
            try:
                message = check_task(json.loads(raw), queue)
            except (NotAMessage, ValueError, RecursionError) as error:
                log.error("message dropped", queue=queue, problem=type(error).__name__, bytes=len(raw))
            else:
                least = limit if HEADER in message["headers"] else unreserved
                refusal = Overloaded(f"queue {queue} has {least} requests that wait", RETRY_AFTER_S)
                answer_unread({**message["headers"], **message["properties"]}, refusal)
    with client.pipeline(transaction=False) as pipe:
        for raw in moved:
            # Not by its place: another node of the family may have removed others.
            pipe.lrem(refused, 1, raw)
        pipe.execute()
    return len(moved)
