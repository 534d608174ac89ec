"""The vectors of short texts that nodes keep in Redis: how a caller finds them without a queue, whatever the nodes are busy with.

Nodes compute and keep them (worker/models/vector_cache.py), and say every few seconds which model is active. A value is the number
of the text's tokens (uint32; 0: not known) and the raw numbers, both little-endian. A key names the model, its revision and the kind
of vector, and holds the text only as a part of a hash: a changed revision never gets an old vector, and no text can be read from
Redis. Vectors of a text are the same for every user.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import RedisError

from . import routing
from .contracts import UnpackedVectors
from .contracts.inference import Timings

#: Task -> kind of its vectors.
_KINDS = {routing.TEXT_EMBED: "text", routing.VISION_EMBED_TEXTS: "vision"}
_KEY = "scenefleet:vector:"
_ACTIVE = "scenefleet:vector-model:"
#: How long a node's word about the active model counts, seconds; nodes say it every 5 s.
_ACTIVE_S = 15
_TOKENS = struct.Struct("<I")
_NUMBER_BYTES = 4
#: Requests with more texts go to a queue at once.
_MOST_TEXTS = 64

_Lookup = Generator[list[str], Sequence[bytes | None], UnpackedVectors | None]


class ActiveModel(BaseModel):
    """The model that embeds texts where a request names none."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    revision: str
    dim: int
    #: cpu or cuda
    device: str
    #: Longer texts are not kept, characters.
    max_chars: int


def vector_key(model: str, revision: str, kind: str, text: str) -> str:
    """The key of what is kept of a text."""
    return _KEY + hashlib.sha256(json.dumps([model, revision, kind, text]).encode()).hexdigest()


def pack_value(numbers: bytes, tokens: int | None) -> bytes:
    """What is kept under a key."""
    return _TOKENS.pack(tokens or 0) + numbers


def unpack_value(value: bytes) -> tuple[bytes, int | None] | None:
    """The raw numbers, and the tokens of the text; None: it is no such value."""
    if len(value) < _TOKENS.size:
        return None
    return value[_TOKENS.size :], _TOKENS.unpack_from(value)[0] or None


def publish_active(client: Any, active: Mapping[str, ActiveModel]) -> None:
    """Say which model of a kind is active, with a redis.Redis and its errors."""
    for kind, model in active.items():
        client.set(_ACTIVE + kind, model.model_dump_json(), ex=_ACTIVE_S)


class KeptVectors:
    """What one client knows of the active models."""

    def __init__(self) -> None:
        #: By kind: what Redis has last said, and what that means.
        self._active: dict[str, tuple[bytes, ActiveModel]] = {}

    def find(self, redis: Any, task: str, payload: Mapping[str, Any]) -> UnpackedVectors | None:
        """The answer to a checked request, if all its vectors are kept; None: send it, also if Redis does not answer."""
        lookup = self._look_up(task, payload)
        try:
            keys = next(lookup)
            while True:
                keys = lookup.send(redis.mget(keys))
        except StopIteration as found:
            return cast("UnpackedVectors | None", found.value)
        except (RedisError, OSError):
            return None

    async def find_later(self, redis: Any, task: str, payload: Mapping[str, Any]) -> UnpackedVectors | None:
        """``find`` over a redis.asyncio.Redis."""
        lookup = self._look_up(task, payload)
        try:
            keys = next(lookup)
            while True:
                keys = lookup.send(await redis.mget(keys))
        except StopIteration as found:
            return cast("UnpackedVectors | None", found.value)
        except (RedisError, OSError):
            return None

    def _look_up(self, task: str, payload: Mapping[str, Any]) -> _Lookup:
        """Yields keys, and is sent the values that Redis has under them (MGET); returns the answer."""
        began_s, kind = time.perf_counter(), _KINDS.get(task)
        if kind is None or not 0 < len(payload["texts"]) <= _MOST_TEXTS or payload.get("lexical"):
            return None
        # Twice for the first request, and after a switch of the model.
        for _ in range(2):
            said, model = self._active.get(kind, (None, None))
            keys = _keys(model, kind, payload) if model else []
            now_said, *values = yield [_ACTIVE + kind, *keys]
            if now_said is None:
                return None
            if now_said == said:
                return _answer(model, values, began_s) if model and keys else None
            try:
                self._active[kind] = now_said, ActiveModel.model_validate_json(now_said)
            except ValidationError:
                # Of a node of another release.
                return None
        return None


def _keys(model: ActiveModel, kind: str, payload: Mapping[str, Any]) -> list[str]:
    texts: Sequence[str] = payload["texts"]
    if payload.get("model") not in (None, model.name) or max(map(len, texts)) > model.max_chars:
        return []
    return [vector_key(model.name, model.revision, kind, text) for text in texts]


def _answer(model: ActiveModel, values: Sequence[bytes | None], began_s: float) -> UnpackedVectors | None:
    kept = [unpack_value(value) for value in values if value is not None]
    found = [one for one in kept if one is not None and len(one[0]) == _NUMBER_BYTES * model.dim]
    if len(found) < len(values):
        return None
    tokens = tuple(count for _, count in found)
    return UnpackedVectors(
        model=model.name,
        revision=model.revision,
        dim=model.dim,
        vectors=tuple(struct.unpack(f"<{model.dim}f", numbers) for numbers, _ in found),
        tokens=None if None in tokens else tokens,
        device=model.device,
        timings=Timings(queued_s=0.0, run_s=round(time.perf_counter() - began_s, 6)),
        cached=len(found),
    )
