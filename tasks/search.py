"""The search task: one ``send_task`` for the caller. It asks the models for the query's vectors, then compares them.

The task keeps its slot until it has answered (worker/search/queues.py). A search changes nothing: if its process dies, the
caller gets the error and may send it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import routing
from shared.contracts import SearchAnswer, SearchScenes
from tasks.requests import PEOPLE_REQUEST, request_task
from worker.runtime import get_runtime
from worker.search import answer, cursor, plan, rerank, vectors
from worker.search.queues import get_queues


@request_task(routing.SEARCH_SCENES, SearchScenes, **PEOPLE_REQUEST)
def scenes(request: SearchScenes) -> SearchAnswer:
    """The user's published scenes that fit a query, best first."""
    runtime, queues = get_runtime(), get_queues()
    settings = runtime.settings
    plan.check(request, settings)
    kept = None
    if request.cursor is not None:
        cursor.read_cursor(request)
        kept = queues.page(cursor.query_hash(request))
    made = plan.plan(request, runtime, kept)
    said = dict(kept or {})
    if made.calls:
        said |= vectors.find(runtime.vector_cache, made.calls)
        asked = {queue: call for queue, call in made.calls.items() if queue not in said}
        said |= queues.ask(asked, settings.search_deadline_s)
        found = answer.answer(request, runtime, made, said)
        vectors.keep(runtime.vector_cache, asked, said)
        if found.next_cursor is not None:
            queues.keep_page(cursor.query_hash(request), said)
    else:
        found = answer.answer(request, runtime, made, said)
    return found if request.rerank is None else _rerank(request, found)


def _rerank(request: SearchScenes, draft: SearchAnswer) -> SearchAnswer:
    """The answer in the order of the reranker, or as it is, degraded."""
    runtime = get_runtime()
    settings = runtime.settings
    call = rerank.rerank_call(request, draft)
    said: Mapping[str, Any]
    if "rerank" not in runtime.catalog.active(settings):
        said = {"error": f"unavailable: profile {settings.profile} has no rerank model"}
    elif call is None:
        said = {"error": "no hit has words to read"}
    else:
        said = get_queues().ask({"rerank": call}, settings.search_deadline_s)["rerank"]
    return rerank.reranked(request, settings, draft, said)
