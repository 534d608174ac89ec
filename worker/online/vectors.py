"""Vectors of texts: identical ones are computed once, and each is written as the caller asks.

A text that was computed a few seconds ago in this process counts as identical, so that many equal requests, which come in
several batches, call the model once. What is kept longer is in the vector cache (``use_store``).
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.models.base import Model
from worker.models.vector_cache import VectorCache
from worker.online.operations import Used
from worker.telemetry import metrics

Float32 = NDArray[np.float32]

#: How long, and how many, computed vectors are remembered in this process.
RECENT_S = 10.0
RECENT = 2048
#: Longer texts are never remembered.
MAX_CHARS = 500


class Vector(NamedTuple):
    #: float32 [dim], of length 1.
    values: Float32
    #: Whether the model was not called for it.
    cached: bool = False
    lexical: Mapping[int, float] | None = None
    #: Of its text; None: not known.
    tokens: int | None = None


_find_store: Callable[[], VectorCache | None] | None = None
_recent: OrderedDict[bytes, tuple[float, Vector]] = OrderedDict()


def use_store(find: Callable[[], VectorCache | None]) -> None:
    """Ask this function for the shared cache from now on; it may return None."""
    global _find_store
    _find_store = find


def embed_once(
    model: Model, kind: str, texts: Sequence[str], compute: Callable[[list[str]], Sequence[Vector]]
) -> list[Vector]:
    """One vector per text; ``compute`` gets those that are neither remembered nor in the shared cache, each once."""
    spec, now_s = model.spec, time.monotonic()
    keys = {
        text: hashlib.sha256(f"{spec.name}\0{spec.revision}\0{kind}\0{text}".encode()).digest()
        for text in dict.fromkeys(texts)
    }
    found: dict[str, Vector] = {}
    for text, key in keys.items():
        kept_s, vector = _recent.get(key, (float("-inf"), None))
        if vector is not None and now_s - kept_s < RECENT_S:
            found[text] = vector
    store = _find_store() if _find_store else None
    missing = [text for text in keys if text not in found]
    if store is not None and missing:
        for text, kept in zip(missing, store.get_many(spec.name, spec.revision, kind, missing), strict=True):
            if kept is not None:
                found[text] = Vector(kept.values, cached=True, tokens=kept.tokens)
        missing = [text for text in missing if text not in found]
    if missing:
        computed = compute(missing)
        found |= dict(zip(missing, computed, strict=True))
        _remember((keys[text], found[text]) for text in missing if len(text) <= MAX_CHARS)
        if store is not None:
            values, tokens = [vector.values for vector in computed], [vector.tokens for vector in computed]
            store.put_many(spec.name, spec.revision, kind, missing, values, tokens)
    metrics.count_cache("vectors", True, len(keys) - len(missing))
    metrics.count_cache("vectors", False, len(missing))
    # Of equal texts one was computed.
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    return [
        found[text] if first[text] == place else found[text]._replace(cached=True)
        for place, text in enumerate(texts)
    ]


def _remember(vectors: Iterable[tuple[bytes, Vector]]) -> None:
    now_s = time.monotonic()
    for key, vector in vectors:
        _recent.pop(key, None)
        # A copy: a row would keep its whole batch in memory.
        _recent[key] = now_s, vector._replace(values=vector.values.copy(), cached=True)
    while _recent and (len(_recent) > RECENT or now_s - next(iter(_recent.values()))[0] >= RECENT_S):
        _recent.popitem(last=False)


def write_vectors(used: Used, encoding: str, vectors: Sequence[Vector | None]) -> dict[str, Any]:
    """The fields of an answer with these vectors of a model; None stays None.

    ``base64`` is a quarter of the size of JSON's numbers: little-endian float32, in ``packed`` instead of ``vectors``.
    """
    answer: dict[str, Any] = {"model": used.model, "revision": used.revision, "dim": used.dim}
    if encoding == "base64":
        packed = [
            vector and base64.b64encode(vector.values.astype("<f4").tobytes()).decode() for vector in vectors
        ]
        return {**answer, "vectors": [], "packed": packed}
    return {**answer, "vectors": [vector and vector.values.tolist() for vector in vectors]}
