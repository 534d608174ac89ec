"""Searches that wait for other nodes: what was asked, and what the queues have answered so far. In Redis, no slot waits.

A search leaves its slot when it has sent its query to the queues of the models. Each answer is noted here; whichever
completes the set, or a thread of the search nodes' children once the deadline has passed, sends the message that
finishes the search. Every step is one script, so two can't both be the last, and Redis's clock is the only one.

Whoever finishes a search claims it for a while and removes it when the answer is stored: killed in between, it is
finished again by the next message, which the same threads send when the claim has run out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import redis
from redis.exceptions import RedisError

from shared.errors import BrokerUnavailable
from shared.logs import get_logger
from shared.nodes import ready_families
from shared.settings import Settings, get_settings

log = get_logger(__name__)

#: How often a search node looks for searches whose time is up.
LOOK_S = 0.25
#: A message that finishes a search and was lost is sent again after so long.
_AGAIN_S = 10
#: How long a search belongs to whoever finishes it without a further sign of life.
CLAIM_S = 5
#: What is left of a search nobody finished goes by itself.
_KEPT_S = 180
#: How long the pages after the first are made of the same query vectors.
PAGES_S = 900
_NODES_S = 1.0
#: The waiting searches by when their time is up.
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
    """A search that is ours to finish, for ``CLAIM_S``."""

    #: What was asked.
    state: dict[str, Any]
    #: What each queue has answered.
    queues: dict[str, dict[str, Any]]
    #: How many have claimed it, this time included: those before have died.
    claims: int


class Pending:
    """The waiting searches of one Redis. Made after the fork: a child never uses its parent's connections.

    Every method raises ``BrokerUnavailable`` when Redis is away.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = redis.Redis.from_url(
            redis_url, socket_timeout=5, socket_connect_timeout=3, decode_responses=True
        )
        self._begin = self._redis.register_script(_BEGIN)
        self._arrive = self._redis.register_script(_ARRIVE)
        self._claim = self._redis.register_script(_CLAIM)
        self._extend = self._redis.register_script(_EXTEND)
        self._remove = self._redis.register_script(_REMOVE)
        self._due = self._redis.register_script(_DUE)
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
        """Remember a search that waits for these queues, ``deadline_s`` at most; ``instead_of`` is forgotten."""
        before = instead_of or ""
        arguments = [
            json.dumps(state),
            ",".join(needs),
            deadline_s,
            int(deadline_s + _KEPT_S),
            search,
            before,
        ]
        self._run(self._begin, [search_key(search), PENDING, search_key(before)], arguments)

    def arrive(self, search: str, queue: str, answer: Mapping[str, Any]) -> bool:
        """Note what a queue answered; whether that was the last one missing. A search that is over notes nothing."""
        return bool(self._run(self._arrive, [search_key(search)], [queue, json.dumps(answer)]))

    def claim(self, search: str) -> Claimed | None:
        """Make a search ours to finish; None when it is over, or somebody else is at it."""
        flat = cast("list[str]", self._run(self._claim, [search_key(search), PENDING], [search, CLAIM_S]))
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
        """A claimed search is being worked on: ours for ``CLAIM_S`` from now."""
        self._run(self._extend, [search_key(search), PENDING], [search, CLAIM_S])

    def remove(self, search: str) -> None:
        """Its answer is stored: nobody has to finish it any more."""
        self._run(self._remove, [search_key(search), PENDING], [search])

    def state(self, search: str) -> dict[str, Any] | None:
        """What was asked, without claiming it."""
        found = self._run(self._redis.hget, search_key(search), "state")
        return None if found is None else json.loads(found)

    def due(self) -> list[str]:
        """Searches whose deadline has passed; each is told again only after a while."""
        return list(self._run(self._due, [PENDING], [_AGAIN_S, search_key("")]))

    def keep_page(self, name: str, queues: Mapping[str, Any]) -> None:
        """Keep what the queues answered, so that the pages after this one are in the same order."""
        self._run(self._redis.set, f"scenefleet:page:{name}", json.dumps(queues), PAGES_S)

    def page(self, name: str) -> dict[str, Any] | None:
        found = self._run(self._redis.get, f"scenefleet:page:{name}")
        return None if found is None else json.loads(found)

    def ready_families(self) -> frozenset[str]:
        """Families of which some node says it is ready; at most a second old."""
        if time.monotonic() - self._nodes[0] > _NODES_S:
            self._nodes = (time.monotonic(), frozenset(self._run(ready_families, self._redis)))
        return self._nodes[1]

    def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RedisError as error:
            raise BrokerUnavailable(
                f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
            ) from error


def search_key(search: str) -> str:
    """Where a waiting search is kept: a hash."""
    return f"scenefleet:search:{search}"


@lru_cache(maxsize=1)
def get_pending() -> Pending:
    """This process's view of the waiting searches; to be called in a pool child only."""
    return Pending(get_settings().require("redis_url"))


#: What this process is finishing right now.
_in_work: set[str] = set()


@contextmanager
def working_on(search: str) -> Iterator[None]:
    """Keep a claimed search ours for as long as this takes (``watch`` runs in this process)."""
    _in_work.add(search)
    try:
        yield
    finally:
        _in_work.discard(search)


def watch(settings: Settings, finish: Callable[[Pending, str], None]) -> None:
    """From now on let ``finish`` see every search whose time is up; in a thread of this process."""

    def look() -> None:
        pending = Pending(settings.require("redis_url"))
        while True:
            time.sleep(LOOK_S)
            try:
                for search in tuple(_in_work):
                    pending.extend(search)
                for search in pending.due():
                    finish(pending, search)
            except BrokerUnavailable as error:
                log.warning("waiting searches not looked at", error=error)
            except Exception:
                # The thread has to live as long as the process, whatever it was.
                log.exception("waiting searches not looked at")

    threading.Thread(target=look, name="searches", daemon=True).start()
