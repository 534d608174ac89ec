"""Reranking: what the reranker is asked about the best hits of a search, and the order of its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import routing
from shared.contracts import RerankScores, SearchAnswer, SearchHit, SearchScenes, parse
from shared.errors import InvalidRequest
from shared.settings import Settings
from worker.search.plan import Call

#: Fifty transcripts of this size fit into a message.
_DOCUMENT_BYTES = 1_000
_QUERY_CHARS = 1_000


def rerank_call(request: SearchScenes, draft: SearchAnswer) -> Call | None:
    """What to ask the reranker; None if no hit has words."""
    documents = [
        hit.transcript.encode()[:_DOCUMENT_BYTES].decode(errors="ignore")
        for hit in _with_words(request, draft)
    ]
    if not documents or request.query is None:
        return None
    return Call(routing.TEXT_RERANK, {"query": request.query[:_QUERY_CHARS], "documents": documents})


def _with_words(request: SearchScenes, draft: SearchAnswer) -> list[SearchHit]:
    return [hit for hit in draft.hits[: request.rerank or 0] if hit.transcript.strip()]


def reranked(
    request: SearchScenes, settings: Settings, draft: SearchAnswer, said: Mapping[str, Any]
) -> SearchAnswer:
    """The draft in the order of the reranker's scores; hits without words keep their places.

    ``said``: {"ok": its answer}, or {"error": why there is none}: then the draft's order stays, and the answer is degraded.
    """
    limit = request.limit or settings.search_default_results
    if "ok" not in said:
        degraded = {**draft.degraded, "rerank": str(said["error"])}
        return draft.model_copy(update={"hits": draft.hits[:limit], "degraded": degraded})
    with_words = _with_words(request, draft)
    scores = parse(RerankScores, said["ok"]).scores
    if len(scores) != len(with_words):
        raise InvalidRequest(f"scores={len(scores)} is not acceptable: send one per document")
    ranked = sorted(zip(scores, with_words, strict=True), key=lambda pair: -(pair[0] or 0.0))
    better = (hit.model_copy(update={"rerank_score": score}) for score, hit in ranked)
    moved = {hit.scene_id for hit in with_words}
    hits = [next(better) if hit.scene_id in moved else hit for hit in draft.hits]
    return draft.model_copy(update={"hits": tuple(hits[:limit])})
