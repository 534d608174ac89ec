"""Searches that wait for model nodes: the request, and the answers of the queues so far. In Redis; no slot waits.

A search leaves its slot after it has sent its query to the queues of the models. Each answer is recorded here. The last
answer, or, after the deadline, a thread of the search nodes' children, sends the message that finishes the search. Each
step is one script, so that two processes can't both be the last, and all times come from Redis's clock.

The process that finishes a search claims it for a while, and removes it when the answer is stored. If the process dies
in between, those threads send another message when the claim has expired.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import redis
from redis.exceptions import RedisError

from shared import routing
from shared.errors import BrokerUnavailable
from shared.logs import get_logger
from shared.nodes import ready_families
from shared.settings import get_settings
from worker.app import app

log = get_logger(__name__)

#: Interval at which a search node looks for searches whose deadline has passed.
LOOK_S = 0.25
#: A message that finishes a search is sent again after this time.
_AGAIN_S = 10
#: How long a claim of a search lasts unless it is extended.
CLAIM_S = 5
#: An unfinished search expires this long after its deadline.
_KEPT_S = 180
#: How long later pages of a search use the same query vectors.
PAGES_S = 900
_NODES_S = 1.0
#: The waiting searches by their deadline.
PENDING = "scenefleet:searches"

_BEGIN = """
if ARGV[6] ~= '' then
    redis.call('DEL', KEYS[3])
    redis.call('ZREM', KEYS[2], ARGV[6])
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'needs', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], now[1] + now[2] / 1000000 + ARGV[3], ARGV[5])
"""
_ARRIVE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSETNX', KEYS[1], 'queue:' .. ARGV[1], ARGV[2])
for queue in string.gmatch(redis.call('HGET', KEYS[1], 'needs'), '[^,]+') do
    if redis.call('HEXISTS', KEYS[1], 'queue:' .. queue) == 0 then return 0 end
end
if redis.call('HSETNX', KEYS[1], 'complete', 1) == 0 then return 0 end
return 1
"""
_CLAIM = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
if now < tonumber(redis.call('HGET', KEYS[1], 'claimed') or 0) then return {} end
redis.call('HSET', KEYS[1], 'claimed', now + ARGV[2])
redis.call('HINCRBY', KEYS[1], 'claims', 1)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""
_EXTEND = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
local time = redis.call('TIME')
local until_s = time[1] + time[2] / 1000000 + ARGV[2]
redis.call('HSET', KEYS[1], 'claimed', until_s)
redis.call('ZADD', KEYS[2], until_s, ARGV[1])
"""
_REMOVE = """
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
"""
_DUE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
local found = {}
for _, id in ipairs(due) do
    if redis.call('EXISTS', ARGV[2] .. id) == 1 then
        redis.call('ZADD', KEYS[1], now + ARGV[1], id)
        found[#found + 1] = id
    else
        redis.call('ZREM', KEYS[1], id)
    end
end
return found
"""


@dataclass(frozen=True)
class Claimed:
    """A search that this process finishes."""

    #: The request, and what the caller wants done with the answer.
    state: dict[str, Any]
    #: Queue -> its answer.
    queues: dict[str, dict[str, Any]]
    #: Number of claims, this one included; earlier claimants have died.
    claims: int


