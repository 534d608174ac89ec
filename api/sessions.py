"""Sign-ins of browsers by OIDC: the browser keeps a random token, Redis the user under its hash, for all API processes."""

from __future__ import annotations

import hashlib
import secrets
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.errors import BrokerUnavailable


class Sessions:
    """Opens, finds and ends them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def open(self, user_id: str, lifetime_s: int) -> str:
        """The token of a new one."""
        token = secrets.token_urlsafe(32)
        try:
            await self._redis.set(_name(token), user_id, ex=lifetime_s)
        except (RedisError, OSError) as error:
            raise _away(error) from error
        return token

    async def find(self, token: str) -> str | None:
        """The user id; None: it has ended, or never was."""
        try:
            found = cast("bytes | None", await self._redis.get(_name(token)))
        except (RedisError, OSError) as error:
            raise _away(error) from error
        return found.decode() if found else None

    async def end(self, token: str) -> None:
        """End it, in every browser and process."""
        try:
            await self._redis.delete(_name(token))
        except (RedisError, OSError) as error:
            raise _away(error) from error


def _name(token: str) -> str:
    return f"scenefleet:session:{hashlib.sha256(token.encode()).hexdigest()}"


def _away(error: Exception) -> BrokerUnavailable:
    return BrokerUnavailable(f"Redis does not answer ({error}): is it running?")
