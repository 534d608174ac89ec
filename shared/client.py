"""The typed clients: what an API process calls. Load neither an ML engine nor SQLAlchemy.

Without scenefleet installed, send the same tasks by name::

    Celery(broker=REDIS_URL, backend=REDIS_URL).send_task(
        "tasks.video.process", queue="search",
        kwargs={"video_id": "v1", "user_id": "u1", "storage_key": "uploads/u1/v1/film.mp4"})
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Self, TypeVar, cast

import redis.asyncio
import redis.asyncio.retry
import redis.retry
from pydantic import BaseModel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from . import admission, errors, routing
from .admission import Reservation
from .attempts import Attempts
from .calls import AsyncCalls, BlockingCalls, Call
from .contracts import KeyView, VideoStatus
from .fallback import Fallback
from .following import Following
from .kept_vectors import KeptVectors
from .keys import make_key
from .local_models import TextEmbedder, local_embedder
from .replies import decode_reply, new_reply_key, wait_replies
from .sending import SENDERS, TIME_LIMITS, Sender, Sent, broker_unavailable

__all__ = ["AsyncClient", "Client", "TextEmbedder", "local_embedder"]

A = TypeVar("A", bound=BaseModel)

#: Longest single wait on a reply list. Then the stored answer is read: a reply may have been lost with its connection.
STEP_S = 2.0
#: No limit: ``connections`` limits the calls. (redis-py 8 has one of 100, and an error beyond it.)
MOST_CONNECTIONS = 2**31
#: Pause before a lost connection is opened again, seconds.
LOST_PAUSE_S = 0.5


class _Asking(Sender):
    """The options of both clients."""

    def __init__(
        self,
        redis_url: str,
        *,
        broker_url: str = "",
        timeout_s: float = 30.0,
        retries: int = 2,
        connections: int = 64,
        fallback: TextEmbedder | None = None,
    ) -> None:
        """
        Args:
            broker_url: a RabbitMQ that has the queues; Redis still has the answers.
            timeout_s: time limit of a call, its retries included.
            retries: how often a call is sent again after an outage.
            connections: calls that wait at the same time; others wait until one of them has ended.
            fallback: answers ``embed_texts`` when the fleet does not, such as ``local_embedder`` (local_models.py).
        """
        self.retries, self.connections = retries, connections
        self._fallback = Fallback(fallback)
        self._kept = KeptVectors()
        super().__init__(redis_url, broker_url=broker_url, timeout_s=timeout_s)

    def _send_call(self, call: Call[A], asked: Reservation) -> Sent:
        """Send a call that is admitted. Workers discard it when its caller has given up."""
        reply_to = new_reply_key()
        task_id = self.publish(
            call.task, call.kwargs, reply_to=reply_to, expires_s=asked.hold_s, lease=asked.lease
        )
        return Sent(task_id, reply_to, self.answer_key(task_id))

    def _no_room(self) -> errors.Outage:
        return errors.Outage(
            f"{self.connections} calls of this client wait for answers, and none ended within {self.timeout_s:g} s:"
            " send fewer at once, or give the client more `connections`"
        )


class Client(_Asking, BlockingCalls):
    """Sends requests to one fleet and waits for the answers; safe to share between threads, and with children of a fork.

    Every call raises ``BrokerUnavailable`` if Redis is unavailable, ``errors.Outage`` if no answer arrived within
    ``timeout_s``, or the error class of the fleet's answer.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._redis.close()
        self._close()
        self._open()

    def create_key(self, user_id: str, *, operator: bool = False, name: str = "") -> tuple[str, KeyView]:
        """Make an API key for a user. Returns its text, which is shown only here, and what is stored of it."""
        key = make_key()
        return key.text, self.store_key(key, user_id, operator=operator, name=name)

    def follow(self, video_id: str, user_id: str, *, timeout_s: float | None = None) -> Iterator[VideoStatus]:
        """Iterate over the statuses of a video: the present one, then each change, until its processing has ended.

        Raises:
            TimeoutError: it has not ended within ``timeout_s``; raised between two calls, each with its own time limit.
            Outage: the fleet did not answer at first, or for five minutes.
        """
        following = Following(video_id, user_id, timeout_s)
        self._own()
        with self._redis.pubsub() as notes:  # type: ignore[no-untyped-call]
            while not following.ended:
                while (pause_s := following.pause_s()) > 0:
                    following.hear(_next_note(notes, pause_s))
                following.look()
                try:
                    status = self.status(video_id, user_id)
                except errors.Outage as error:
                    following.missed(error)
                    continue
                if following.is_news(status):
                    yield status

    def _open(self) -> None:
        super()._open()
        retry = redis.retry.Retry(NoBackoff(), 1)
        self._redis = redis.Redis.from_url(
            self._redis_url, retry=retry, max_connections=MOST_CONNECTIONS, **TIME_LIMITS
        )
        self._room = threading.BoundedSemaphore(self.connections)

    def _ask(self, call: Call[A]) -> A:
        if self._fallback.takes(call):
            return self._fallback.answer(call)
        attempts = Attempts(self.retries, self.timeout_s, repeatable=call.repeatable)
        while True:
            try:
                with self._slot(attempts):
                    asked = call.reservation(attempts.left_s)
                    if (kept := self._kept.find(self._redis, call.task, call.kwargs)) is not None:
                        return cast("A", kept)
                    with admission.admitted(self._redis, asked):
                        return self._wait(call, self._send_call(call, asked), attempts)
            except errors.ScenefleetError as error:
                pause_s = attempts.pause_s(error)
                if pause_s is None and not self._fallback.takes(call, error):
                    raise
            if pause_s is None:
                return self._fallback.answer(call)
            time.sleep(pause_s)

    @contextmanager
    def _slot(self, attempts: Attempts) -> Iterator[None]:
        self._own()
        room = self._room
        if not room.acquire(timeout=max(0.0, attempts.left_s)):
            raise self._no_room()
        try:
            yield
        finally:
            room.release()

    def _wait(self, call: Call[A], sent: Sent, attempts: Attempts) -> A:
        lost: Exception | None = None
        while (left_s := attempts.left_s) > 0:
            step_ends_s = time.monotonic() + min(left_s, STEP_S)
            try:
                reply = next(wait_replies(self._redis, sent.reply_to, [sent.id], step_ends_s), None)
                stored = self._redis.get(sent.answer_key) if reply is None else None
            except (RedisError, OSError) as error:
                lost = error
                time.sleep(max(0.0, min(LOST_PAUSE_S, attempts.left_s)))
                continue
            lost = None
            if reply is not None or stored is not None:
                with suppress(RedisError, OSError):
                    self._redis.delete(sent.reply_to, sent.answer_key)
                if (answer := self.read(call.answer, reply, stored)) is not None:
                    return answer
        raise self.no_answer(call.task) if lost is None else broker_unavailable(lost)


