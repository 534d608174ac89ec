"""Keeps the vectors of short texts in Redis, and the latest of them in the process: a query that was embedded before needs no model.

Keys and values are those of ``shared.kept_vectors``. What Redis does not give is a miss, also when it does not answer.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from redis.exceptions import RedisError

from shared.kept_vectors import pack_value, unpack_value, vector_key
from shared.logs import get_logger
from shared.settings import Settings

log = get_logger(__name__)

#: Kind of lexical weights; all others are vectors float32 [dim].
LEXICAL = "lexical"
_WEIGHTS = np.dtype([("token", "<i4"), ("weight", "<f4")])
_VECTOR = np.dtype("<f4")
#: The keys by the time at which they were put: what is removed first when there are too many.
_KEYS = "scenefleet:vectors"
#: Maximum number of vectors in the process, of 4 KB.
_OWN = 500


class VectorKey(NamedTuple):
    """What a vector is of."""

    model: str
    revision: str
    #: ``text``, ``vision`` or ``LEXICAL``.
    kind: str
    text: str

    @property
    def redis_key(self) -> str:
        return vector_key(*self)

    @property
    def dtype(self) -> np.dtype[Any]:
        return _WEIGHTS if self.kind == LEXICAL else _VECTOR


class Kept(NamedTuple):
    """What is kept under a key."""

    #: float32 [dim], or what ``pack_weights`` has packed.
    values: npt.NDArray[Any]
    #: Of the text; None: not known.
    tokens: int | None = None


class VectorCache:
    """The vectors in one Redis (EMBEDDING_CACHE_*); not shared between threads.

    Args:
        redis: a client of redis-py that does not decode responses, with timeouts.
    """

    def __init__(self, redis: Any, settings: Settings) -> None:
        self._redis = redis
        self._ttl_s = settings.embedding_cache_ttl_s
        self._size, self._max_chars = settings.embedding_cache_size, settings.embedding_cache_max_chars
        #: Redis key -> until when it is kept, and what; the latest used last.
        self._own: OrderedDict[str, tuple[float, Kept]] = OrderedDict()

    def get_many(self, model: str, revision: str, kind: str, texts: Sequence[str]) -> list[Kept | None]:
        """One vector per text; None: it is not kept."""
        return self.get([VectorKey(model, revision, kind, text) for text in texts])

    def put_many(
        self,
        model: str,
        revision: str,
        kind: str,
        texts: Sequence[str],
        vectors: Sequence[npt.NDArray[Any]],
        tokens: Sequence[int | None] | None = None,
    ) -> None:
        """Keep one vector per text; ``tokens``: of each text."""
        keys = (VectorKey(model, revision, kind, text) for text in texts)
        self.put(dict(zip(keys, map(Kept, vectors, tokens or [None] * len(vectors)), strict=True)))

    def get(self, keys: Sequence[VectorKey]) -> list[Kept | None]:
        """What is kept under several keys, in one round trip."""
        found: list[Kept | None] = [None] * len(keys)
        missing = {}
        for place, key in enumerate(keys):
            if self.may_keep(key.text):
                name = key.redis_key
                found[place] = self._get_own(name)
                if found[place] is None:
                    missing[place] = name
        if not missing:
            return found
        try:
            values = self._redis.mget(list(missing.values()))
        except RedisError as error:
            log.warning("vectors of queries not looked up", error=error)
            return found
        for (place, name), value in zip(missing.items(), values, strict=True):
            dtype, unpacked = keys[place].dtype, unpack_value(value) if value is not None else None
            if unpacked is not None and len(unpacked[0]) % dtype.itemsize == 0:
                found[place] = own = Kept(np.frombuffer(unpacked[0], dtype), unpacked[1])
                self._put_own(name, own)
        return found

    def put(self, vectors: Mapping[VectorKey, Kept]) -> None:
        """Keep vectors, and remove the oldest if there are too many."""
        kept = {key.redis_key: _copy(key, one) for key, one in vectors.items() if self.may_keep(key.text)}
        if not kept:
            return
        now = time.time()
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for name, one in kept.items():
                    pipe.set(name, pack_value(one.values.tobytes(), one.tokens), ex=self._ttl_s)
                pipe.zadd(_KEYS, dict.fromkeys(kept, now))
                pipe.zremrangebyscore(_KEYS, "-inf", now - self._ttl_s)
                pipe.expire(_KEYS, self._ttl_s)
                pipe.zcard(_KEYS)
                count = pipe.execute()[-1]
            if count > self._size:
                oldest = self._redis.zpopmin(_KEYS, count - self._size)
                self._redis.delete(*(name for name, _ in oldest))
        except RedisError as error:
            log.warning("vectors of queries not kept", error=error)
        for name, one in kept.items():
            self._put_own(name, one)

    def remember(self, vectors: Mapping[VectorKey, Kept]) -> None:
        """Keep vectors that are in Redis in this process, too."""
        for key, one in vectors.items():
            if self.may_keep(key.text):
                self._put_own(key.redis_key, _copy(key, one))

    def may_keep(self, text: str) -> bool:
        """Whether the vectors of a text are kept: it is short, and the cache is on."""
        return self._ttl_s > 0 and len(text) <= self._max_chars

    def _get_own(self, name: str) -> Kept | None:
        until_s, one = self._own.get(name, (0.0, None))
        if one is None or time.monotonic() > until_s:
            self._own.pop(name, None)
            return None
        self._own.move_to_end(name)
        return one

    def _put_own(self, name: str, one: Kept) -> None:
        self._own[name] = (time.monotonic() + self._ttl_s, one)
        self._own.move_to_end(name)
        while len(self._own) > min(_OWN, self._size):
            self._own.popitem(last=False)


def _copy(key: VectorKey, one: Kept) -> Kept:
    # A row of a batch would keep the whole batch in memory.
    return one._replace(values=np.array(one.values, key.dtype))


def pack_weights(weights: Mapping[int, float]) -> npt.NDArray[Any]:
    """Lexical weights as an array that can be kept."""
    return np.array(list(weights.items()), _WEIGHTS)


def unpack_weights(packed: npt.NDArray[Any]) -> dict[int, float]:
    """Token id -> weight, of what ``pack_weights`` has packed."""
    return {int(token): float(weight) for token, weight in packed.tolist()}
