"""The search task: one ``send_task`` for the caller. It asks the models for the query's vectors, then compares them.

The task keeps its slot until it has answered (worker/search/queues.py). A search changes nothing: if its process dies, the
caller gets the error and may send it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import routing
from shared.contracts import SearchAnswer, SearchScenes
from tasks.requests import PEOPLE_REQUEST, Answer, request_task
from worker.runtime import get_runtime
from worker.search import answer, cursor, plan, rerank, vectors
from worker.search.kept_answers import get_kept_answers
from worker.search.queues import get_queues


@request_task(routing.SEARCH_SCENES, SearchScenes, **PEOPLE_REQUEST)
def scenes(request: SearchScenes) -> Answer:
    """The user's published scenes that fit a query, best first."""
    runtime, queues, kept_answers = get_runtime(), get_queues(), get_kept_answers()
    plan.check(request, runtime.settings)
    if (again := kept_answers.find(request)) is not None:
        return again
    of_page = None
    if request.cursor is not None:
        cursor.read_cursor(request)
        of_page = queues.page(cursor.query_hash(request))
    made = plan.plan(request, runtime, of_page)
    said = {**(of_page or {}), **vectors.find(runtime.vector_cache, made.calls)}
    asked = {queue: call for queue, call in made.calls.items() if queue not in said}
    if asked:
        said |= queues.ask(asked, runtime.settings.search_deadline_s)
    found = answer.answer(request, runtime, made, said)
    # Only now: what the queues have answered is what the contract says.
    vectors.keep(runtime.vector_cache, asked, said)
    if made.calls and found.next_cursor is not None:
        queues.keep_page(cursor.query_hash(request), said)
    if request.rerank is not None:
        return _rerank(request, found)
    kept_answers.keep(request, found, made.version)
    return found


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
