"""Limits of what a client may send: the size of a body, the time it takes, requests per minute.

Requests are counted in Redis, so that several API processes count together.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi import Request
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect

from api.problems import BadRequest, BodyTooLarge, SlowClient, TooManyRequests
from shared.errors import BrokerUnavailable
from shared.settings import Settings

#: Above the largest payload of a contract.
MAX_JSON_BYTES = 256 * 1024
#: The slowest client that is waited for, bytes per second.
SLOWEST_BYTES_S = 32_768
MINUTE_S = 60


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body of a request, of at most ``max_bytes``; raises as ``stream_body``."""
    found = bytearray()
    async for chunk in stream_body(request, max_bytes):
        found += chunk
    return bytes(found)


async def stream_body(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body of a request as it comes, at most ``max_bytes``.

    Raises:
        BadRequest: the connection broke.
        BodyTooLarge: it has more.
        SlowClient: it is API_SLOW_CLIENT_S late for ``SLOWEST_BYTES_S``.
    """
    settings: Settings = request.app.state.settings
    deadline_s = asyncio.get_running_loop().time() + settings.api_slow_client_s
    size_bytes = 0
    chunks = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(deadline_s + size_bytes / SLOWEST_BYTES_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise SlowClient(
                f"{size_bytes} bytes of the body arrived, and nothing more in time: send it faster"
            ) from None
        except ClientDisconnect:
            raise BadRequest("the connection broke before the body's end: send it again") from None
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            raise BodyTooLarge(f"the body has more than {max_bytes} bytes: send less")
        yield chunk


class Slots:
    """How many requests of a sort one process has in work at once, per user and in all."""

    def __init__(self, what: str, of_user: int, in_all: int) -> None:
        """``what``: they are, for the refusal."""
        self._what, self._of_user, self._in_all = what, of_user, in_all
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, user_id: str) -> Iterator[None]:
        """One request more.

        Raises:
            TooManyRequests: the user, or this process, has too many of them.
        """
        if self._held[user_id] >= self._of_user or self._held.total() >= self._in_all:
            raise TooManyRequests(
                f"too many {self._what} at once: send fewer at the same time", retry_after_s=5
            )
        self._held[user_id] += 1
        try:
            yield
        finally:
            self._held[user_id] -= 1
            self._held += Counter()  # forgets users with none


async def count_request(request: Request, who: str) -> None:
    """Count a request of a key or user.

    Raises:
        TooManyRequests: more than API_RATE_PER_MINUTE in this minute.
    """
    settings: Settings = request.app.state.settings
    if settings.api_rate_per_minute:
        await _count(request, f"caller:{who}", settings.api_rate_per_minute, who)


async def require_few_failures(request: Request) -> None:
    """Refuse an address that has sent too many wrong keys.

    Raises:
        TooManyRequests: more than a hundredth of API_RATE_PER_MINUTE in this minute.
    """
    limit = _failures_limit(request)
    if not limit:
        return
    try:
        found = await request.app.state.redis.get(_name(f"failures:{_address(request)}"))
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(f"Redis does not answer ({error}): is it running?") from error
    if int(found or 0) >= limit:
        raise _too_many(f"address {_address(request)} has sent {limit} wrong keys", limit)


async def count_failure(request: Request) -> None:
    """Count a wrong key of an address."""
    limit = _failures_limit(request)
    if limit:
        await _count(request, f"failures:{_address(request)}", limit, _address(request))


def _failures_limit(request: Request) -> int:
    rate: int = request.app.state.settings.api_rate_per_minute
    return -(-rate // 100)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


async def _count(request: Request, what: str, limit: int, who: str) -> None:
    name = _name(what)
    try:
        async with request.app.state.redis.pipeline(transaction=True) as pipe:
            found, _ = await pipe.incr(name).expire(name, 2 * MINUTE_S).execute()
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(f"Redis does not answer ({error}): is it running?") from error
    if found > limit:
        raise _too_many(f"{who} has sent {limit} requests", limit)


def _name(what: str) -> str:
    return f"scenefleet:rate:{what}:{int(time.time()) // MINUTE_S}"


def _too_many(what: str, limit: int) -> TooManyRequests:
    wait_s = MINUTE_S - int(time.time()) % MINUTE_S
    return TooManyRequests(
        f"{what} in this minute, {limit} are allowed: wait {wait_s} s, or raise API_RATE_PER_MINUTE",
        retry_after_s=wait_s,
    )
