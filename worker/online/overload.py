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
from worker.online.batch import is_expired
from worker.telemetry import metrics

log = get_logger(__name__)

#: When a caller may send a refused request again, seconds.
RETRY_AFTER_S = 2.0
#: How often a node takes messages out of a queue before it answers them; how many each time, about 10 ms of Redis; their size.
_MOVES = 5
_MOVED = 2000
_MOVED_BYTES = 2**24
#: Messages that are answered at once.
_AT_ONCE = 200
#: How long the event loop may answer them before it goes on, seconds.
_REFUSING_S = 0.2
#: How long one node alone answers them, seconds; more, if it is slow.
_ALONE_MS = 5000
# New messages come in on the left. They wait in a list of their own until they are answered, should this process die: what
# the queue has then is in time. A text in a message has its quotes escaped, so it does not look like the header.
_MOVE_NEWEST = f"""
local length, moved, kept, bytes = redis.call('LLEN', KEYS[1]), 0, {{}}, 0
local queue_items, unreserved = tonumber(ARGV[1]), tonumber(ARGV[2])
while length - moved > unreserved and moved + #kept < {_MOVED} and bytes < {_MOVED_BYTES} do
    local raw = redis.call('LPOP', KEYS[1])
    if not raw then break end
    bytes = bytes + #raw
    if string.find(raw, '"{HEADER}": ?"') then
        kept[#kept + 1] = raw
    else
        redis.call('RPUSH', KEYS[2], raw)
        moved = moved + 1
    end
end
-- Without others to refuse, the newest of those that say to be reserved.
local first = 1
if moved == 0 then first = 1 + math.max(0, math.min(#kept, length - queue_items)) end
for place = 1, first - 1 do redis.call('RPUSH', KEYS[2], kept[place]) end
for place = #kept, first, -1 do redis.call('LPUSH', KEYS[1], kept[place]) end
return {{moved + #kept, redis.call('LLEN', KEYS[2])}}
"""


def refuse_newest(channel: Any, queue: str, limits: Limits) -> None:
    """Take the newest messages beyond the limits out of the queue, and answer them with ``Overloaded``, for 0.2 s at most.

    Args:
        channel: kombu's, to Redis. RabbitMQ limits its queues itself (docs/deploy.md).
    """
    # Never more than the queue's: all messages count for that.
    unreserved = min(limits.queue_items, limits.user_items)
    refused, answered, ends_s = f"scenefleet:refused:{queue}", 0, time.monotonic() + _REFUSING_S
    try:
        with channel.conn_or_acquire() as client:
            for _ in range(_MOVES):
                seen, left = client.eval(_MOVE_NEWEST, 2, queue, refused, limits.queue_items, unreserved)
                if seen < _MOVED:
                    break
            if left and client.set(f"{refused}:node", "", nx=True, px=_ALONE_MS):
                for _ in range(0, left, _AT_ONCE):
                    answered += _answer(client, refused, queue, limits.queue_items, unreserved)
                    if time.monotonic() > ends_s:
                        break
                client.delete(f"{refused}:node")
    except ResponseError as error:
        # One of the keys has another type; everything else continues.
        log.error("queue not looked at", queue=queue, error=error)
        return
    if answered:
        metrics.count_rejected(queue, "queue full", answered)
        log.warning(
            "requests refused: the queue is full", queue=queue, requests=answered, left=left - answered
        )


def _answer(client: Any, refused: str, queue: str, limit: int, unreserved: int) -> int:
    """Answer the first messages of the list ``refused``, and return their number."""
    moved = client.lrange(refused, 0, _AT_ONCE - 1)
    with current_app.backend.together():
        for raw in moved:
            try:
                message = check_task(json.loads(raw), queue)
            except (NotAMessage, ValueError, RecursionError) as error:
                log.error("message dropped", queue=queue, problem=type(error).__name__, bytes=len(raw))
            else:
                if is_expired(message["headers"]):
                    # Its caller no longer waits.
                    continue
                least = limit if HEADER in message["headers"] else unreserved
                refusal = Overloaded(f"queue {queue} has {least} requests that wait", RETRY_AFTER_S)
                answer_unread({**message["headers"], **message["properties"]}, refusal)
    with client.pipeline(transaction=False) as pipe:
        for raw in moved:
            # Not by its place: another node may answer them, if this one takes longer than it may.
            pipe.lrem(refused, 1, raw)
        pipe.execute()
    return len(moved)
