"""Online requests of the text family, answered by the process that holds the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from shared import routing
from shared.contracts import EncodeTexts, RerankDocuments
from shared.errors import ModelUnavailable
from tasks.requests import online_task
from worker.online.operations import Computed, Operation, Used, checked_texts, used_by
from worker.online.vectors import Vector, embed_once, write_vectors
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.text import Reranker, TextEmbedder


def _encode(options: tuple[str | None, bool], texts: list[str]) -> Computed:
    name, lexical = options
    model = cast("TextEmbedder", get_runtime().model("text", name))
    if not lexical:
        found = embed_once(model, "text", texts, partial(_compute, model))
        return Computed(used_by(model, model.dim), found)
    if not model.has_lexical:
        raise ModelUnavailable(
            f"Model {model.spec.name} gives no lexical weights: ask for vectors only, or use a profile whose text model"
            " does"
        )
    unique = list(dict.fromkeys(texts))
    vectors = dict(zip(unique, _compute(model, unique), strict=True))
    return Computed(used_by(model, model.dim), [vectors[text] for text in texts])


def _compute(model: TextEmbedder, texts: list[str]) -> list[Vector]:
    found = model.encode(texts)
    nothing: list[Any] = [None] * len(texts)
    rows = zip(found.dense, found.lexical or nothing, found.tokens or nothing, strict=True)
    return [Vector(dense, lexical=weights, tokens=tokens) for dense, weights, tokens in rows]


def _write(request: EncodeTexts, used: Used, vectors: Sequence[Vector | None]) -> dict[str, Any]:
    answer = write_vectors(used, request.encoding, vectors)
    if request.lexical:
        answer["lexical"] = [
            vector and {str(token): float(weight) for token, weight in (vector.lexical or {}).items()}
            for vector in vectors
        ]
    tokens = {vector.tokens for vector in vectors if vector}
    if vectors and None not in tokens:
        answer["tokens"] = [vector and vector.tokens for vector in vectors]
    return answer


def _rerank(query: str, documents: list[str]) -> Computed:
    model = cast("Reranker", get_runtime().model("rerank"))
    unique = list(dict.fromkeys(documents))
    scores = dict(zip(unique, map(float, model.rerank(query, unique)), strict=True))
    return Computed(used_by(model), [scores[document] for document in documents])


#: Embed texts; with ``lexical`` also return lexical weights.
embed = online_task(
    routing.TEXT_EMBED,
    Operation(
        contract=EncodeTexts,
        fields=("texts",),
        prepare=lambda request, first, end: checked_texts("texts", request.texts, first, end),
        options=lambda request: (request.model, request.lexical),
        compute=_encode,
        answer=_write,
    ),
    time_limit=routing.ONLINE_LIMIT_S,
)

#: Score how well documents answer a query. With the longer limit: the first request loads the model.
rerank = online_task(
    routing.TEXT_RERANK,
    Operation(
        contract=RerankDocuments,
        fields=("documents",),
        prepare=lambda request, first, end: checked_texts("documents", request.documents, first, end),
        options=lambda request: request.query,
        compute=_rerank,
        answer=lambda request, used, scores: {
            "model": used.model,
            "revision": used.revision,
            "scores": scores,
        },
    ),
)
