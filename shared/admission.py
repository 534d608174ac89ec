"""Admits requests before they are sent: each queue, and each user in it, has a limit of items that wait.

A caller reserves its items, sends the request with the header ``HEADER``, and releases them when it has the answer or gives up. A
reservation expires, so that a dead caller's share comes free. All callers count together in Redis; each step is one script, by
Redis's clock. The limits are in Redis too: the nodes of a queue publish theirs. A bare ``send_task`` is not admitted here: all such
requests together have the limit of one user, which the nodes enforce (worker/online/overload.py).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from .errors import BrokerUnavailable, Overloaded
from .routing import REQUESTS, TASK_QUEUE
from .settings import Settings

#: Header of a message whose items are reserved.
HEADER = "scenefleet_lease"
#: Its value in messages that belong to another request, such as those of a search: that one is admitted.
PART_OF_ANOTHER = "part"
#: Hash: queue and reason -> requests refused.
REFUSED = "scenefleet:refusals"
#: Maximum time for which a reservation lasts, seconds.
MAX_HOLD_S = 3600
#: Characters of ASCII text per token, roughly; other scripts count one token per character.
_CHARS_PER_TOKEN = 4

_FREE = """
local function free(lease, now)
    redis.call('ZREM', KEYS[2], lease)
    local held = redis.call('HGET', KEYS[3], lease)
    if not held then return end
    redis.call('HDEL', KEYS[3], lease)
    local items, tokens, since, user = string.match(held, '^(%d+) (%d+) ([%d.]+) (.*)$')
    for field, amount in pairs({items = items, tokens = tokens, ['user:' .. user] = items}) do
        -- Not by a minus sign in front: Redis refuses "-0".
        if redis.call('HINCRBY', KEYS[1], field, string.format('%d', 0 - amount)) <= 0 then
            redis.call('HDEL', KEYS[1], field)
        end
    end
    local mean = tonumber(redis.call('HGET', KEYS[1], 'mean_s') or now - since)
    redis.call('HSET', KEYS[1], 'mean_s', string.format('%.3f', mean * 0.9 + (now - since) * 0.1))