class Pending:
    """The waiting searches of one Redis. Made after the fork: a child must not use its parent's connections.

    Every method raises ``BrokerUnavailable`` if Redis does not answer.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            redis_url, socket_timeout=5, socket_connect_timeout=3, decode_responses=True
        )
        self._nodes: tuple[float, frozenset[str]] = (float("-inf"), frozenset())

    def begin(
        self,
        search: str,
        state: Mapping[str, Any],
        needs: Sequence[str],
        *,
        deadline_s: float,
        instead_of: str | None = None,
    ) -> None:
        """Store a search that waits for these queues, at most ``deadline_s``; ``instead_of`` is removed."""
        before = instead_of or ""
        kept_s = int(deadline_s + _KEPT_S)
        arguments = [json.dumps(state), ",".join(needs), deadline_s, kept_s, search, before]
        self._script(_BEGIN, [search_key(search), PENDING, search_key(before)], arguments)

    def arrive(self, search: str, queue: str, answer: Mapping[str, Any]) -> bool:
        """Record the answer of a queue, and return whether it was the last missing one. Ignored if the search is over."""
        return bool(self._script(_ARRIVE, [search_key(search)], [queue, json.dumps(answer)]))

    def claim(self, search: str) -> Claimed | None:
        """Claim a search to finish it; None if it is over, or claimed by another process."""
        flat = self._script(_CLAIM, [search_key(search), PENDING], [search, CLAIM_S])
        if not flat:
            return None
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        queues = {
            name.removeprefix("queue:"): json.loads(value)
            for name, value in fields.items()
            if name.startswith("queue:")
        }
        return Claimed(json.loads(fields["state"]), queues, int(fields["claims"]))

    def extend(self, search: str) -> None:
        """Extend the claim of a search to ``CLAIM_S`` from now."""
        self._script(_EXTEND, [search_key(search), PENDING], [search, CLAIM_S])

    def remove(self, search: str) -> None:
        """Remove a search whose answer is stored."""
        self._script(_REMOVE, [search_key(search), PENDING], [search])

    def send_finish(self, search: str) -> None:
        """Send the message that lets a search node answer, under the id of the caller's task. May be sent twice."""
        found = self._run(self._redis.hget, search_key(search), "state")
        if found is not None:
            state = json.loads(found)
            app.send_task(
                routing.SEARCH_FINISH,
                kwargs={"search": search},
                task_id=state["task_id"],
                queue=routing.REQUESTS,
                retry=False,
                **state["options"],
            )

    def due(self) -> list[str]:
        """Searches whose deadline has passed; each is returned again only after ``_AGAIN_S``."""
        return list(self._script(_DUE, [PENDING], [_AGAIN_S, search_key("")]))

    def keep_page(self, name: str, queues: Mapping[str, Any]) -> None:
        """Keep the answers of the queues, so that later pages have the same order."""
        self._run(self._redis.set, f"scenefleet:page:{name}", json.dumps(queues), PAGES_S)

    def page(self, name: str) -> dict[str, Any] | None:
        found = self._run(self._redis.get, f"scenefleet:page:{name}")
        return None if found is None else json.loads(found)

    def ready_families(self) -> frozenset[str]:
        """Families with a ready node; at most a second old."""
        if time.monotonic() - self._nodes[0] > _NODES_S:
            self._nodes = (time.monotonic(), frozenset(self._run(ready_families, self._redis)))
        return self._nodes[1]

    def _script(self, source: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return self._run(self._redis.register_script(source), keys, arguments)

    def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RedisError as error:
            raise BrokerUnavailable(
                f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
            ) from error


def search_key(search: str) -> str:
    """The key of a waiting search: a hash."""
    return f"scenefleet:search:{search}"


@lru_cache(maxsize=1)
def get_pending() -> Pending:
    """This process's view of the waiting searches; only for pool children."""
    return Pending(get_settings().require("redis_url"))


#: The searches that this process is finishing.
_in_work: set[str] = set()


@contextmanager
def working_on(search: str) -> Iterator[None]:
    """Keep the claim of a search while this block runs (``watch`` runs in this process)."""
    _in_work.add(search)
    try:
        yield
    finally:
        _in_work.discard(search)


def watch() -> None:
    """Start the thread that extends this process's claims and finishes searches whose deadline has passed."""

    def look() -> None:
        # A connection of its own: this thread must not wait for a request's.
        pending = Pending(get_settings().require("redis_url"))
        while True:
            time.sleep(LOOK_S)
            try:
                for search in tuple(_in_work):
                    pending.extend(search)
                for search in pending.due():
                    pending.send_finish(search)
            except BrokerUnavailable as error:
                log.warning("waiting searches not looked at", error=error)
            except Exception:
                # The thread must not end before the process.
                log.exception("waiting searches not looked at")

    threading.Thread(target=look, name="searches", daemon=True).start()