class AsyncClient(_Asking, AsyncCalls):
    """``Client`` for asyncio: every call is a coroutine. A client belongs to the event loop in which it was first used."""

    _loop: asyncio.AbstractEventLoop | None
    _redis: redis.asyncio.Redis
    _threads: ThreadPoolExecutor

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; a later call opens new ones."""
        if self._loop is not None:
            await self._redis.aclose()
        self._loop = None
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._close()
        self._open()

    async def create_key(
        self, user_id: str, *, operator: bool = False, name: str = ""
    ) -> tuple[str, KeyView]:
        """Make an API key for a user. Returns its text, which is shown only here, and what is stored of it."""
        key = make_key()
        return key.text, await self.store_key(key, user_id, operator=operator, name=name)

    async def follow(
        self, video_id: str, user_id: str, *, timeout_s: float | None = None
    ) -> AsyncIterator[VideoStatus]:
        """``Client.follow`` as an asynchronous iterator."""
        following = Following(video_id, user_id, timeout_s)
        self._enter_loop()
        async with self._redis.pubsub() as notes:
            while not following.ended:
                while (pause_s := following.pause_s()) > 0:
                    following.hear(await _next_note_later(notes, pause_s))
                following.look()
                try:
                    status = await self.status(video_id, user_id)
                except errors.Outage as error:
                    following.missed(error)
                    continue
                if following.is_news(status):
                    yield status

    def _open(self) -> None:
        super()._open()
        self._loop = None
        self._threads = ThreadPoolExecutor(SENDERS, thread_name_prefix="send")

    def _enter_loop(self) -> None:
        """Open connections in the running loop; those of a loop that has ended are dropped."""
        self._own()
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise errors.InvalidRequest(
                "this AsyncClient is in use in another event loop: make one for each loop, or use Client"
            )
        self._loop = loop
        retry = redis.asyncio.retry.Retry(NoBackoff(), 1)
        self._redis = redis.asyncio.Redis.from_url(
            self._redis_url, retry=retry, max_connections=MOST_CONNECTIONS, **TIME_LIMITS
        )
        self._room = asyncio.Semaphore(self.connections)

    async def _ask(self, call: Call[A]) -> A:
        if self._fallback.takes(call):
            return await asyncio.to_thread(self._fallback.answer, call)
        self._enter_loop()
        attempts = Attempts(self.retries, self.timeout_s, repeatable=call.repeatable)
        while True:
            try:
                return await self._ask_once(call, attempts)
            except errors.ScenefleetError as error:
                pause_s = attempts.pause_s(error)
                if pause_s is None and not self._fallback.takes(call, error):
                    raise
            if pause_s is None:
                return await asyncio.to_thread(self._fallback.answer, call)
            await asyncio.sleep(pause_s)

    async def _ask_once(self, call: Call[A], attempts: Attempts) -> A:
        try:
            async with asyncio.timeout(attempts.left_s):
                await self._room.acquire()
        except TimeoutError:
            raise self._no_room() from None
        try:
            asked = call.reservation(attempts.left_s)
            if (kept := await self._kept.find_later(self._redis, call.task, call.kwargs)) is not None:
                return cast("A", kept)
            async with admission.admitted_later(self._redis, asked):
                # In the context of the caller, such as its trace.
                send = partial(copy_context().run, self._send_call, call, asked)
                sent = await asyncio.get_running_loop().run_in_executor(self._threads, send)
                return await self._wait(call, sent, attempts)
        finally:
            self._room.release()

    async def _wait(self, call: Call[A], sent: Sent, attempts: Attempts) -> A:
        lost: Exception | None = None
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        while (left_s := attempts.left_s) > 0:
            if task is not None and task.cancelling() > cancelled:
                # redis-py may lose a cancellation while it opens a connection.
                raise asyncio.CancelledError
            try:
                # Rounded up to a millisecond: 0 would wait for ever.
                found = await self._redis.blpop([sent.reply_to], timeout=max(0.001, min(left_s, STEP_S)))
                reply = None if found is None else decode_reply(found[1])
                stored = await self._redis.get(sent.answer_key) if reply is None else None
            except (RedisError, OSError) as error:
                lost = error
                await asyncio.sleep(max(0.0, min(LOST_PAUSE_S, attempts.left_s)))
                continue
            lost = None
            if reply is not None or stored is not None:
                with suppress(RedisError, OSError):
                    await self._redis.delete(sent.reply_to, sent.answer_key)
                if (answer := self.read(call.answer, reply, stored)) is not None:
                    return answer
        raise self.no_answer(call.task) if lost is None else broker_unavailable(lost)


def _next_note(notes: Any, within_s: float) -> bytes | None:
    """The next note of a change; None: none came in time, or Redis is away."""
    try:
        if not notes.subscribed:
            notes.subscribe(routing.CHANGES)
        message = notes.get_message(timeout=within_s)
    except (RedisError, OSError):
        notes.close()
        time.sleep(min(LOST_PAUSE_S, within_s))
        return None
    return message["data"] if message is not None and message["type"] == "message" else None


async def _next_note_later(notes: Any, within_s: float) -> bytes | None:
    try:
        if not notes.subscribed:
            await notes.subscribe(routing.CHANGES)
        message = await notes.get_message(timeout=within_s)
    except (RedisError, OSError):
        await notes.aclose()
        await asyncio.sleep(min(LOST_PAUSE_S, within_s))
        return None
    return message["data"] if message is not None and message["type"] == "message" else None
