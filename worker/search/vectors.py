"""The vectors of queries that need no model: looked up before a queue is asked, and kept when it has answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from worker.models.vector_cache import (
    LEXICAL,
    Kept,
    VectorCache,
    VectorKey,
    pack_weights,
    unpack_weights,
)
from worker.search.plan import Call
from worker.telemetry import metrics


def find(cache: VectorCache, calls: Mapping[str, Call]) -> dict[str, dict[str, Any]]:
    """Queue -> {"ok": the answer that it would give}, of the queues that need not be asked."""
    wanted = [(queue, call, key) for queue, call in calls.items() for key in _keys(queue, call)]
    kept: dict[str, list[Kept | None]] = {}
    for (queue, _, _), vector in zip(wanted, cache.get([key for *_, key in wanted]), strict=True):
        kept.setdefault(queue, []).append(vector)
    found = {}
    for queue, looked_up in kept.items():
        spec = calls[queue].spec
        vectors = [vector.values for vector in looked_up if vector is not None]
        is_kept = spec is not None and len(vectors) == len(looked_up)
        metrics.count_cache("vectors", is_kept)
        if spec is None or not is_kept or vectors[0].shape != (spec.dim,):
            continue
        dense, *lexical = vectors
        answer = {
            "model": spec.name,
            "revision": spec.revision,
            "dim": spec.dim,
            "vectors": [dense.tolist()],
        }
        if lexical:
            weights = unpack_weights(lexical[0])
            answer["lexical"] = [{str(token): weight for token, weight in weights.items()}]
        found[queue] = {"ok": answer}
    return found


def keep(cache: VectorCache, calls: Mapping[str, Call], said: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what the queues have answered, under the model and revision that they have named.

    Vectors alone are in the cache already: the node that has computed them keeps them, but with lexical weights.
    """
    ours, theirs = dict[VectorKey, Kept](), dict[VectorKey, Kept]()
    for queue, call in calls.items():
        answer = said[queue].get("ok")
        if answer is None:
            continue
        keys = _keys(queue, call)
        for key in keys:
            if key.kind == LEXICAL:
                weights = {int(token): weight for token, weight in answer["lexical"][0].items()}
                vector = Kept(pack_weights(weights))
            else:
                tokens = answer.get("tokens") or [None]
                vector = Kept(np.asarray(answer["vectors"][0], np.float32), tokens[0])
            vectors = ours if len(keys) > 1 else theirs
            vectors[key._replace(model=answer["model"], revision=answer["revision"])] = vector
    cache.put(ours)
    cache.remember(theirs)


def _keys(queue: str, call: Call) -> list[VectorKey]:
    """The keys of what a call asks for: a vector, and lexical weights if they are wanted; none of a picture's."""
    if call.spec is None:
        return []
    (text,) = call.payload["texts"]
    kinds = (queue, LEXICAL) if call.payload.get("lexical") else (queue,)
    return [VectorKey(call.spec.name, call.spec.revision, kind, text) for kind in kinds]
