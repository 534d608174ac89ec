"""``Idempotency-Key``: a request that is sent again gets the answer of the first one and does nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from redis.exceptions import RedisError

from api.callers import Caller, caller
from shared.errors import BrokerUnavailable, Conflict, InvalidRequest

R = TypeVar("R", bound=BaseModel)

KEPT_S = 24 * 3600
#: How long a request may take; after it, one whose API process died may be sent again.
STARTED_S = 60
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,200}$",
        description="Any text of your choice, for example a UUID: for 24 hours the same request with the same key is answered"
        " as the first one was, and done once. Another request with it is refused.",
    ),
]


class Once:
    """Does what a request asks for once per key of its user."""

    def __init__(self, request: Request, user_id: str, key: str | None) -> None:
        self._redis = request.app.state.redis
        self._what = f"{request.method} {request.url.path}"
        self._name = hashlib.sha256(f"{user_id}\n{key}".encode()).hexdigest() if key else None

    async def run(self, body: Any, answer: type[R], do: Callable[[], Awaitable[R]]) -> R:
        """The answer of ``do``, or the kept one. ``body``: what the request says besides its address.

        Raises:
            InvalidRequest: the key came with another request.
            Conflict: the same request is being answered.
        """
        if self._name is None:
            return await do()
        said = hashlib.sha256(json.dumps([self._what, body], sort_keys=True).encode()).hexdigest()
        name = f"scenefleet:idempotency:{self._name}"
        try:
            if not await self._redis.set(name, json.dumps({"said": said}), nx=True, ex=STARTED_S):
                found = json.loads(await self._redis.get(name) or "{}")
                return _again(found, said, answer)
            try:
                done = await do()
            except BaseException:
                await self._redis.delete(name)
                raise
            kept = {"said": said, "answer": done.model_dump(mode="json")}
            await self._redis.set(name, json.dumps(kept), ex=KEPT_S)
        except (RedisError, OSError) as error:
            raise BrokerUnavailable(f"Redis does not answer ({error}): is it running?") from error
        return done


def _again(found: dict[str, Any], said: str, answer: type[R]) -> R:
    """The kept answer of a request that is repeated."""
    if found.get("said", said) != said:
        raise InvalidRequest("Idempotency-Key was used for another request: send a new key")
    if "answer" not in found:
        raise Conflict("a request with this Idempotency-Key is being answered: send it again in a moment")
    return answer.model_validate(found["answer"], strict=False)


async def once(request: Request, who: Annotated[Caller, Depends(caller)], key: IdempotencyKey = None) -> Once:
    """The dependency of routes that do something twice when they are asked twice."""
    return Once(request, who.user_id, key)
