"""The typed client: what an API process calls. Loads neither an ML engine nor SQLAlchemy.

Whoever wants nothing of ours installed sends the same tasks by name::

    Celery(broker=REDIS_URL, backend=REDIS_URL).send_task(
        "tasks.video.process", queue="search",
        kwargs={"video_id": "v1", "user_id": "u1", "storage_key": "uploads/u1/v1/film.mp4"})
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

from celery import Celery
from celery.states import EXCEPTION_STATES, READY_STATES
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from redis.exceptions import RedisError

from . import errors, routing
from .broker import broker_config
from .contracts import (
    Contract,
    ListScenes,
    ProcessVideo,
    Receipt,
    RerunVideo,
    ScenePage,
    SearchAnswer,
    SearchMode,
    SearchScenes,
    VideoRef,
    VideoStatus,
    parse,
)

R = TypeVar("R", bound=BaseModel)


class Client:
    """Sends requests for one fleet; safe to share between threads.

    Every call raises ``BrokerUnavailable`` when Redis is away, ``errors.Outage`` when no answer came in
    ``timeout_s`` (sending again is harmless), or the error class the fleet answered with.
    """

    def __init__(self, redis_url: str, *, timeout_s: float = 30.0) -> None:
        self.timeout_s = timeout_s
        self._app = Celery("scenefleet-client", set_as_current=False)
        self._app.conf.update(broker_config(redis_url))
        self._app.backend.on_task_call = _not_subscribed

    def process(self, video_id: str, user_id: str, storage_key: str, *, priority: int = 0) -> Receipt:
        """Hand a stored video to the fleet; call again until a receipt comes."""
        kwargs = {
            "video_id": video_id,
            "user_id": user_id,
            "storage_key": storage_key,
            "priority": priority,
        }
        return self._ask(routing.VIDEO_PROCESS, ProcessVideo, kwargs, Receipt)

    def status(self, video_id: str, user_id: str) -> VideoStatus:
        return self._ask(
            routing.VIDEO_STATUS,
            VideoRef,
            {"video_id": video_id, "user_id": user_id},
            VideoStatus,
        )

    def scenes(self, video_id: str, user_id: str, *, after_idx: int = -1, limit: int = 200) -> ScenePage:
        kwargs = {
            "video_id": video_id,
            "user_id": user_id,
            "after_idx": after_idx,
            "limit": limit,
        }
        return self._ask(routing.VIDEO_SCENES, ListScenes, kwargs, ScenePage)

    def cancel(self, video_id: str, user_id: str) -> Receipt:
        return self._ask(
            routing.VIDEO_CANCEL,
            VideoRef,
            {"video_id": video_id, "user_id": user_id},
            Receipt,
        )

    def retry(self, video_id: str, user_id: str) -> Receipt:
        return self._ask(
            routing.VIDEO_RETRY,
            VideoRef,
            {"video_id": video_id, "user_id": user_id},
            Receipt,
        )

    def rerun(self, video_id: str, user_id: str, stages: Sequence[str] = ()) -> Receipt:
        kwargs = {"video_id": video_id, "user_id": user_id, "stages": list(stages)}
        return self._ask(routing.VIDEO_RERUN, RerunVideo, kwargs, Receipt)

    def delete(self, video_id: str, user_id: str) -> Receipt:
        return self._ask(
            routing.VIDEO_DELETE,
            VideoRef,
            {"video_id": video_id, "user_id": user_id},
            Receipt,
        )

    def search(
        self,
        user_id: str,
        query: str,
        *,
        mode: SearchMode = "keyword",
        limit: int | None = None,
        video_id: str | None = None,
    ) -> SearchAnswer:
        """Search the user's published scenes by words (``keyword``) or meaning (``semantic``)."""
        kwargs = {
            "user_id": user_id,
            "query": query,
            "mode": mode,
            "limit": limit,
            "video_id": video_id,
        }
        return self._ask(routing.SEARCH_SCENES, SearchScenes, kwargs, SearchAnswer)

    def _ask(self, task: str, contract: type[Contract], kwargs: dict[str, Any], answer: type[R]) -> R:
        parse(contract, kwargs)
        try:
            result = self._app.send_task(
                task, kwargs=kwargs, queue=routing.TASK_QUEUE[task], expires=self.timeout_s, retry=False
            )
            # Nothing to unsubscribe when the handle is collected, maybe after Redis has gone.
            result.backend = None
            meta = self._wait(result.id, task)
        except (OperationalError, RedisError, OSError) as error:
            raise errors.BrokerUnavailable(
                f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
            ) from error
        if meta["status"] in EXCEPTION_STATES:
            raise _known(meta["result"])
        return answer.model_validate(meta["result"], strict=False)

    def _wait(self, task_id: str, task: str) -> dict[str, Any]:
        """Poll for the answer: Celery's subscription for results can't be shared between threads."""
        deadline = time.monotonic() + self.timeout_s
        pause_s = 0.002
        while True:
            meta: dict[str, Any] = self._app.backend.get_task_meta(task_id)
            if meta["status"] in READY_STATES:
                self._app.backend.forget(task_id)
                return meta
            if time.monotonic() > deadline:
                raise errors.Outage(
                    f"no answer to {task} in {self.timeout_s:g} s: is a `search` node running? Sending again is harmless"
                )
            time.sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)


def _not_subscribed(producer: Any, task_id: str) -> None:
    """Answers are polled for, not subscribed to."""


def _known(error: object) -> Exception:
    """The fleet's own error behind what the result backend rebuilt."""
    kind = getattr(errors, type(error).__name__, None)
    if isinstance(kind, type) and issubclass(kind, errors.ScenefleetError):
        return kind(str(error))
    return error if isinstance(error, Exception) else errors.Retryable(f"the fleet answered with {error!r}")
