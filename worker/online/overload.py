"""Refuses the newest messages of an online queue that is longer than its limit, as callers send them without asking first.

Callers that reserve their place (shared/admission.py) are refused before they send.
"""

from __future__ import annotations

import json
from typing import Any

from celery import current_app

from shared.errors import Overloaded
from shared.logs import get_logger
from worker.broker.celery_patches import answer_unread
from worker.broker.messages import NotAMessage, check_task

log = get_logger(__name__)

#: Messages that are refused at once; the event loop waits meanwhile.
AT_ONCE = 200
# New messages come in on the left. They wait in a list of their own until they are answered, should this process die.
_MOVE_NEWEST = """
local over = redis.call('LLEN', KEYS[1]) - ARGV[1]
for _ = 1, math.min(over, ARGV[2]) do
    redis.call('RPUSH', KEYS[2], redis.call('LPOP', KEYS[1]))
end
return redis.call('LRANGE', KEYS[2], 0, ARGV[2] - 1)
"""


def refuse_newest(client: Any, queue: str, limit: int, retry_after_s: float) -> int:
    """Answer the messages beyond ``limit`` with ``Overloaded``; returns how many were refused, 200 at most."""
    refused = f"scenefleet:refused:{queue}"
    moved = client.eval(_MOVE_NEWEST, 2, queue, refused, limit, AT_ONCE)
    if not moved:
        return 0
    with current_app.backend.together():
        for raw in moved:
            try:
                message = check_task(json.loads(raw), queue)
            except (NotAMessage, ValueError, RecursionError) as error:
                log.error("message dropped", queue=queue, problem=type(error).__name__, bytes=len(raw))
            else:
                refusal = Overloaded(f"queue {queue} has {limit} requests that wait", retry_after_s)
                answer_unread({**message["headers"], **message["properties"]}, refusal)
    with client.pipeline(transaction=False) as pipe:
        for raw in moved:
            # Not by its place: another node of the family may have removed others.
            pipe.lrem(refused, 1, raw)
        pipe.execute()
    return len(moved)
