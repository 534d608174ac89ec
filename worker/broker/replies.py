"""The result backend of workers: it stores answers as Celery does, and appends them to the caller's reply list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.backends.redis import RedisBackend
from celery.states import PENDING, SUCCESS
from redis.exceptions import ResponseError

from shared.logs import get_logger
from shared.replies import KEPT_S, Reply, encode_reply, is_reply_key, push_reply

log = get_logger(__name__)

#: Answers that are held back to be sent together, bytes.
_HELD_BYTES = 2**20


class ReplyingBackend(RedisBackend):  # type: ignore[misc]
    """Celery records every end of a task here: by the child, and by the main process if the child could not.

    Only a ``reply_to`` of the form of ``shared.replies`` is used: a message must not write to other keys.
    """

    #: Key -> answer and (list, reply) that wait for the end of ``together``; None: each is sent at once.
    _held: tuple[dict[str | bytes, str], list[tuple[str, bytes]]] | None = None
    _held_bytes = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send the answers that are recorded in this block together, at its end or when they are a megabyte: Celery needs
        three round trips for each.

        Raises:
            RedisError: Redis has not answered, however often it was asked; some answers may have been sent.
        """
        self._held = ({}, [])
        try:
            yield
            self._send_held()
        finally:
            self._held, self._held_bytes = None, 0

    def _send_held(self) -> None:
        if self._held is None:
            return
        held, self._held, self._held_bytes = self._held, ({}, []), 0
        if held[0] or held[1]:
            self.ensure(self._send, held)

    def _send(self, answers: dict[str | bytes, str], replies: list[tuple[str, bytes]]) -> None:
        """As ``_store_result``, which changes no success, ``_set`` and ``push_reply`` do one by one."""
        stored = self.client.mget(list(answers)) if answers else []
        done = {
            key
            for key, value in zip(answers, stored, strict=True)
            if value is not None and self.decode_result(value)["status"] == SUCCESS
        }
        with self.client.pipeline(transaction=False) as pipe:
            for key, value in answers.items():
                if key not in done:
                    pipe.set(key, value, ex=self.expires or None)
                    pipe.publish(key, value)
            sent = len(pipe)
            for key, item in replies:
                pipe.rpush(key, item)
                pipe.expire(key, KEPT_S)
            said = pipe.execute(raise_on_error=False)
        for error in said[:sent]:
            if isinstance(error, Exception):
                raise error
        for error in said[sent:]:
            if isinstance(error, Exception):
                # The key has another type: its owner waits in vain, others must not.
                log.error("answer not appended to its reply list", error=error)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        if self._held is not None:
            # Looked up when it is sent.
            return {"status": PENDING, "result": None}
        found: dict[str, Any] = super()._get_task_meta_for(task_id)
        return found

    def _set(self, key: str | bytes, value: str) -> None:
        if self._held is None:
            super()._set(key, value)
            return
        self._held[0][key] = value
        self._hold(len(value))

    def _hold(self, length: int) -> None:
        self._held_bytes += length
        if self._held_bytes > _HELD_BYTES:
            self._send_held()

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
        key: Any = getattr(request, "reply_to", None)
        if not is_reply_key(key):
            return
        if self._held is not None:
            item = encode_reply(reply)
            self._held[1].append((key, item))
            self._hold(len(item))
            return
        try:
            # Retried as storing is.
            self.ensure(push_reply, (self.client, key, reply))
        except ResponseError as error:
            # The key has another type: its owner waits in vain, others must not.
            log.error("answer not appended to its reply list", id=reply.id, error=error)
