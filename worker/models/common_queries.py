"""Common queries (WARM_QUERIES): a text or vision node embeds them at its start, so that searches for them need no model."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ModelUnavailable
from worker.models.base import Model
from worker.models.text import TextEmbedder
from worker.models.vector_cache import LEXICAL, VectorCache, pack_weights
from worker.models.vision import VisionEmbedder

#: Maximum size of the file, bytes.
_MAX_BYTES = 2**20
_BATCH = 32


def read_queries(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 text file, each once, in their order; blank lines are ignored.

    Raises: ModelUnavailable, in one sentence, when the file is missing, too large or no text.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ModelUnavailable(f"WARM_QUERIES={path} has more than {_MAX_BYTES} bytes: shorten it")
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ModelUnavailable(f"WARM_QUERIES={path} can't be read ({error.strerror}): correct it") from error
    except UnicodeDecodeError as error:
        raise ModelUnavailable(f"WARM_QUERIES={path} is not UTF-8 text: save it as UTF-8") from error
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def embed_queries(model: Model, queries: tuple[str, ...], cache: VectorCache) -> int:
    """Keep the vectors of those queries that the cache does not have; returns how many. Raises: ModelFailure."""
    name, revision, kind = model.spec.name, model.spec.revision, model.spec.kind
    weighs = isinstance(model, TextEmbedder) and model.has_lexical
    queries = tuple(query for query in queries if cache.may_keep(query))
    missing = [
        query
        for query, *vectors in zip(
            queries,
            cache.get_many(name, revision, kind, queries),
            *([cache.get_many(name, revision, LEXICAL, queries)] if weighs else []),
            strict=True,
        )
        if any(vector is None for vector in vectors)
    ]
    for first in range(0, len(missing), _BATCH):
        batch = missing[first : first + _BATCH]
        if isinstance(model, TextEmbedder):
            found = model.encode(batch)
            cache.put_many(name, revision, kind, batch, list(found.dense), found.tokens)
            if found.lexical is not None:
                cache.put_many(name, revision, LEXICAL, batch, list(map(pack_weights, found.lexical)))
        elif isinstance(model, VisionEmbedder):
            cache.put_many(name, revision, kind, batch, list(model.embed_texts(batch)))
    return len(missing)
