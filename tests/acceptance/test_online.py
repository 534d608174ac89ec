"""Online requests to a real text node: batches, identical requests, errors per item, deaths of its child, overload."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
import redis
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from shared.client import AsyncClient
from shared.errors import InvalidRequest, Overloaded, WorkerLost
from shared.routing import TEXT_EMBED, wake_up_task
from tests.support.fleet import Fleet, eventually, fleet_over
from tests.support.services import PostgresServer, RedisServer
from tests.support.wrapping import wrap_on_import

QUEUE = "text.online"
#: A text that kills the process that embeds it, and one that makes its batch fail.
POISON, BAD = "kill the process", "fail the batch"
LIMIT, USER_LIMIT = 1200, 1000


def wrap(vectors: Any) -> None:
    """Called in the node, with ``worker.online.vectors``."""
    plain = vectors.embed_once

    def embed_once(model: Any, kind: str, texts: Any, compute: Any) -> Any:
        if POISON in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if BAD in texts:
            raise RuntimeError("failed on purpose")
        return plain(model, kind, texts, compute)

    vectors.embed_once = embed_once


@pytest.fixture(scope="module")
def fleet(
    postgres: PostgresServer, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("online")
    wrap_on_import(home / "python", "worker.online.vectors", __name__, "wrap")
    with fleet_over(postgres, redis_server, home / "home") as found:
        found.start(
            "text",
            ONLINE_QUEUE_ITEMS=str(LIMIT),
            ONLINE_USER_ITEMS=str(USER_LIMIT),
            PYTHONPATH=str(home / "python"),
        )
        found.wait_ready()
        yield found


@pytest.fixture(scope="module")
def outside(fleet: Fleet) -> Celery:
    return Celery("outside", broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False)


Send = Callable[..., Any]


@pytest.fixture(scope="module")
def send(outside: Celery) -> Send:
    def send(*texts: str, expires: float | None = None, **payload: Any) -> AsyncResult[Any]:
        kwargs = {"texts": texts, **payload}
        return outside.send_task(TEXT_EMBED, kwargs=kwargs, queue=QUEUE, expires=expires)

    return send


@pytest.fixture
def queue(fleet: Fleet) -> Iterator[Any]:
    with redis.Redis.from_url(fleet.redis_url) as client:
        yield client


@contextmanager
def stopped(fleet: Fleet, queue: Any) -> Iterator[psutil.Process]:
    """The node's child sleeps: what is sent meanwhile waits. Before, every request is answered and acknowledged."""
    eventually(lambda: in_node(queue) == 0, within_s=20, what="the node is idle", every_s=0.02)
    (child,) = fleet.nodes["text"].children
    child.suspend()
    try:
        yield child
    finally:
        if child.is_running():
            child.resume()


def get(sent: AsyncResult[Any]) -> Any:
    return sent.get(timeout=240)


def batches(fleet: Fleet) -> list[int]:
    """The number of requests in each batch so far."""
    return [int(found) for found in re.findall(r"batch computed.*?requests=(\d+)", fleet.log("text"))]


def in_node(queue: Any) -> int:
    return int(queue.hlen("unacked"))


def test_requests_that_wait_are_computed_together(fleet: Fleet, send: Send, queue: Any) -> None:
    texts = [f"text number {number}" for number in range(60)]
    before = len(batches(fleet))
    with stopped(fleet, queue):
        sent = [send(text) for text in texts]
        eventually(lambda: in_node(queue) == 60, within_s=20, what="the node has all 60", every_s=0.02)
    answers = [get(one) for one in sent]
    # The first went alone, to an idle child.
    eventually(lambda: sum(batches(fleet)[before:]) >= 60, within_s=10, what="the log has them")
    assert len(batches(fleet)[before:]) <= 4
    together = np.array(fleet.client.embed_texts(texts).vectors)
    alone = np.array([answer["vectors"][0] for answer in answers])
    assert np.sum(together * alone, axis=1).min() > 0.999
    answer = answers[-1]
    assert answer["tokens"] == [5]
    assert (answer["model"], answer["dim"], answer["device"]) == ("all-minilm-l6-v2", 384, "cpu")
    assert (
        answer["node"].startswith("text@") and answer["timings"]["queued_s"] > 0 < answer["timings"]["run_s"]
    )


def test_identical_requests_are_computed_once(fleet: Fleet, send: Send) -> None:
    sent = [send("the same text") for _ in range(300)]
    answers = [get(one) for one in sent]
    assert sum(1 - answer["cached"] for answer in answers) == 1
    assert all(answer["vectors"] == answers[0]["vectors"] for answer in answers)
    many = get(send(*["another text"] * 1000))
    assert many["cached"] == 999 and len(many["vectors"]) == 1000


