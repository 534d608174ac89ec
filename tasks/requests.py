"""Request tasks: they check payloads, answer with plain JSON, and raise errors by class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

from celery import current_task
from celery.exceptions import Reject
from pydantic import BaseModel
from sqlalchemy.orm import Session

from db.engine import reading_as
from db.ledger.jobs import WakeUp
from db.precedence import Arrival
from shared.contracts import parse
from shared.contracts.base import Contract
from shared.errors import DatabaseBusy, DatabaseUnavailable, InvalidRequest, Permanent
from shared.fleet_clock import SENT_AT
from shared.paths import without_paths
from shared.routing import REQUEST_LIMIT_S
from worker import changes
from worker.app import app
from worker.broker.clock import fleet_clock
from worker.online import batch
from worker.online.operations import OPERATIONS, Operation
from worker.runtime import get_runtime
from worker.search import stored_answers
from worker.wakeup import notify

C = TypeVar("C", bound=Contract)
Handle = Callable[..., Any]
Answer = BaseModel | dict[str, Any]
Changed = tuple[Answer, list[WakeUp]]


class Request(app.Task):
    """A task with named fields; positional arguments get a clear error instead of a TypeError."""

    abstract = True

    def __call__(self, /, *args: Any, **payload: Any) -> Any:
        if args:
            raise InvalidRequest(
                f"{self.name} got {len(args)} arguments by position, takes 0: send them by name, in kwargs"
            )
        try:
            return self.run(**payload)
        except Exception as error:
            # What is raised is what the caller reads; Celery's own (Ignore, Reject, Retry) say nothing.
            without_paths(error)
            raise


class PeopleRequest(Request):
    """A request whose answer may name people: it is noted under its user, for the erasure of a person."""

    abstract = True

    def __call__(self, /, *args: Any, **payload: Any) -> Any:
        stored_answers.note_asked(payload.get("user_id"), self.request.id, self.request.reply_to)
        return super().__call__(*args, **payload)

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: dict[str, Any], einfo: Any
    ) -> None:
        stored_answers.note_answered(kwargs.get("user_id"), task_id)


#: Options of every request task: errors the caller caused are not logged as ours.
REQUEST: dict[str, Any] = {
    "base": Request,
    "acks_late": True,
    # Redis counts no deliveries: a request that kills its worker would kill one after another. The caller is told.
    "reject_on_worker_lost": False,
    "ignore_result": False,
    "time_limit": REQUEST_LIMIT_S,
    "throws": (Permanent, DatabaseBusy),
}
#: Of requests whose answers name people.
PEOPLE_REQUEST: dict[str, Any] = {**REQUEST, "base": PeopleRequest}


def request_task(
    name: str, contract: type[C], call: Callable[[Handle, C], Answer] | None = None, **options: Any
) -> Callable[[Handle], Any]:
    """Register a function as the task ``name``: it gets the payload as ``contract``, and its answer is sent as JSON.

    ``call``: calls the function; ``options``: instead of those of ``REQUEST``.
    """

    def register(handle: Handle) -> Any:
        @app.task(name=name, **{**REQUEST, **options})
        @wraps(handle)
        def run(**payload: Any) -> dict[str, Any]:
            request = parse(contract, payload)
            return answer(handle(request) if call is None else call(handle, request))

        return run

    return register


def online_task(name: str, operation: Operation[Any], **options: Any) -> Any:
    """Register the task ``name``, whose requests a node computes in batches; ``options``: instead of those of ``REQUEST``."""
    OPERATIONS[name] = operation

    def run(**payload: Any) -> dict[str, Any]:
        return batch.answer_of(name, task.request.id, payload)

    run.__doc__ = operation.contract.__doc__
    task = app.task(name=name, **{**REQUEST, "Strategy": "worker.online.dispatcher:strategy", **options})(run)
    return task


def _read(handle: Handle, request: Any) -> Answer:
    with reading_as(request.user_id) as session:
        found: Answer = handle(session, request)
        return found


#: Registers a function of a session, which reads rows of the request's user, and the request.
read_task = partial(request_task, call=_read)
#: Registers a function of a session and the request that changes rows; returns the answer and the wake-up messages to send.
change_task = partial(
    request_task, call=lambda handle, request: commit(lambda session: handle(session, request), request)
)


def arrival() -> Arrival:
    """The request that this process answers now."""
    request = current_task.request if current_task else None
    sent_at = None if request is None else request.get(SENT_AT)
    if request is None or sent_at is None:
        return Arrival()
    return Arrival(request.id, lambda: fleet_clock.now() - sent_at)


def commit(work: Callable[[Session], Changed], request: Contract) -> Answer:
    """Run the change of a request, then send its wake-up messages and tell watchers.

    While Postgres is unavailable, the message returns to the queue.

    Raises:
        DatabaseBusy: another transaction holds the row, perhaps one whose worker is dead: the caller may send it again.
    """
    try:
        answered, wake_ups = get_runtime().transact(work)
    except DatabaseBusy:
        raise
    except DatabaseUnavailable as error:
        raise Reject(str(error), requeue=True) from error
    notify(wake_ups)
    changes.publish(changes.of_request(request))
    return answered


def answer(result: Answer) -> dict[str, Any]:
    return result if isinstance(result, dict) else result.model_dump(mode="json")
