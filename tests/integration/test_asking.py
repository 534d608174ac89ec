"""How the API waits for answers, in a real Redis."""

from __future__ import annotations

import asyncio
import random
import time

import redis
import redis.asyncio

from api.asking import READER, Answers
from shared.replies import Reply, push_reply
from tests.support.services import RedisServer

ASKED = 300


def test_answers_arrive_while_their_connection_is_lost_again_and_again(redis_server: RedisServer) -> None:
    """With a shared subscription, requests that came while it was lost failed, and later ones were never heard."""
    asyncio.run(_ask_and_lose(redis_server.url))


async def _ask_and_lose(url: str) -> None:
    store = redis.asyncio.Redis.from_url(url)
    answers = Answers(store, url)
    answers.start()

    def answer(key: str, task_id: str) -> None:
        with redis.Redis.from_url(url) as client:
            client.set(key, task_id)
            push_reply(client, answers.reply_to, Reply(id=task_id, result=task_id))

    async def ask(number: int) -> None:
        await asyncio.sleep(random.random() * 3)
        key, task_id = f"answer {number}", str(number)
        async with answers.expected(task_id, key) as replies:
            await asyncio.to_thread(answer, key, task_id)
            reply, stored = await answers.take(key, replies, 1)
            assert stored == task_id.encode() if reply is None else reply.result == task_id

    lost = 0

    async def lose() -> None:
        nonlocal lost
        while True:
            await asyncio.sleep(0.1)
            for client in await store.client_list():
                if client["name"] == READER:
                    lost += await store.client_kill_filter(_id=client["id"])

    losing = asyncio.create_task(lose())
    await asyncio.gather(*(ask(number) for number in range(ASKED)))
    losing.cancel()
    assert lost > 2
    # It goes on: the last answer comes from the list.
    async with answers.expected("last", "nothing") as replies:
        await asyncio.to_thread(answer, "last answer", "last")
        began = time.monotonic()
        reply, _ = await answers.take("nothing", replies, 20)
        assert reply is not None and reply.result == "last" and time.monotonic() - began < 20
    await answers.close()
    assert not await store.exists(*(f"answer {number}" for number in range(ASKED)))
    await store.aclose()