def test_a_busy_process_does_not_hold_up_what_is_kept(fleet: Fleet, send: Send, queue: Any) -> None:
    computed = get(send("kept for others", "and this"))
    with stopped(fleet, queue):
        kept = fleet.client.embed_texts(["and this", "kept for others"])
        assert in_node(queue) == 0
    assert np.array_equal(np.float32(kept.vectors), np.float32(computed["vectors"][::-1]))
    assert (kept.model, kept.revision, kept.dim, kept.device) == tuple(
        computed[name] for name in ("model", "revision", "dim", "device")
    )
    assert list(kept.tokens or ()) == computed["tokens"][::-1] and kept.cached == 2


def test_a_large_request_does_not_hold_up_a_single_one(fleet: Fleet, send: Send, queue: Any) -> None:
    texts = [f"{number} of a thousand texts" for number in range(1000)]
    with stopped(fleet, queue):
        large = send(*texts, encoding="base64")
        eventually(lambda: in_node(queue) == 1, within_s=20, what="the node has it", every_s=0.02)
        singles = [send(f"single {number}") for number in range(5)]
        eventually(lambda: in_node(queue) == 6, within_s=20, what="the node has them", every_s=0.02)
    for single in singles:
        get(single)
    assert not large.ready()
    answer = get(large)
    found = np.array([np.frombuffer(memoryview(_decoded(packed)), "<f4") for packed in answer["packed"]])
    assert found.shape == (1000, 384) and answer["vectors"] == []
    # In order, though the parts were computed one after another.
    some = [0, 7, 8, 500, 999]
    assert np.allclose(
        found[some], fleet.client.embed_texts([texts[place] for place in some]).vectors, atol=1e-3
    )


def _decoded(packed: str) -> bytes:
    import base64

    return base64.b64decode(packed)


def test_one_bad_item_fails_alone(fleet: Fleet, send: Send, queue: Any) -> None:
    with stopped(fleet, queue):
        held = send("held")
        eventually(lambda: in_node(queue) == 1, within_s=20, what="the child has it", every_s=0.02)
        good, wrong = send("good"), send(BAD)
        mixed = send("x", "nul \0", BAD, "y", partial=True)
        strict = send("x", "nul \0")
    assert get(held) and len(get(good)["vectors"][0]) == 384
    with pytest.raises(RuntimeError, match="failed on purpose"):
        get(wrong)
    answer = get(mixed)
    assert [vector is None for vector in answer["vectors"]] == [False, True, True, False]
    assert {place: error["class"] for place, error in answer["errors"].items()} == {
        "1": "InvalidRequest", "2": "RuntimeError"
    }  # fmt: skip
    with pytest.raises(Exception, match=r"texts\.1='nul \\x00' is not acceptable") as refusal:
        get(strict)
    assert type(refusal.value).__name__ == InvalidRequest.__name__


def test_what_has_expired_or_was_revoked_is_not_computed(
    fleet: Fleet, outside: Celery, send: Send, queue: Any
) -> None:
    before = sum(batches(fleet))
    with stopped(fleet, queue):
        held = send("held again")
        eventually(lambda: in_node(queue) == 1, within_s=20, what="the child has it", every_s=0.02)
        sent = send("too late", expires=1)
        revoked = send("not wanted")
        outside.control.revoke(revoked.id)
        # Not on time only: the message is in the node's buffer by then.
        # What had expired or was revoked when it came is gone already.
        eventually(
            lambda: queue.llen("text.online") == 0, within_s=20, what="the node has both", every_s=0.02
        )
        expired_s = time.monotonic() + 1.1
        eventually(lambda: time.monotonic() > expired_s, within_s=5, what="it has expired", every_s=0.1)
    assert get(held)
    for one in (sent, revoked):
        with pytest.raises(TaskRevokedError):
            get(one)
    get(send("the next"))
    eventually(lambda: sum(batches(fleet)) >= before + 2, within_s=10, what="the log has them")
    assert sum(batches(fleet)) == before + 2


def test_the_child_dies_and_each_request_is_answered(fleet: Fleet, send: Send, queue: Any) -> None:
    with stopped(fleet, queue) as child:
        sent = [send(f"survivor {number}", f"and its friend {number}") for number in range(20)]
        eventually(lambda: in_node(queue) == 20, within_s=20, what="the node has them", every_s=0.02)
        child.kill()
    assert [len(get(one)["vectors"]) for one in sent] == [2] * 20
    fleet.wait_ready()


def test_a_request_that_kills_its_process_fails_alone(fleet: Fleet, send: Send, queue: Any) -> None:
    with stopped(fleet, queue):
        held = send("first")
        eventually(lambda: in_node(queue) == 1, within_s=20, what="the child has it", every_s=0.02)
        sent = [send(text) for text in ("before", POISON, "after")]
        eventually(lambda: in_node(queue) == 4, within_s=20, what="the node has them", every_s=0.02)
    get(held)
    assert all(get(sent[place])["vectors"] for place in (0, 2))
    with pytest.raises(Exception, match="crashed, twice") as failure:
        get(sent[1])
    assert type(failure.value).__name__ == WorkerLost.__name__
    fleet.wait_ready()
    eventually(lambda: in_node(queue) == 0, within_s=10, what="every message is acknowledged")


