"""Base of request tasks: checks payloads, answers with plain JSON, raises errors by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from celery.exceptions import Ignore, Reject
from pydantic import BaseModel
from sqlalchemy.orm import Session

from shared.errors import DatabaseBusy, DatabaseUnavailable, InvalidRequest, Permanent
from shared.paths import without_paths
from shared.routing import REQUEST_LIMIT_S
from worker.app import app
from worker.runtime import get_runtime
from worker.search import stored_answers

T = TypeVar("T")


class Request(app.Task):
    """A task with named fields; positional arguments get a clear error instead of a TypeError."""

    abstract = True
    #: How many arguments come by position: results of the task before it in a chain.
    positional = 0

    def __call__(self, /, *args: Any, **payload: Any) -> Any:
        if len(args) > self.positional:
            raise InvalidRequest(
                f"{self.name} got {len(args)} arguments by position, takes {self.positional}: send them by name, in kwargs"
            )
        try:
            return self.run(*args, **payload)
        except Exception as error:
            # What is raised is what the caller reads; Celery's own (Ignore, Reject, Retry) say nothing.
            without_paths(error)
            raise


class PeopleRequest(Request):
    """A request whose answer may name people: it is noted under its user, for the erasure of a person."""

    abstract = True

    def __call__(self, /, *args: Any, **payload: Any) -> Any:
        stored_answers.note_asked(payload.get("user_id"), self.request.id)
        try:
            return super().__call__(*args, **payload)
        except Ignore:
            # A search that waits for models is noted among those (worker/search/wait.py).
            stored_answers.note_answered(payload.get("user_id"), self.request.id)
            raise

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


def change(work: Callable[[Session], T]) -> T:
    """Run a change; if Postgres is unavailable the message returns to the queue, so that no request is lost.

    Raises:
        DatabaseBusy: another transaction holds the row, perhaps one whose worker is dead: the caller may send it again.
    """
    try:
        return get_runtime().transact(work)
    except DatabaseBusy:
        raise
    except DatabaseUnavailable as error:
        raise Reject(str(error), requeue=True) from error


def answer(result: BaseModel) -> dict[str, Any]:
    return result.model_dump(mode="json")
