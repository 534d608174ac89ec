"""Admits online requests before they are sent: each queue, and each user in it, has a limit of items that wait.

A caller reserves its items, sends the request, and releases them when it has the answer or gives up. A reservation expires,
so that a dead caller's share comes free. All callers count together in Redis; each step is one script, by Redis's clock.
A bare ``send_task`` is not admitted here: nodes refuse what is too much (worker/online/).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from .errors import BrokerUnavailable, Overloaded
from .settings import Settings

#: Maximum time for which a reservation lasts, seconds.
MAX_HOLD_S = 3600

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
#: Returns an empty list, or: which limit, what is held, and how long requests took lately, seconds.
RESERVE = (
    _FREE
    + """
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do free(lease, now) end
local lease, user, hold_s = ARGV[1], ARGV[2], tonumber(ARGV[5])
local asked = {{'items', ARGV[3], ARGV[6]}, {'tokens', ARGV[4], ARGV[7]}, {'user:' .. user, ARGV[3], ARGV[8]}}
for _, limit in ipairs(asked) do
    local held = tonumber(redis.call('HGET', KEYS[1], limit[1]) or 0)
    -- Alone, a request of any size is admitted.
    if held > 0 and held + limit[2] > tonumber(limit[3]) then
        return {limit[1], held, redis.call('HGET', KEYS[1], 'mean_s') or '1'}
    end
end
for _, limit in ipairs(asked) do redis.call('HINCRBY', KEYS[1], limit[1], limit[2]) end
redis.call('ZADD', KEYS[2], now + hold_s, lease)
redis.call('HSET', KEYS[3], lease, ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. string.format('%.3f', now) .. ' ' .. user)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 7200) end
return {}
"""
)
RELEASE = _FREE + "free(ARGV[1], now)"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The same for every caller of a fleet."""

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


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A request that is to be admitted, with the arguments of the scripts, for callers that wait in their own way."""

    queue: str
    user_id: str
    #: At least 1.
    items: int
    #: Estimated tokens of all items.
    tokens: int
    #: After this time it expires: the caller's timeout, seconds.
    hold_s: float
    lease: str

    @property
    def keys(self) -> list[str]:
        return [f"scenefleet:admitted:{self.queue}{part}" for part in ("", ":expiry", ":leases")]

    def arguments(self, limits: Limits) -> list[Any]:
        """Of ``RESERVE``; ``RELEASE`` has the lease only."""
        hold_s = min(self.hold_s, MAX_HOLD_S)
        amounts = [max(1, self.items), max(0, self.tokens), hold_s]
        return [
            self.lease, self.user_id, *amounts, limits.queue_items, limits.queue_tokens, limits.user_items
        ]  # fmt: skip

    def check(self, refused: list[Any]) -> None:
        """Read what ``RESERVE`` has returned.

        Raises:
            Overloaded: the queue or the user has too much that waits.
        """
        if not refused:
            return
        field, held, mean_s = (part.decode() if isinstance(part, bytes) else part for part in refused)
        whose = f"user {self.user_id} has" if field.startswith("user:") else f"queue {self.queue} has"
        what = "tokens" if field == "tokens" else "items"
        raise Overloaded(f"{whose} {held} {what} that wait", round(min(30.0, max(0.1, float(mean_s))), 1))


class Admission:
    """Reserves with a redis.Redis, whose errors become ``BrokerUnavailable``; safe to share between threads."""

    def __init__(self, client: Any, limits: Limits) -> None:
        self._client, self._limits = client, limits

    def reserve(self, queue: str, user_id: str, *, items: int, tokens: int, hold_s: float) -> Reservation:
        """Reserve a place for a request.

        Raises:
            Overloaded, BrokerUnavailable.
        """
        asked = Reservation(
            queue=queue, user_id=user_id, items=items, tokens=tokens, hold_s=hold_s, lease=uuid.uuid4().hex
        )
        asked.check(self._run(RESERVE, asked.keys, asked.arguments(self._limits)))
        return asked

    def release(self, reservation: Reservation) -> None:
        """Give the place back; again, or after its expiry, this does nothing."""
        self._run(RELEASE, reservation.keys, [reservation.lease])

    @contextmanager
    def admitted(self, queue: str, user_id: str, *, items: int, tokens: int, hold_s: float) -> Iterator[None]:
        """Hold a place while this block runs."""
        reservation = self.reserve(queue, user_id, items=items, tokens=tokens, hold_s=hold_s)
        try:
            yield
        finally:
            self.release(reservation)

    def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        try:
            return self._client.eval(script, len(keys), *keys, *arguments)
        except RedisError as error:
            raise BrokerUnavailable(
                f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
            ) from error
