"""Stored answers to requests about people: whose they are, and what an erasure removes.

Celery stores an answer under ``celery-task-meta-{task id}``, which does not name its user. So a request about people is
recorded under its user before it does anything: ``scenefleet:answers:{user}`` has its task id and the time (Redis's clock),
``scenefleet:asking:{user}`` has it until its answer is stored. An erasure reads only these ids. So it never sees an answer
of another user or a key of another program, and its cost is the user's own requests of the last minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery.states import EXCEPTION_STATES
from redis.exceptions import RedisError

from shared.contracts import ID_PATTERN
from shared.errors import BrokerUnavailable
from shared.routing import REQUEST_LIMIT_S
from worker.app import app
from worker.search.wait import PENDING, search_key

_ANSWERS, _ASKING = "scenefleet:answers:", "scenefleet:asking:"
#: A search is answered under the id of its first task within this time, seconds.
_LATEST_S = REQUEST_LIMIT_S + 240
#: Fields of answers that hold people's ids, and their names (``shared.contracts``).
_ID_FIELDS = ("person_id", "other_id")
_NAME_FIELDS = ("name", "other", "old_name", "new_name")
#: Number of answers read at once.
_CHUNK = 500

_NOTE = """
local now = redis.call('TIME')
local time = now[1] + now[2] / 1000000
for _, key in ipairs(KEYS) do
    redis.call('ZREMRANGEBYSCORE', key, '-inf', time - ARGV[2])
    redis.call('ZADD', key, time, ARGV[1])
    redis.call('EXPIRE', key, ARGV[2])
end
"""


@contextmanager
def _redis() -> Iterator[Any]:
    try:
        yield app.backend.client
    except RedisError as error:
        raise BrokerUnavailable(
            f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
        ) from error


def now() -> float:
    """Redis's time, seconds.

    Raises:
        BrokerUnavailable.
    """
    with _redis() as client:
        second, microsecond = client.time()
    return float(second) + float(microsecond) / 1e6


def note_asked(user_id: object, task_id: str | None) -> None:
    """Record that a user's request begins: its answer is the user's.

    Raises:
        BrokerUnavailable: Redis is unavailable, and could not store the answer either.
    """
    if _has_user(user_id, task_id):
        kept_s = int(app.conf.result_expires) + _LATEST_S
        with _redis() as client:
            client.eval(_NOTE, 2, f"{_ANSWERS}{user_id}", f"{_ASKING}{user_id}", task_id, kept_s)


def note_answered(user_id: object, task_id: str | None) -> None:
    """Record that the answer is stored, or that another task will store it."""
    if _has_user(user_id, task_id):
        with _redis() as client:
            client.zrem(f"{_ASKING}{user_id}", task_id)


def _has_user(user_id: object, task_id: str | None) -> bool:
    return task_id is not None and isinstance(user_id, str) and bool(re.fullmatch(ID_PATTERN, user_id))


def remove(user_id: str, external_ids: Collection[str], names: Collection[str], until: float) -> int:
    """Remove the user's answers that name a person, and the name from errors. Returns how many."""
    count = 0
    client = app.backend.client
    for key, cleaned in _found(user_id, external_ids, names, until):
        count += bool(client.set(key, cleaned, xx=True, keepttl=True)) if cleaned else int(client.delete(key))
    return count


def count(user_id: str, external_ids: Collection[str], names: Collection[str], until: float) -> int:
    """How many of the user's answers name a person, or were requested before ``until`` and may still do so."""
    client = app.backend.client
    asking = client.zrangebyscore(_ASKING + user_id, until - _LATEST_S, until)
    return len(asking) + _searching(user_id) + sum(1 for _ in _found(user_id, external_ids, names, until))


def _searching(user_id: str) -> int:
    """How many searches of the user wait for a reranker: they hold an answer for some seconds."""
    client = app.backend.client
    waiting = 0
    for search in client.zrange(PENDING, 0, -1):
        state = _read(client.hget(search_key(search.decode()), "state"))
        asked = state.get("request")
        waiting += isinstance(asked, dict) and asked.get("user_id") == user_id and "draft" in state
    return waiting


def _found(
    user_id: str, external_ids: Collection[str], names: Collection[str], until: float
) -> Iterator[tuple[bytes, bytes]]:
    """Keys of the user's answers that name a person, and what to store instead; empty: remove the key."""
    client, backend = app.backend.client, app.backend
    wanted = dict.fromkeys(_ID_FIELDS, frozenset(external_ids)) | dict.fromkeys(
        _NAME_FIELDS, frozenset(names)
    )
    tasks = client.zrangebyscore(_ANSWERS + user_id, "-inf", until)
    for first in range(0, len(tasks), _CHUNK):
        keys = [backend.get_key_for_task(task.decode()) for task in tasks[first : first + _CHUNK]]
        for key, value in zip(keys, client.mget(keys), strict=True):
            answer = _read(value)
            if answer.get("status") in EXCEPTION_STATES:
                cleaned = _clean(answer, names)
                if cleaned != answer:
                    yield key, json.dumps(cleaned).encode()
            elif _names(answer.get("result"), wanted):
                yield key, b""


def _read(value: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(value or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _clean(answer: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """An error, without the names that it quotes."""
    result = answer.get("result")
    if not isinstance(result, dict):
        return answer

    def without(said: Any) -> Any:
        if isinstance(said, str):
            for name in filter(None, names):
                said = said.replace(repr(name), "'(erased)'")
            return said
        return [without(part) for part in said] if isinstance(said, list) else said

    cleaned = {**answer, "result": {**result, "exc_message": without(result.get("exc_message"))}}
    return {**cleaned, "traceback": without(answer["traceback"])} if "traceback" in answer else cleaned


def _names(result: Any, wanted: Mapping[str, Collection[str]]) -> bool:
    """Whether a field of an answer, at any depth, has one of the values wanted of it."""
    if isinstance(result, list):
        return any(_names(part, wanted) for part in result)
    # The receipt of an erasure names no person, and its caller waits for it.
    if not isinstance(result, dict) or (
        result.get("state") in ("erasing", "erased") and result.get("name") == ""
    ):
        return False
    return any(
        value in wanted.get(field, ()) if isinstance(value, str) else _names(value, wanted)
        for field, value in result.items()
    )
