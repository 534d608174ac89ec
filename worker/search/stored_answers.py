"""Stored answers to requests about people: whose they are, and what an erasure removes.

Celery stores an answer under ``celery-task-meta-{task id}``, which does not name its user. So a request about people is
recorded under its user before it does anything: ``scenefleet:answers:{user}`` has its task id and the time (Redis's clock),
``scenefleet:asking:{user}`` has it until its answer is stored, ``scenefleet:reply-lists:{user}`` has the reply list that it
names (``shared.replies``). An erasure reads only these ids. So it never sees an answer of another user or a key of another
program, and its cost is the user's own requests of the last minutes.
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
from shared.replies import decode_reply, is_reply_key
from shared.routing import REQUEST_LIMIT_S
from worker.app import app
from worker.search.kept_answers import kept_key

_ANSWERS, _ASKING, _LISTS = "scenefleet:answers:", "scenefleet:asking:", "scenefleet:reply-lists:"
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
for place, key in ipairs(KEYS) do
    redis.call('ZREMRANGEBYSCORE', key, '-inf', time - ARGV[1])
    redis.call('ZADD', key, time, ARGV[1 + place])
    redis.call('EXPIRE', key, ARGV[1])
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


def note_asked(user_id: object, task_id: str | None, reply_to: object = None) -> None:
    """Record that a user's request begins: its answer, also in the list ``reply_to``, is the user's.

    Raises:
        BrokerUnavailable: Redis is unavailable, and could not store the answer either.
    """
    if _has_user(user_id, task_id):
        kept_s = int(app.conf.result_expires) + _LATEST_S
        noted = {f"{_ANSWERS}{user_id}": task_id, f"{_ASKING}{user_id}": task_id}
        if is_reply_key(reply_to):
            noted[f"{_LISTS}{user_id}"] = str(reply_to)
        with _redis() as client:
            client.eval(_NOTE, len(noted), *noted, kept_s, *noted.values())


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
    for key, item in _listed(user_id, external_ids, names):
        count += int(client.lrem(key, 0, item))
    client.delete(kept_key(user_id))
    return count


def count(user_id: str, external_ids: Collection[str], names: Collection[str], until: float) -> int:
    """How many of the user's answers name a person, or were requested before ``until`` and may still do so."""
    client = app.backend.client
    asking = client.zrangebyscore(_ASKING + user_id, until - _LATEST_S, until)
    # Again: a search that was asked before may have kept its answer since ``remove``. Later ones don't find the person.
    client.delete(kept_key(user_id))
    found = (*_found(user_id, external_ids, names, until), *_listed(user_id, external_ids, names))
    return len(asking) + len(found)


def _found(
    user_id: str, external_ids: Collection[str], names: Collection[str], until: float
) -> Iterator[tuple[bytes, bytes]]:
    """Keys of the user's answers that name a person, and what to store instead; empty: remove the key."""
    client, backend = app.backend.client, app.backend
    wanted = _wanted(external_ids, names)
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


def _listed(
    user_id: str, external_ids: Collection[str], names: Collection[str]
) -> Iterator[tuple[bytes, bytes]]:
    """Reply lists, and the user's items in them that name a person: answers that no caller has read yet."""
    client = app.backend.client
    wanted = _wanted(external_ids, names)
    # A list may also hold answers to other users.
    own = {task.decode() for task in client.zrange(_ANSWERS + user_id, 0, -1)}
    for key in client.zrange(_LISTS + user_id, 0, -1):
        for item in client.lrange(key, 0, -1):
            reply = decode_reply(item)
            if reply is None or reply.id not in own:
                continue
            if _names(reply.result, wanted) or any(name and repr(name) in reply.message for name in names):
                yield key, item


def _wanted(external_ids: Collection[str], names: Collection[str]) -> dict[str, Collection[str]]:
    """Field of an answer -> the values by which it names a person."""
    return {
        **dict.fromkeys(_ID_FIELDS, frozenset(external_ids)),
        **dict.fromkeys(_NAME_FIELDS, frozenset(names)),
    }


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
