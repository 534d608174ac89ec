"""Answers to requests about people, which wait in Redis for whoever asked: whose they are, and what an erasure removes.

Celery keeps an answer under ``celery-task-meta-{task id}``; nothing in it says whose it is. So a request about people is
noted under its user before it does anything: ``scenefleet:answers:{user}`` has its task id and the time (Redis's clock),
``scenefleet:asking:{user}`` has it until its answer is stored. An erasure looks at these ids only, so it never sees an
answer of another user, nor a key that is not ours, and its cost is the user's own requests of the last minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from celery.states import EXCEPTION_STATES
from redis.exceptions import RedisError

from shared.errors import BrokerUnavailable
from shared.routing import REQUEST_LIMIT_S
from worker.app import app
from worker.search.wait import PENDING, search_key

_ANSWERS, _ASKING = "scenefleet:answers:", "scenefleet:asking:"
_USER = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
#: A search is answered under its first task's id within so long of it, seconds.
_LATEST_S = REQUEST_LIMIT_S + 240
#: Fields of answers that hold people's ids, and their names (``shared.contracts``).
_ID_FIELDS = ("person_id", "other_id")
_NAME_FIELDS = ("name", "other", "old_name", "new_name")
#: Answers read at once.
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


def now() -> float:
    """Redis's time, seconds.

    Raises:
        BrokerUnavailable.
    """
    try:
        second, microsecond = app.backend.client.time()
    except RedisError as error:
        raise _away(error) from error
    return float(second) + float(microsecond) / 1e6


def note_asked(user_id: object, task_id: str | None) -> None:
    """A user's request begins: from now on its answer is known to be the user's.

    Raises:
        BrokerUnavailable: Redis is away, and could not take the answer either.
    """
    if task_id is None or not isinstance(user_id, str) or not _USER.fullmatch(user_id):
        return
    kept_s = int(app.conf.result_expires) + _LATEST_S
    try:
        app.backend.client.eval(_NOTE, 2, _ANSWERS + user_id, _ASKING + user_id, task_id, kept_s)
    except RedisError as error:
        raise _away(error) from error


def note_answered(user_id: object, task_id: str | None) -> None:
    """The answer is stored, or another task will store it."""
    if task_id is not None and isinstance(user_id, str) and _USER.fullmatch(user_id):
        try:
            app.backend.client.zrem(_ASKING + user_id, task_id)
        except RedisError as error:
            raise _away(error) from error


def remove(user_id: str, external_ids: Collection[str], names: Collection[str], until: float) -> int:
    """Remove the user's answers that name somebody; an error keeps its place and loses the name. Returns how many."""
    count = 0
    client = app.backend.client
    for key, cleaned in _found(user_id, external_ids, names, until):
        count += bool(client.set(key, cleaned, xx=True, keepttl=True)) if cleaned else int(client.delete(key))
    return count


def count(user_id: str, external_ids: Collection[str], names: Collection[str], until: float) -> int:
    """How many of the user's answers name somebody, or were asked for before ``until`` and may still do so."""
    client = app.backend.client
    asking = client.zrangebyscore(_ASKING + user_id, until - _LATEST_S, until)
    return len(asking) + _searching(user_id) + sum(1 for _ in _found(user_id, external_ids, names, until))


def _searching(user_id: str) -> int:
    """Searches of the user that wait for a reranker: they hold an answer already. Over in seconds."""
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
    """Keys of the user's answers that name somebody, and what to put there; nothing: remove it."""
    client, backend = app.backend.client, app.backend
    tasks = client.zrangebyscore(_ANSWERS + user_id, "-inf", until)
    for first in range(0, len(tasks), _CHUNK):
        keys = [backend.get_key_for_task(task.decode()) for task in tasks[first : first + _CHUNK]]
        for key, value in zip(keys, client.mget(keys), strict=True):
            answer = _read(value)
            if answer.get("status") in EXCEPTION_STATES:
                cleaned = _clean(answer, names)
                if cleaned != answer:
                    yield key, json.dumps(cleaned).encode()
            elif _names(answer.get("result"), set(external_ids), set(names)):
                yield key, b""


def _read(value: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(value or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _clean(answer: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """An error of the user's own, without the name where it is quoted."""
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


def _names(result: Any, external_ids: set[str], names: set[str]) -> bool:
    """Whether a field of an answer has an id of the erased, or a name of theirs."""
    if isinstance(result, list):
        return any(_names(part, external_ids, names) for part in result)
    if not isinstance(result, dict):
        return False
    if result.get("state") in ("erasing", "erased") and result.get("name") == "":
        # Says that somebody is erased and nothing else: whoever waits for the receipt waits for it.
        return False
    return (
        _holds(result, _ID_FIELDS, external_ids)
        or _holds(result, _NAME_FIELDS, names)
        or any(_names(part, external_ids, names) for part in result.values())
    )


def _holds(result: dict[str, Any], fields: Collection[str], wanted: set[str]) -> bool:
    return any(isinstance(value := result.get(field), str) and value in wanted for field in fields)


def _away(error: Exception) -> BrokerUnavailable:
    return BrokerUnavailable(f"Redis does not answer ({error}): is it running, is REDIS_URL right?")
