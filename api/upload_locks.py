"""Locks of uploads in Redis: one request at a time works on an upload, whichever API process it came to.

A client that comes back after a broken connection must not wait for the request that it has given up: whoever wants a
lock says so, and the holder stores what it has and releases it. A holder that died loses the lock after ``LIFE_S``.
A lock only keeps writers apart; what was stored is never lost without it (``Appender``, ``fence``).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.problems import UploadLocked
from shared.errors import BrokerUnavailable

#: Life of a lock that is not renewed, interval of renewals, and pause of those who wait; seconds.
LIFE_S, RENEW_S, POLL_S = 5.0, 1.0, 0.1
#: Longest wait for a lock, seconds: a holder may have to store a part first.
WAIT_S = 20.0
_KEY, _WANTED = "scenefleet:upload:{}", "scenefleet:upload:{}:wanted"

# The fence is Redis's clock: it grows, also after Redis has lost everything.
_ACQUIRE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local now = redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
return now[1] .. string.format('%06d', now[2])
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('EXISTS', KEYS[2]) == 1 and 2 or 1
"""
_LOST, _HELD = 0, 1
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class Lock:
    """A lock that is held."""

    def __init__(self, fence: int) -> None:
        #: Higher than that of every earlier holder.
        self.fence = fence
        #: Set when the holder shall end: another request wants the lock, or it is lost.
        self.ending = asyncio.Event()


@contextlib.asynccontextmanager
async def locked(redis: Redis, upload_id: str, *, wait_s: float = WAIT_S) -> AsyncIterator[Lock]:
    """Hold the lock of an upload during the block. ``wait_s`` 0: don't disturb its holder.

    Raises:
        UploadLocked: another request holds it, and has not ended in time.
        BrokerUnavailable: Redis does not answer.
    """
    keys = (_KEY.format(upload_id), _WANTED.format(upload_id))
    token, life_ms = secrets.token_hex(16), int(1000 * LIFE_S)
    try:
        fence = await _acquire(redis, keys, token, life_ms, wait_s)
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(f"Redis does not answer ({type(error).__name__}): is it running?") from error
    lock = Lock(fence)
    renewing = asyncio.create_task(_renew(redis, keys, token, life_ms, lock))
    try:
        yield lock
    finally:
        renewing.cancel()
        with contextlib.suppress(RedisError, OSError):  # then it ends by itself
            await redis.eval(_RELEASE, 1, keys[0], token)


async def _acquire(redis: Redis, keys: tuple[str, str], token: str, life_ms: int, wait_s: float) -> int:
    deadline = time.monotonic() + wait_s
    while True:
        fence = await redis.eval(_ACQUIRE, 2, *keys, token, life_ms)
        if fence:
            return int(fence)
        if time.monotonic() >= deadline:
            raise UploadLocked("another request works on this upload: send this one again in a moment")
        await redis.set(keys[1], token, px=int(3000 * RENEW_S))
        await asyncio.sleep(POLL_S)


async def _renew(redis: Redis, keys: tuple[str, str], token: str, life_ms: int, lock: Lock) -> None:
    renewed_s = time.monotonic()
    while True:
        await asyncio.sleep(RENEW_S)
        begun_s = time.monotonic()
        try:
            state = await redis.eval(_RENEW, 2, *keys, token, life_ms)
        except (RedisError, OSError):
            state = _HELD if begun_s - renewed_s < LIFE_S else _LOST
        else:
            renewed_s = begun_s
        if state != _HELD:
            lock.ending.set()
        if state == _LOST:
            return
