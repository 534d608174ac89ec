"""The search task: one ``send_task`` for the caller. Model nodes embed the query, then a search node compares the vectors.

No slot waits for another task. ``scenes`` stores the request (worker/search/wait.py), sends tasks to the models' queues and
ends. Their answers go to ``gather``. The last answer, or the deadline, sends ``finish``, which runs under the id of the
caller's task. A process may be killed at any moment: the result backend also holds the answers of the models, and
``finish`` is sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from celery import Task
from celery.exceptions import Ignore
from celery.states import EXCEPTION_STATES, SUCCESS

from shared import routing
from shared.contracts import GatherSearch, SearchAnswer, SearchScenes, parse
from shared.errors import BrokerUnavailable, InvalidRequest, WorkerLost
from shared.logs import get_logger
from tasks.requests import PEOPLE_REQUEST, REQUEST, Request, answer
from worker.app import app
from worker.runtime import get_runtime
from worker.search import answer as search_answer, cursor, plan, rerank
from worker.search.wait import get_pending, working_on

log = get_logger(__name__)

#: A search fails after this many processes have died while they answered it.
_MAX_CLAIMS = 3


@app.task(name=routing.SEARCH_SCENES, bind=True, **PEOPLE_REQUEST)
def scenes(self: Task, /, **payload: Any) -> Any:
    """The user's published scenes that fit a query, best first."""
    request = parse(SearchScenes, payload)
    runtime, pending = get_runtime(), get_pending()
    plan.check(request, runtime.settings)
    kept = None
    if request.cursor is not None:
        cursor.read_cursor(request)
        kept = pending.page(cursor.query_hash(request))
    ready = pending.ready_families() if request.mode != "keyword" else frozenset[str]()
    made = plan.plan(request, runtime, ready, kept)
    if not made.calls:
        return _conclude(self, request, made, kept or {}, {})
    _wait(self, request, made.calls, {"missing": made.missing})
    raise Ignore


@app.task(name=routing.SEARCH_GATHER, positional=1, **{**REQUEST, "ignore_result": True})
def gather(said: Any = None, /, **payload: Any) -> None:
    """Record the answer of a queue: ``said``, or the id of its task if that failed."""
    request = parse(GatherSearch, payload)
    if request.queue is None:
        raise InvalidRequest("queue is missing: send it")
    pending = get_pending()
    told = _stored_answer(request.search, request.queue) if request.failed else {"ok": said}
    if told is not None and pending.arrive(request.search, request.queue, told):
        pending.send_finish(request.search)
    app.backend.forget(queue_task_id(request.search, request.queue))


class Finish(Request):
    """Removes a search after its answer or error is stored; until then it can be finished again."""

    abstract = True

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: dict[str, Any], einfo: Any
    ) -> None:
        try:
            get_pending().remove(str(kwargs.get("search")))
        except BrokerUnavailable as error:
            log.warning("an answered search is finished once more", error=error)


# If the child dies, the caller gets no error: the next message claims the search again.
@app.task(name=routing.SEARCH_FINISH, bind=True, **{**REQUEST, "base": Finish, "reject_on_worker_lost": True})
def finish(self: Task, /, **payload: Any) -> Any:
    """Answer a search with the answers of the queues so far. Runs under the id of the caller's task."""
    request = parse(GatherSearch, payload)
    claimed = get_pending().claim(request.search)
    if claimed is None:
        # Another message has finished it, or is about to.
        raise Ignore
    if claimed.claims > _MAX_CLAIMS:
        raise WorkerLost(f"{_MAX_CLAIMS} worker processes died while they answered this search: change it")
    with working_on(request.search):
        return _finish(self, request.search, claimed.state, claimed.queues)