def test_a_full_node_and_a_full_queue_refuse_the_newest(fleet: Fleet, send: Send, queue: Any) -> None:
    with stopped(fleet, queue):
        held = send("the first of all")
        eventually(lambda: in_node(queue) == 1, within_s=20, what="the child has it", every_s=0.02)
        # Few different texts, so that little is to be computed.
        large = [send(*[f"{number} {place % 9}" for place in range(450)]) for number in range(3)]
        with pytest.raises(Exception, match=r"send it again in 2 s$") as refusal:
            get(large[2])
        assert type(refusal.value).__name__ == Overloaded.__name__
        singles = [send(f"one of many {number % 9}") for number in range(USER_LIMIT + 300)]
        with pytest.raises(Exception, match=rf"queue {re.escape(QUEUE)} has {USER_LIMIT} requests that wait"):
            get(singles[-1])
        eventually(lambda: queue.llen(QUEUE) <= USER_LIMIT, within_s=20, what="the queue is within its limit")
        refused = f"scenefleet:refused:{QUEUE}"
        eventually(lambda: queue.llen(refused) == 0, within_s=20, what="all of them are answered")
    assert get(held) and all(len(get(one)["vectors"]) == 450 for one in large[:2])
    # Not by Celery's handles, which take a second for each answer that they did not hear of.
    keys = [f"celery-task-meta-{one.id}" for one in singles]
    eventually(lambda: None not in queue.mget(keys), within_s=60, what="each single one is answered")
    answers = [json.loads(answer) for answer in queue.mget(keys)]
    failed = [answer["status"] == "FAILURE" for answer in answers]
    assert failed[0] is False and failed[-1] is True and sum(failed) < 301
    assert {answer["result"]["exc_type"] for answer in answers if answer["status"] == "FAILURE"} == {
        "Overloaded"
    }


def test_a_user_who_floods_is_refused_and_no_other(fleet: Fleet, queue: Any) -> None:
    ended: list[str] = []

    async def embed(client: AsyncClient, user: str, *texts: str) -> Any:
        try:
            found = await client.embed_texts(texts, user_id=user)
        except Overloaded as refusal:
            return refusal
        ended.append(user)
        return found.vectors

    async def flood() -> None:
        async with AsyncClient(fleet.redis_url, retries=0, connections=300, timeout_s=120) as client:
            with stopped(fleet, queue):
                large = [asyncio.create_task(embed(client, "a", *["the same"] * 400)) for _ in range(2)]
                # They have their place before the others ask for one.
                while queue.zcard(f"scenefleet:admitted:{QUEUE}:expiry") < 2:
                    await asyncio.sleep(0.02)
                singles = [asyncio.create_task(embed(client, "a", "the same")) for _ in range(240)]
                # The refusals come at once, the answers later.
                refused, answers = await asyncio.wait(
                    singles, timeout=60, return_when=asyncio.FIRST_COMPLETED
                )
                while len(refused) < 40:
                    more, answers = await asyncio.wait(
                        answers, timeout=60, return_when=asyncio.FIRST_COMPLETED
                    )
                    assert more
                    refused |= more
                assert all(one.result().retry_after_s > 0 for one in refused)
                assert f"user a has {USER_LIMIT} items that wait" in str(next(iter(refused)).result())
                many = await embed(client, "a", *["the same"] * 50)
                assert isinstance(many, Overloaded)
                other = [asyncio.create_task(embed(client, "b", *texts)) for texts in ("x", "xyz")]
                # With the user's own, and those of callers that name no user, there is room for both.
                await asyncio.sleep(0)
            assert [len(vectors) for vectors in await asyncio.gather(*other)] == [1, 3]
            answered = await asyncio.gather(*large, *answers)
            assert [len(vectors) for vectors in answered] == [400, 400, *[1] * 200]
            assert len(await embed(client, "a", "again")) == 1

    asyncio.run(flood())
    assert ended.count("a") == 203 and ended.count("b") == 2
    assert queue.zcard(f"scenefleet:admitted:{QUEUE}:expiry") == 0


def test_after_a_lost_connection_requests_and_jobs_are_taken_again(
    fleet: Fleet, outside: Celery, send: Send, queue: Any
) -> None:
    queue.client_kill_filter(_type="normal")
    assert get(send("after the cut"))["vectors"]
    outside.send_task(wake_up_task("text"), queue="text")
    eventually(lambda: queue.llen("text") == 0 and in_node(queue) == 0, within_s=30, what="a job was taken")
    assert "Traceback" not in json.dumps(fleet.log("text")[-2000:])