end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""
#: Returns an empty list, or: which limit, what is held, and how long requests took lately, seconds. Without limits all is admitted.
_RESERVE = (
    _FREE
    + """
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do free(lease, now) end
local lease, user, hold_s = ARGV[1], ARGV[2], tonumber(ARGV[5])
local most = redis.call('HMGET', KEYS[4], 'queue_items', 'queue_tokens', 'user_items')
local asked = {{'items', ARGV[3], most[1]}, {'tokens', ARGV[4], most[2]}, {'user:' .. user, ARGV[3], most[3]}}
for _, limit in ipairs(asked) do
    local held = tonumber(redis.call('HGET', KEYS[1], limit[1]) or 0)
    -- Alone, a request of any size is admitted.
    if limit[3] and held > 0 and held + limit[2] > tonumber(limit[3]) then
        redis.call('HINCRBY', KEYS[5], ARGV[6] .. ' ' .. string.match(limit[1], '^%a+'), 1)
        return {limit[1], held, redis.call('HGET', KEYS[1], 'mean_s') or '1'}
    end
end
for _, limit in ipairs(asked) do redis.call('HINCRBY', KEYS[1], limit[1], limit[2]) end
redis.call('ZADD', KEYS[2], now + hold_s, lease)
redis.call('HSET', KEYS[3], lease, ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. string.format('%.3f', now) .. ' ' .. user)
for number = 1, 3 do redis.call('EXPIRE', KEYS[number], 7200) end
return {}
"""
)
_RELEASE = _FREE + "free(ARGV[1], now)"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one queue, the same for every caller."""

    queue_items: int
    queue_tokens: int
    user_items: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            queue_items=settings.online_queue_items,
            queue_tokens=settings.online_queue_tokens,
            user_items=settings.online_user_items,
        )


def publish_limits(client: Any, queues: Iterable[str], limits: Limits) -> None:
    """Tell all callers the limits of queues, with a redis.Redis and its errors."""
    for queue in queues:
        client.hset(_limits_key(queue), mapping=vars(limits))


def _limits_key(queue: str) -> str:
    return f"scenefleet:limits:{queue}"


def held_items(client: Any, queues: Iterable[str]) -> dict[str, int]:
    """The items that are reserved in each queue, with a redis.Redis and its errors."""
    return {queue: int(client.hget(f"scenefleet:admitted:{queue}", "items") or 0) for queue in queues}


def refusals(client: Any) -> dict[tuple[str, str], int]:
    """Requests that were not admitted so far, by queue and limit (items, tokens, user), with a redis.Redis and its errors."""
    found = {}
    for name, count in client.hgetall(REFUSED).items():
        queue, _, reason = name.decode().partition(" ")
        found[queue, reason] = int(count)
    return found


def estimate_tokens(item: object) -> int:
    """A rough upper bound of what the item costs a text model, without its tokenizer."""
    if not isinstance(item, str):
        return 1
    return 1 + (len(item) // _CHARS_PER_TOKEN if item.isascii() else len(item))


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A request that is to be admitted."""

    queue: str
    #: Empty: all callers that do not say for whom they ask.
    user_id: str
    #: At least 1.
    items: int
    #: Estimated tokens of all items.
    tokens: int
    #: After this time it expires: the caller's timeout, seconds.
    hold_s: float
    lease: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, task: str, kwargs: Mapping[str, Any], hold_s: float, user_id: str = "") -> Reservation:
        """That of one request. A request to a model has as many items as its longest list; others have one.

        Args:
            user_id: for whom it is; empty: the user whom the payload names, if it does.
        """
        queue = TASK_QUEUE[task]
        lists = [value for value in kwargs.values() if isinstance(value, (list, tuple))]
        items = max(lists, key=len, default=()) if queue != REQUESTS else ()
        return cls(
            queue=queue,
            user_id=user_id or str(kwargs.get("user_id") or ""),
            items=max(1, len(items)),
            tokens=sum(estimate_tokens(item) for item in items),
            hold_s=hold_s,
        )

    @property
    def _keys(self) -> list[str]:
        return [f"scenefleet:admitted:{self.queue}{part}" for part in ("", ":expiry", ":leases")]

    def _reserving(self) -> list[Any]:
        """The script, the number of its keys, its keys and arguments."""
        keys = [*self._keys, _limits_key(self.queue), REFUSED]
        hold_s = max(0.001, min(self.hold_s, MAX_HOLD_S))
        return [
            _RESERVE,
            len(keys),
            *keys,
            self.lease,
            self.user_id,
            self.items,
            self.tokens,
            hold_s,
            self.queue,
        ]

    def _releasing(self) -> list[Any]:
        return [_RELEASE, len(self._keys), *self._keys, self.lease]

    def _check(self, refused: list[Any]) -> None:
        """Read what ``_RESERVE`` has returned."""
        if not refused:
            return
        name, held, mean_s = (part.decode() if isinstance(part, bytes) else part for part in refused)
        whose = f"queue {self.queue} has"
        if name.startswith("user:"):
            whose = f"user {self.user_id} has" if self.user_id else "callers that name no user have"
        what = "tokens" if name == "tokens" else "items"
        raise Overloaded(f"{whose} {held} {what} that wait", round(min(30.0, max(0.1, float(mean_s))), 1))


@contextmanager
def admitted(client: Any, asked: Reservation) -> Iterator[None]:
    """Hold a place while this block runs, with a redis.Redis.

    Raises:
        Overloaded: the queue or the user has too much that waits.
        BrokerUnavailable: Redis does not answer.
    """
    with _broker_errors():
        asked._check(client.eval(*asked._reserving()))
    try:
        yield
    finally:
        # Otherwise it expires.
        with suppress(RedisError, OSError):
            client.eval(*asked._releasing())


@asynccontextmanager
async def admitted_later(client: Any, asked: Reservation) -> AsyncIterator[None]:
    """``admitted`` with a redis.asyncio.Redis."""
    with _broker_errors():
        asked._check(await client.eval(*asked._reserving()))
    try:
        yield
    finally:
        with suppress(RedisError, OSError):
            await client.eval(*asked._releasing())


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(
            f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
        ) from error
