"""Search: one ``send_task`` for the caller. A semantic query is embedded on the text lane, then compared here."""

from __future__ import annotations

from typing import Any

import numpy as np
from celery import Task

from db import search
from db.engine import reading
from db.vectors import find_model
from shared import routing
from shared.contracts import SearchAnswer, SearchScenes, TextVectors, parse
from shared.errors import Conflict, InvalidRequest
from tasks.requests import REQUEST, answer
from tasks.text import embed
from worker.app import app
from worker.runtime import get_runtime


@app.task(name=routing.SEARCH_SCENES, bind=True, **REQUEST)
def scenes(self: Task, /, **payload: Any) -> Any:
    """The user's published scenes that fit a query, best first."""
    request = parse(SearchScenes, payload)
    limit = _limit(request)
    if request.mode == "keyword":
        with reading() as session:
            hits = search.by_words(session, request.user_id, request.query, limit, request.video_id)
            covered = search.coverage(session, request.user_id, None, request.video_id)
        return answer(
            SearchAnswer(query=request.query, mode="keyword", model=None, hits=tuple(hits), coverage=covered)
        )
    reason = get_runtime().plan.skips.get("text")
    if reason is not None:
        raise Conflict(f"search by meaning is not possible: {reason}; search by mode keyword")
    # The slot is free while the text node works: replace, not wait.
    return self.replace(
        embed.s(texts=[request.query]).set(queue=routing.TASK_QUEUE[routing.TEXT_EMBED])
        | by_vector.s(**payload).set(queue=routing.REQUESTS)
    )


@app.task(name=routing.SEARCH_BY_VECTOR, positional=1, **REQUEST)
def by_vector(embedded: Any = None, /, **payload: Any) -> dict[str, Any]:
    """Second half of a semantic search: compare the query's vector, the answer of ``tasks.text.embed``."""
    request = parse(SearchScenes, payload)
    query = parse(TextVectors, embedded)
    settings = get_runtime().settings
    with reading() as session:
        model = find_model(session, query.model, query.revision)
        hits = []
        if model is not None:
            if len(query.vectors) != 1 or len(query.vectors[0]) != model.dim:
                raise InvalidRequest(
                    f"vectors={_shape(query)} is not acceptable: send one of {model.dim} numbers"
                )
            hits = search.by_meaning(
                session,
                request.user_id,
                model,
                np.asarray(query.vectors[0], np.float32),
                _limit(request),
                request.video_id,
                exact_rows=settings.search_exact_rows,
                ef_search=settings.search_ef,
            )
        covered = search.coverage(session, request.user_id, model, request.video_id)
    return answer(
        SearchAnswer(
            query=request.query,
            mode="semantic",
            model=query.model,
            hits=tuple(hits),
            coverage=covered,
        )
    )


def _shape(query: TextVectors) -> list[int]:
    return [len(vector) for vector in query.vectors]


def _limit(request: SearchScenes) -> int:
    settings = get_runtime().settings
    limit = request.limit or settings.search_default_results
    if limit > settings.search_max_results:
        raise InvalidRequest(f"limit={limit} is more than {settings.search_max_results}: ask for fewer")
    return limit
