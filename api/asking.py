"""Asks the fleet from asyncio: sends a task, and waits for its answer without holding a thread.

The process has one reply list (shared/replies.py), and one task reads it. An answer that was lost with its connection is found
where Celery stores it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.problems import BadRequest
from shared.admission import PART_OF_ANOTHER, Reservation, admitted_later
from shared.client import LOST_PAUSE_S, Client
from shared.contracts import UnpackedVectors
from shared.contracts.base import Contract, parse
from shared.errors import BrokerUnavailable
from shared.kept_vectors import KeptVectors
from shared.replies import Reply, decode_reply, new_reply_key

R = TypeVar("R", bound=BaseModel)
log = logging.getLogger(__name__)

SENDERS = 8
#: Time limits for which the place of a request in parts is held: they are sent one after another.
PARTS_WAIT = 10
#: First and longest pause between two looks at the key of an answer that was not in the reply list, seconds.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
#: Name of the connection that reads answers, in Redis's list of clients.
READER = "scenefleet-api-answers"
#: Longest single wait on the reply list, seconds; less than the time limit of its connection.
WAIT_S = 2.0


class Asking:
    """Sends requests to the fleet and waits for their answers. One per process; ``for_request`` is one of a request."""

    def __init__(
        self, redis: Redis, redis_url: str, *, broker_url: str = "", timeout_s: float = 30.0
    ) -> None:
        self.client = Client(redis_url, broker_url=broker_url, timeout_s=timeout_s)
        self._answers = Answers(redis, redis_url)
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="send")
        self._redis = redis
        self._gone: Callable[[], Awaitable[bool]] | None = None
        self._kept = KeptVectors()
        self._is_admitted = False

    def for_request(self, request: Request) -> Asking:
        """The same, but it stops waiting when the client of the request has gone."""
        found = object.__new__(Asking)
        found.__dict__.update(self.__dict__)
        found._gone = request.is_disconnected
        return found

    def waiting(self, timeout_s: float) -> Asking:
        """The same, but it waits so long for an answer."""
        found = object.__new__(Asking)
        found.__dict__.update(self.__dict__)
        found.client = copy.copy(self.client)
        found.client.timeout_s = timeout_s
        return found

    @contextlib.asynccontextmanager
    async def admitted(self, task: str, kwargs: dict[str, Any], user_id: str) -> AsyncIterator[Asking]:
        """The same for the parts of one request of a user, which together have the place of ``kwargs`` in the queue of ``task``.

        Raises:
            Overloaded: the queue or the user has too much that waits.
            BrokerUnavailable: Redis is unavailable.
        """
        found = object.__new__(Asking)
        found.__dict__.update(self.__dict__)
        found._is_admitted = True
        async with admitted_later(
            self._redis, Reservation.of(task, kwargs, self.client.timeout_s * PARTS_WAIT, user_id)
        ):
            yield found

    async def start(self) -> None:
        self._answers.start()

    async def close(self) -> None:
        await self._answers.close()
        self._senders.shutdown(wait=False, cancel_futures=True)

    async def ask(self, task: str, contract: type[Contract], kwargs: dict[str, Any], answer: type[R]) -> R:
        """Send a request and return its answer.

        Raises:
            InvalidRequest: the request is not what ``contract`` says; nothing was sent.
            Overloaded: the queue or the user has too much that waits; nothing was sent.
            BrokerUnavailable: Redis is unavailable.
            Outage: no answer came in time; sending again is harmless.
            ScenefleetError: the error of the answer.
        """
        if self._is_admitted:
            return await self._ask(task, contract, kwargs, answer, PART_OF_ANOTHER)
        asked = Reservation.of(task, kwargs, self.client.timeout_s)
        async with admitted_later(self._redis, asked):
            return await self._ask(task, contract, kwargs, answer, asked.lease)

    async def embed(self, task: str, contract: type[Contract], kwargs: dict[str, Any]) -> UnpackedVectors:
        """``ask`` for vectors of texts; without a queue if all of them are kept."""
        parse(contract, kwargs)
        kept = await self._kept.find_later(self._redis, task, kwargs)
        return kept or await self.ask(task, contract, kwargs, UnpackedVectors)

    async def _ask(
        self, task: str, contract: type[Contract], kwargs: dict[str, Any], answer: type[R], lease: str
    ) -> R:
        loop = asyncio.get_running_loop()
        task_id = str(uuid.uuid4())
        key = self.client.answer_key(task_id)
        async with self._answers.expected(task_id, key) as replies:
            # In the trace of the request, which a thread does not inherit.
            context = contextvars.copy_context()
            send = partial(self.client.send, task, contract, kwargs, task_id=task_id, lease=lease,
                           reply_to=self._answers.reply_to)  # fmt: skip
            await loop.run_in_executor(self._senders, context.run, send)
            deadline = loop.time() + self.client.timeout_s
            pause_s = FIRST_LOOK_S
            while True:
                reply, stored = await self._answers.take(key, replies, pause_s)
                if (found := self.client.read(answer, reply, stored)) is not None:
                    return found
                if loop.time() > deadline:
                    raise self.client.no_answer(task)
                if self._gone is not None and await self._gone():
                    raise BadRequest("the client has gone")
                pause_s = min(LONGEST_LOOK_S, pause_s * 2)


class Answers:
    """Reads the answers of tasks from one reply list, on a connection that nothing else uses."""

    def __init__(self, redis: Redis, redis_url: str) -> None:
        #: The reply list.
        self.reply_to = new_reply_key()
        self._redis = redis
        self._reader = Redis.from_url(
            redis_url, client_name=READER, socket_connect_timeout=3, socket_timeout=2 * WAIT_S
        )
        self._expected: dict[str, asyncio.Queue[Reply]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._later(self._read())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.aclose()

    @contextlib.asynccontextmanager
    async def expected(self, task_id: str, key: str) -> AsyncIterator[asyncio.Queue[Reply]]:
        """Hand out what is replied for a task during the block; afterwards the stored answer is removed from Redis."""
        replies: asyncio.Queue[Reply] = asyncio.Queue()
        self._expected[task_id] = replies
        try:
            yield replies
        finally:
            del self._expected[task_id]
            self._later(self._forget(key))

    async def take(
        self, key: str, replies: asyncio.Queue[Reply], within_s: float
    ) -> tuple[Reply | None, bytes | None]:
        """What is replied within this time, else what is stored; None: nothing."""
        try:
            return await asyncio.wait_for(replies.get(), within_s), None
        except TimeoutError:
            pass
        try:
            stored = await self._redis.get(key)
        except (RedisError, OSError) as error:
            raise BrokerUnavailable(f"Redis does not answer ({error}): is it running?") from error
        return None, cast("bytes | None", stored)

    async def _read(self) -> None:
        """Read answers for as long as the process runs, over every loss of Redis."""
        task = asyncio.current_task()
        # redis-py may lose a cancellation while it opens a connection.
        while task is not None and not task.cancelling():
            try:
                found = await self._reader.blpop([self.reply_to], timeout=WAIT_S)
                reply = None if found is None else decode_reply(found[1])
                if reply is not None and reply.id in self._expected:
                    self._expected[reply.id].put_nowait(reply)
                continue
            except (RedisError, OSError) as error:
                log.warning("no answers are read: Redis does not answer (%s)", type(error).__name__)
            except Exception:
                # Without this task every answer of the process would be late.
                log.exception("no answers are read")
            await asyncio.sleep(LOST_PAUSE_S)

    async def _forget(self, key: str) -> None:
        with contextlib.suppress(RedisError, OSError):
            await self._redis.delete(key)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the requests."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def asking(request: Request) -> Asking:
    """The dependency of routes that ask the fleet."""
    found: Asking = request.app.state.asking
    return found.for_request(request)