def _finish(task: Task, search: str, state: Mapping[str, Any], queues: dict[str, Any]) -> dict[str, Any]:
    for queue in state["needs"]:
        if queue not in queues and (told := _stored_answer(search, queue)) is not None:
            # The process that should have recorded it was killed.
            queues[queue] = told
    asked = parse(SearchScenes, state["request"])
    runtime = get_runtime()
    late = {"error": f"no answer in {runtime.settings.search_deadline_s:g} s"}
    if "draft" in state:
        draft = SearchAnswer.model_validate(state["draft"], strict=False)
        return answer(rerank.reranked(asked, runtime.settings, draft, queues.get("rerank", late)))
    made = plan.plan(asked, runtime, state["needs"], said=queues)
    queues = {queue: queues.get(queue, late) for queue in state["needs"]}
    made.missing |= state["missing"]
    return _conclude(task, asked, made, queues, queues, instead_of=search)


def _stored_answer(search: str, queue: str) -> dict[str, Any] | None:
    """The stored result of a queue's task; None if it has not ended, or the result was removed."""
    found = app.backend.get_task_meta(queue_task_id(search, queue))
    if found["status"] == SUCCESS:
        return {"ok": found["result"]}
    if found["status"] in EXCEPTION_STATES:
        return {"error": plan.sentence(found["result"]), "class": type(found["result"]).__name__}
    return None


def queue_task_id(search: str, queue: str) -> str:
    """The id of the task that a search has sent to a queue."""
    return f"{search}-{queue}"


def _conclude(
    task: Task,
    request: SearchScenes,
    made: plan.Plan,
    queues: Mapping[str, Mapping[str, Any]],
    fresh: Mapping[str, Mapping[str, Any]],
    *,
    instead_of: str | None = None,
) -> dict[str, Any]:
    """Answer a search, or wait once more, for the reranker, ``instead_of`` the search that has waited.

    ``fresh``: the answers of the queues for this page.
    """
    runtime, pending = get_runtime(), get_pending()
    draft = search_answer.answer(request, runtime, made, queues)
    if draft.next_cursor is not None and fresh:
        pending.keep_page(cursor.query_hash(request), fresh)
    if request.rerank is None:
        return answer(draft)
    reason = None
    if "rerank" not in runtime.catalog.active(runtime.settings):
        reason = f"unavailable: profile {runtime.settings.profile} has no rerank model"
    elif "text" not in pending.ready_families():
        reason = "no text node is ready"
    call = rerank.rerank_call(request, draft)
    if reason is not None or call is None:
        said = {"error": reason or "no hit has words to read"}
        return answer(rerank.reranked(request, runtime.settings, draft, said))
    _wait(task, request, {"rerank": call}, {"draft": answer(draft)}, instead_of)
    raise Ignore


def _wait(
    task: Task,
    request: SearchScenes,
    calls: Mapping[str, plan.Call],
    more: Mapping[str, Any],
    instead_of: str | None = None,
) -> None:
    """Store the search and send the tasks; the last answer finishes it."""
    settings = get_runtime().settings
    search = uuid4().hex
    own = task.request
    state = {
        "task_id": own.id,
        # What the caller wants done with the answer.
        "options": {
            "link": own.callbacks,
            "link_error": own.errbacks,
            "chain": own.chain,
            "chord": own.chord,
            "group_id": own.group,
            "root_id": own.root_id,
            "ignore_result": bool(own.ignore_result),
        },
        "request": request.model_dump(mode="json"),
        "needs": list(calls),
        **more,
    }
    get_pending().begin(
        search, state, list(calls), deadline_s=settings.search_deadline_s, instead_of=instead_of
    )
    for queue, call in calls.items():
        note = {"search": search, "queue": queue}
        app.send_task(
            call.task,
            kwargs=call.payload,
            task_id=queue_task_id(search, queue),
            queue=routing.TASK_QUEUE[call.task],
            expires=settings.search_deadline_s + 5,
            retry=False,
            link=gather.s(**note).set(queue=routing.REQUESTS),
            link_error=gather.s(**note, failed=True).set(queue=routing.REQUESTS),
        )
