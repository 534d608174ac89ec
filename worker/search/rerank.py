"""The best hits of a search read once more, together with the query: what the reranker is asked, and its order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import routing
from shared.contracts import RerankScores, SearchAnswer, SearchHit, SearchScenes, parse
from shared.errors import InvalidRequest
from shared.settings import Settings
from worker.search.plan import Call

#: A hit's words as the reranker reads them: fifty fit a message.
_RERANKED_BYTES = 1_000
_RERANK_QUERY_CHARS = 1_000


def rerank_call(request: SearchScenes, draft: SearchAnswer) -> Call | None:
    """What to ask the reranker; None when no hit has words to read."""
    documents = [_readable(hit.transcript) for hit in _readers(request, draft)]
    if not documents or request.query is None:
        return None
    return Call(routing.TEXT_RERANK, {"query": request.query[:_RERANK_QUERY_CHARS], "documents": documents})


def _readers(request: SearchScenes, draft: SearchAnswer) -> list[SearchHit]:
    return [hit for hit in draft.hits[: request.rerank or 0] if hit.transcript.strip()]


def _readable(transcript: str) -> str:
    return transcript.encode()[:_RERANKED_BYTES].decode(errors="ignore")


def reranked(
    request: SearchScenes, settings: Settings, draft: SearchAnswer, said: Mapping[str, Any] | None
) -> SearchAnswer:
    """The draft in the reranker's order; hits without words keep their places. Without its answer as it is, and saying so."""
    limit = request.limit or settings.search_default_results
    if said is None or "ok" not in said:
        why = f"no answer in {settings.search_deadline_s:g} s" if said is None else str(said["error"])
        return draft.model_copy(
            update={"hits": draft.hits[:limit], "degraded": {**draft.degraded, "rerank": why}}
        )
    readers = _readers(request, draft)
    scores = parse(RerankScores, said["ok"]).scores
    if len(scores) != len(readers):
        raise InvalidRequest(f"scores={len(scores)} is not acceptable: send one per document")
    better = iter(
        sorted(
            (
                hit.model_copy(update={"rerank_score": score})
                for hit, score in zip(readers, scores, strict=True)
            ),
            key=lambda hit: -(hit.rerank_score or 0.0),
        )
    )
    readable = {hit.scene_id for hit in readers}
    hits = [next(better) if hit.scene_id in readable else hit for hit in draft.hits]
    return draft.model_copy(update={"hits": tuple(hits[:limit])})
