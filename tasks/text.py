"""Online requests of the text family, answered by the process that holds the model."""

from __future__ import annotations

from typing import Any, cast

from shared import routing
from shared.contracts import EmbedTexts, parse
from tasks.requests import REQUEST
from worker.app import app
from worker.runtime import get_runtime


@app.task(name=routing.TEXT_EMBED, **{**REQUEST, "time_limit": routing.ONLINE_LIMIT_S})
def embed(**payload: Any) -> dict[str, Any]:
    """Unit vectors of some texts: {model, revision, dim, vectors}."""
    request = parse(EmbedTexts, payload)
    from worker.models.base import TextEmbedder

    model = cast(TextEmbedder, get_runtime().shelf.get("text"))
    vectors = model.embed(request.texts)
    return {
        "model": model.spec.name,
        "revision": model.spec.revision,
        "dim": model.dim,
        "vectors": [[float(value) for value in vector] for vector in vectors],
    }
