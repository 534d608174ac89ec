"""The result backend of workers: it stores answers as Celery does, and appends them to the caller's reply list."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend
from redis.exceptions import ResponseError

from shared.logs import get_logger
from shared.replies import Reply, is_reply_key, push_reply

log = get_logger(__name__)


class ReplyingBackend(RedisBackend):  # type: ignore[misc]
    """Celery records every end of a task here: by the child, and by the main process if the child could not.

    Only a ``reply_to`` of the form of ``shared.replies`` is used: a message must not write to other keys.
    """

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, *args: Any, **options: Any
    ) -> None:
        super().mark_as_done(task_id, result, request, *args, **options)
        self._reply(request, Reply(id=task_id, result=result))

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, *args: Any, **options: Any
    ) -> None:
        super().mark_as_failure(task_id, exc, traceback, request, *args, **options)
        self._reply(request, Reply(id=task_id, error_class=type(exc).__name__, message=str(exc)))

    def _reply(self, request: Any, reply: Reply) -> None:
        key = getattr(request, "reply_to", None)
        if not is_reply_key(key):
            return
        try:
            # Retried as storing is.
            self.ensure(push_reply, (self.client, key, reply))
        except ResponseError as error:
            # The key has another type: its owner waits in vain, others must not.
            log.error("answer not appended to its reply list", id=reply.id, error=error)
