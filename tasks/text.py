"""Online requests of the text family, answered by the process that holds the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from shared import routing
from shared.contracts import EncodeTexts, RerankDocuments
from shared.errors import ModelUnavailable
from tasks.requests import request_task
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.text import Reranker, TextEmbedder


@request_task(routing.TEXT_EMBED, EncodeTexts, time_limit=routing.ONLINE_LIMIT_S)
def embed(request: EncodeTexts) -> dict[str, Any]:
    """Embed texts; with ``lexical`` also return lexical weights."""
    model = cast("TextEmbedder", get_runtime().model("text", request.model))
    if request.lexical and not model.has_lexical:
        raise ModelUnavailable(
            f"Model {model.spec.name} gives no lexical weights: ask for vectors only, or use a profile whose text model"
            " does"
        )
    found = model.encode(request.texts)
    answer: dict[str, Any] = {
        "model": model.spec.name,
        "revision": model.spec.revision,
        "dim": model.dim,
        "vectors": [vector.tolist() for vector in found.dense],
    }
    tokens = model.count_tokens(request.texts)
    if tokens is not None:
        answer["tokens"] = list(tokens)
    if request.lexical:
        answer["lexical"] = [
            {str(token): float(weight) for token, weight in weights.items()}
            for weights in found.lexical or ()
        ]
    return answer


# With the longer limit: the first request loads the model.
@request_task(routing.TEXT_RERANK, RerankDocuments)
def rerank(request: RerankDocuments) -> dict[str, Any]:
    """Score how well documents answer a query."""
    model = cast("Reranker", get_runtime().model("rerank"))
    scores = model.rerank(request.query, request.documents)
    return {
        "model": model.spec.name,
        "revision": model.spec.revision,
        "scores": [float(score) for score in scores],
    }
