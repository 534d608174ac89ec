"""Asks the fleet from asyncio: sends a task, and waits for its answer without holding a thread.

Celery's store of answers publishes each one under the key it stores it. One subscription per process hears them all;
an answer that it missed (Redis was away for a moment) is found by looking at the key.
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
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from api.problems import BadRequest
from shared.admission import PART_OF_ANOTHER, Reservation, admitted_later
from shared.client import Client
from shared.contracts.base import Contract
from shared.errors import BrokerUnavailable

R = TypeVar("R", bound=BaseModel)
log = logging.getLogger(__name__)

SENDERS = 8
#: Time limits for which the place of a request in parts is held: they are sent one after another.
PARTS_WAIT = 10
#: First and longest pause between two looks at the key of an answer that was not published, seconds.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0


class Asking:
    """Sends requests to the fleet and waits for their answers. One per process; ``for_request`` is one of a request."""

    def __init__(
        self, redis: Redis, redis_url: str, *, broker_url: str = "", timeout_s: float = 30.0
    ) -> None:
        self.client = Client(redis_url, broker_url=broker_url, timeout_s=timeout_s)
        # A subscription is silent while no request waits: no time limit on its connection.
        self._answers = Answers(
            redis, Redis.from_url(redis_url, socket_connect_timeout=3, socket_timeout=None)
        )
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="send")
        self._redis = redis
        self._gone: Callable[[], Awaitable[bool]] | None = None
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

    async def _ask(
        self, task: str, contract: type[Contract], kwargs: dict[str, Any], answer: type[R], lease: str
    ) -> R:
        loop = asyncio.get_running_loop()
        task_id = str(uuid.uuid4())
        key = self.client.answer_key(task_id)
        async with self._answers.expected(key) as published:
            # In the trace of the request, which a thread does not inherit.
            context = contextvars.copy_context()
            send = partial(self.client.send, task, contract, kwargs, task_id=task_id, lease=lease)
            await loop.run_in_executor(self._senders, context.run, send)
            deadline = loop.time() + self.client.timeout_s
            pause_s = FIRST_LOOK_S
            while True:
                stored = await self._answers.take(key, published, pause_s)
                found = self.client.decode(stored, answer) if stored is not None else None
                if found is not None:
                    return found
                if loop.time() > deadline:
                    raise self.client.no_answer(task)
                if self._gone is not None and await self._gone():
                    raise BadRequest("the client has gone")
                pause_s = min(LONGEST_LOOK_S, pause_s * 2)


class Answers:
    """Hears the answers of tasks on one connection to Redis."""

    def __init__(self, redis: Redis, subscribing: Redis) -> None:
        self._redis, self._subscribing = redis, subscribing
        self._expected: dict[str, asyncio.Queue[bytes]] = {}
        self._pubsub: PubSub | None = None
        self._own = f"scenefleet:api:{uuid.uuid4()}"
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._later(self._listen())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._subscribing.aclose()

    @contextlib.asynccontextmanager
    async def expected(self, key: str) -> AsyncIterator[asyncio.Queue[bytes]]:
        """Hear what is published under ``key`` during the block; afterwards the answer is removed from Redis."""
        published: asyncio.Queue[bytes] = asyncio.Queue()
        self._expected[key] = published
        try:
            if self._pubsub is not None:
                with contextlib.suppress(RedisError, OSError):
                    await self._pubsub.subscribe(key)
            yield published
        finally:
            del self._expected[key]
            self._later(self._forget(key))

    async def take(self, key: str, published: asyncio.Queue[bytes], within_s: float) -> bytes | None:
        """What is published within this time, else what is stored; None: nothing."""
        try:
            return await asyncio.wait_for(published.get(), within_s)
        except TimeoutError:
            pass
        try:
            stored = await self._redis.get(key)
        except (RedisError, OSError) as error:
            raise BrokerUnavailable(f"Redis does not answer ({error}): is it running?") from error
        return cast("bytes | None", stored)

    async def _listen(self) -> None:
        """Hear answers for as long as the process runs, over every loss of Redis."""
        while True:
            try:
                async with self._subscribing.pubsub() as pubsub:
                    await pubsub.subscribe(self._own, *self._expected)
                    self._pubsub = pubsub
                    async for message in pubsub.listen():
                        channel = message["channel"].decode()
                        if message["type"] == "message" and channel in self._expected:
                            self._expected[channel].put_nowait(message["data"])
            except (RedisError, OSError) as error:
                log.warning("no answers are heard: Redis does not answer (%s)", type(error).__name__)
            self._pubsub = None
            await asyncio.sleep(0.5)

    async def _forget(self, key: str) -> None:
        with contextlib.suppress(RedisError, OSError):
            if self._pubsub is not None:
                await self._pubsub.unsubscribe(key)
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
