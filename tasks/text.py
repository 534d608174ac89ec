"""Online requests of the text family, answered by the process that holds the model."""

from __future__ import annotations

from typing import Any, cast

from shared import routing
from shared.contracts import EncodeTexts, RerankDocuments, parse
from shared.errors import ModelUnavailable
from tasks.requests import REQUEST
from worker.app import app
from worker.runtime import get_runtime


@app.task(name=routing.TEXT_EMBED, **{**REQUEST, "time_limit": routing.ONLINE_LIMIT_S})
def embed(**payload: Any) -> dict[str, Any]:
    """Embed texts; with ``lexical`` also return lexical weights."""
    request = parse(EncodeTexts, payload)
    from worker.models.text import TextEmbedder

    model = cast(TextEmbedder, get_runtime().model("text", request.model))
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
        "vectors": [[float(value) for value in vector] for vector in found.dense],
    }
    if request.lexical:
        answer["lexical"] = [
            {str(token): float(weight) for token, weight in weights.items()}
            for weights in found.lexical or ()
        ]
    return answer


# With the longer limit: the first request loads the model.
@app.task(name=routing.TEXT_RERANK, **REQUEST)
def rerank(**payload: Any) -> dict[str, Any]:
    """Score how well documents answer a query."""
    request = parse(RerankDocuments, payload)
    from worker.models.text import Reranker

    model = cast(Reranker, get_runtime().model("rerank"))
    scores = model.rerank(request.query, request.documents)
    return {
        "model": model.spec.name,
        "revision": model.spec.revision,
        "scores": [float(score) for score in scores],
    }
