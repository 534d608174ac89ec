"""A caller's reply list: a Redis list, named by the caller, to which tasks append their answers when they have ended.

The caller sends tasks with ``reply_to=new_reply_key()`` and waits on the list: one blocking read instead of polling or a
subscription, for one answer or for several. The worker appends for every outcome that Celery records
(worker/broker/replies.py): success, error, time limit, dead process. The result backend holds the answer as well, unless the
message says ``ignore_result``.

Keys, ``encode_reply`` and ``decode_reply`` are pure, for callers with another client of Redis. A reply may arrive twice.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from celery.states import FAILURE, SUCCESS

from . import errors

PREFIX = "scenefleet:reply:"
#: A list that no caller reads expires after this time, seconds.
KEPT_S = 60
#: Longest single wait on Redis, seconds: less than any ``socket_timeout`` of ours.
_STEP_S = 2.0
_KEY = re.compile(re.escape(PREFIX) + "[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How a task has ended."""

    #: Of the task.
    id: str
    #: Its answer as plain JSON; None if it failed.
    result: Any = None
    #: Name of the error's class; None: success.
    error_class: str | None = None
    #: Text of the error.
    message: str = ""

    @property
    def error(self) -> Exception | None:
        """The error with which the task has ended; one that is not ours becomes ``Retryable``."""
        if self.error_class is None:
            return None
        kind = getattr(errors, self.error_class, None)
        if isinstance(kind, type) and issubclass(kind, errors.ScenefleetError):
            return kind(self.message)
        if self.error_class in ("ConnectionError", "TimeoutError", "OperationalError"):
            # Celery could not store the answer of a task that may have been done.
            return errors.BrokerUnavailable(f"Redis did not answer the node ({self.message}): send it again")
        if self.error_class == "WorkerLostError":
            return errors.WorkerLost(
                "the process that ran the request crashed: send it again, and check the node's log"
            )
        return errors.Retryable(f"{self.error_class}: {self.message}")


def new_reply_key() -> str:
    """The key of a new reply list."""
    return PREFIX + uuid4().hex


def is_reply_key(value: object) -> bool:
    """Whether a message's ``reply_to`` names a reply list; Celery's clients write other things there."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def encode_reply(reply: Reply) -> bytes:
    """A reply as an item of the list. Raises TypeError: the answer is no plain JSON."""
    said: dict[str, Any] = {"id": reply.id}
    if reply.error_class is None:
        said |= {"status": SUCCESS, "result": reply.result}
    else:
        said |= {"status": FAILURE, "error": reply.error_class, "message": reply.message}
    return json.dumps(said, separators=(",", ":")).encode()


def decode_reply(item: bytes | str) -> Reply | None:
    """The reply that an item of the list holds; None: it is none of ours."""
    try:
        said = json.loads(item)
        if said["status"] == SUCCESS:
            return Reply(id=str(said["id"]), result=said["result"])
        return Reply(id=str(said["id"]), error_class=str(said["error"]), message=str(said["message"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def push_reply(redis: Any, key: str, reply: Reply) -> None:
    """Append a reply to a list, in one round trip. Raises RedisError."""
    with redis.pipeline() as pipe:
        pipe.rpush(key, encode_reply(reply))
        pipe.expire(key, KEPT_S)
        pipe.execute()


def wait_replies(redis: Any, key: str, ids: Collection[str], deadline: float) -> Iterator[Reply]:
    """The replies of the tasks ``ids`` as they arrive, each once, until all are there or the deadline has passed.

    Args:
        redis: a client of redis-py whose ``socket_timeout`` is above 2 s, or None.
        deadline: a value of ``time.monotonic()``.

    Raises:
        RedisError.
    """
    missing = set(ids)
    while missing and (left_s := deadline - time.monotonic()) > 0:
        # Rounded up to a millisecond: 0 would wait for ever.
        found = redis.blpop([key], timeout=max(0.001, min(left_s, _STEP_S)))
        reply = None if found is None else decode_reply(found[1])
        if reply is not None and reply.id in missing:
            missing.remove(reply.id)
            yield reply
