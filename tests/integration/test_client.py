"""The clients over a real Redis. A thread takes the fleet's place, so that it answers, and fails, as a test says."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import redis as redis_py

from shared import client as client_module, following, routing
from shared.client import AsyncClient, Client
from shared.contracts import TextVectors
from shared.errors import (
    BrokerUnavailable,
    InvalidRequest,
    ModelFailure,
    NotFound,
    Outage,
    StorageUnavailable,
)
from shared.replies import Reply, push_reply
from tests.support.services import RedisServer
from tests.support.threads import at_once

USER = "u1"
#: What a task does with a message: its answer, an error, or None for no reply.
Act = Callable[[dict[str, Any]], Any]


class Fleet:
    """Takes every request of one queue and replies."""

    def __init__(self, url: str, act: Act, queue: str = routing.REQUESTS) -> None:
        self.url, self.act, self.queue = url, act, queue
        self.messages: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with redis_py.Redis.from_url(self.url, socket_timeout=5, client_name="fleet") as redis:
            while not self._stop.is_set():
                # Redis may be restarted by the test.
                with suppress(redis_py.RedisError):
                    if (taken := redis.brpop([self.queue], timeout=0.2)) is not None:
                        self._answer(redis, json.loads(taken[1]))

    def _answer(self, redis: redis_py.Redis, message: dict[str, Any]) -> None:
        message["kwargs"] = json.loads(base64.b64decode(message["body"]))[1]
        self.messages.append(message)
        task_id = message["headers"]["id"]
        answer = self.act(message)
        if isinstance(answer, Exception):
            reply = Reply(id=task_id, error_class=type(answer).__name__, message=str(answer))
        elif answer is None:
            return
        else:
            reply = Reply(id=task_id, result=answer)
        push_reply(redis, message["properties"]["reply_to"], reply)


def video(state: str = "indexed", **fields: Any) -> dict[str, Any]:
    return {
        "video_id": "v1", "user_id": USER, "storage_key": "k", "state": state, "run": 1, "published_run": None,
        "duration_s": None, "scenes": 0, "error_class": None, "error": None,
        "created_at": datetime.now(UTC).isoformat(), "indexed_at": None, "stages": [], **fields,
    }  # fmt: skip


STATUS = video()


def answers(*found: Any) -> Act:
    """One answer after another, then the last one again."""
    left = list(found)
    return lambda message: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def url(redis_server: RedisServer) -> Iterator[str]:
    with redis_py.Redis.from_url(redis_server.url) as redis:
        redis.flushall()
        yield redis_server.url


@pytest.fixture
def redis(url: str) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(url) as found:
        yield found


def calls_of(redis: redis_py.Redis, *commands: str) -> int:
    """How often Redis was asked to run any of these."""
    counts = redis.info("commandstats")
    return sum(counts.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in commands)


async def asked(url: str, **options: Any) -> Any:
    async with AsyncClient(url, **options) as client:
        return await client.status("v1", USER)


def ask(kind: type, url: str, **options: Any) -> Any:
    """The status of v1 by one of the two clients."""
    if kind is AsyncClient:
        return asyncio.run(asked(url, **options))
    with Client(url, **options) as client:
        return client.status("v1", USER)


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
def test_a_slow_answer_costs_one_blocking_read(kind: type, url: str, redis: redis_py.Redis) -> None:
    def slow(message: dict[str, Any]) -> Any:
        threading.Event().wait(0.5)
        return STATUS

    with Fleet(url, slow):
        redis.config_resetstat()
        assert ask(kind, url).state == "indexed"
    assert (calls_of(redis, "get"), calls_of(redis, "blpop"), calls_of(redis, "subscribe")) == (0, 1, 0)
    assert not redis.keys("scenefleet:reply:*")


@both
def test_an_answer_before_the_wait_is_not_missed(
    kind: type, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    send = Client._send_call

    def wait_first(self: Any, *args: Any) -> Any:
        sent = send(self, *args)
        with redis_py.Redis.from_url(url) as watch:
            while not watch.exists(sent.reply_to):
                answered.wait(0.01)
        return sent

    monkeypatch.setattr(client_module._Asking, "_send_call", wait_first)
    with Fleet(url, answers(STATUS)):
        assert ask(kind, url).video_id == "v1"


@both
def test_the_error_of_the_answer_is_raised(kind: type, url: str) -> None:
    with (
        Fleet(url, answers(NotFound("this user has no video 'v1'"))) as fleet,
        pytest.raises(NotFound, match="no video 'v1'"),
    ):
        ask(kind, url)
    assert len(fleet.messages) == 1


@both
def test_an_outage_is_retried(kind: type, url: str) -> None:
    with Fleet(url, answers(StorageUnavailable("full"), StorageUnavailable("full"), STATUS)) as fleet:
        assert ask(kind, url).state == "indexed"
        assert len(fleet.messages) == 3
        with pytest.raises(StorageUnavailable):
            fleet.act = answers(StorageUnavailable("full"))
            ask(kind, url, retries=1)
    assert len(fleet.messages) == 5
    # Not every error that a retry may help is harmless to send again at once.
    with Fleet(url, answers(ModelFailure("no"))) as fleet, pytest.raises(ModelFailure):
        ask(kind, url)
    assert len(fleet.messages) == 1


@both
def test_no_answer_is_an_outage_and_the_message_expires(kind: type, url: str) -> None:
    with Fleet(url, answers(None)) as fleet:
        began = datetime.now(UTC)
        with pytest.raises(
            Outage, match=r"no answer to tasks.video.status in 0.3 s: is a `search` node running"
        ):
            ask(kind, url, timeout_s=0.3)
    (message,) = fleet.messages
    expires = datetime.fromisoformat(message["headers"]["expires"])
    assert 0 < (expires - began).total_seconds() < 1


@both
def test_a_lost_connection_does_not_lose_the_answer(kind: type, url: str, redis: redis_py.Redis) -> None:
    """It is killed as it waits."""

    def kill(message: dict[str, Any]) -> Any:
        key = message["properties"]["reply_to"]
        while not any(client["cmd"] == "blpop" for client in redis.client_list()):
            assert key
        for client in redis.client_list():
            if client["cmd"] == "blpop":
                redis.client_kill_filter(_id=client["id"])
        return STATUS

    with Fleet(url, kill) as fleet:
        assert ask(kind, url, timeout_s=10).state == "indexed"
    assert len(fleet.messages) == 1


@both
def test_a_reply_lost_on_its_way_is_read_from_the_store(
    kind: type, url: str, redis: redis_py.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STEP_S", 0.2)

    def store_only(message: dict[str, Any]) -> None:
        task_id = message["headers"]["id"]
        meta = {"status": "SUCCESS", "result": STATUS, "traceback": None, "children": [], "task_id": task_id}
        redis.set(f"celery-task-meta-{task_id}", json.dumps(meta))

    with Fleet(url, store_only):
        assert ask(kind, url, timeout_s=10).state == "indexed"
    assert not redis.keys("celery-task-meta-*")


@both
def test_redis_that_stays_away_is_said(kind: type, tmp_path: Any) -> None:
    server = RedisServer(tmp_path)
    server.start()

    def stop(message: dict[str, Any]) -> None:
        threading.Thread(target=server.stop).start()

    try:
        with Fleet(server.url, stop), pytest.raises(BrokerUnavailable, match="Redis does not answer"):
            ask(kind, server.url, timeout_s=1)
    finally:
        server.stop()


def test_threads_share_a_client(url: str, redis: redis_py.Redis) -> None:
    def echo(message: dict[str, Any]) -> Any:
        return video(video_id=message["kwargs"]["video_id"])

    def waiting() -> set[str]:
        return {one["id"] for one in redis.client_list() if one["cmd"] in ("blpop", "del", "get")}

    # Of other tests.
    before = waiting()
    with Fleet(url, echo), Client(url, connections=8) as client:
        names = [f"v{n}" for n in range(50)]
        found = at_once([lambda name=name: client.status(name, USER) for name in names])
        own = waiting() - before
    assert [status.video_id for status in found] == names
    assert len(own) <= 8


def test_coroutines_share_a_client(url: str) -> None:
    def echo(message: dict[str, Any]) -> Any:
        return video(video_id=message["kwargs"]["video_id"])

    async def many() -> list[Any]:
        async with AsyncClient(url, connections=8) as client:
            return await asyncio.gather(*(client.status(f"v{n}", USER) for n in range(50)))

    with Fleet(url, echo):
        assert [status.video_id for status in asyncio.run(many())] == [f"v{n}" for n in range(50)]


@both
def test_a_call_without_room_says_so(kind: type, url: str) -> None:
    async def two() -> None:
        async with AsyncClient(url, connections=1, timeout_s=0.3, retries=0) as client:
            done = await asyncio.gather(*(client.status("v", USER) for _ in range(2)), return_exceptions=True)
            assert sorted(str(error)[:9] for error in done) == ["1 calls o", "no answer"]

    if kind is AsyncClient:
        asyncio.run(two())
        return
    with Client(url, connections=1, timeout_s=0.3, retries=0) as client:

        def outcome() -> str:
            with pytest.raises(Outage) as raised:
                client.status("v", USER)
            return str(raised.value)[:9]

        assert sorted(at_once([outcome, outcome])) == ["1 calls o", "no answer"]


def test_a_closed_client_holds_no_connection_and_disturbs_no_other(url: str, redis: redis_py.Redis) -> None:
    def connections() -> int:
        return sum(1 for one in redis.client_list() if one["name"] != "fleet")

    with Fleet(url, answers(STATUS)), Client(url) as other:
        assert other.status("v1", USER).state == "indexed"
        before = connections()
        client = Client(url)
        assert client.status("v1", USER).state == "indexed"
        assert connections() > before
        client.close()
        deadline_s = time.monotonic() + 5
        while connections() > before:
            assert time.monotonic() < deadline_s
        assert client.status("v1", USER).state == other.status("v1", USER).state == "indexed"
        client.close()


def test_a_client_works_in_a_child(url: str) -> None:
    """As behind a server that loads the application and then forks, without telling Celery."""
    with Fleet(url, answers(STATUS)), Client(url, timeout_s=10) as client:
        assert client.status("v1", USER).state == "indexed"
        child = os.fork()
        if child == 0:
            # Not the test's own end: that one stops servers.
            os._exit(0 if client.status("v1", USER).state == "indexed" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.status("v1", USER).state == "indexed"


def test_a_cancelled_call_frees_its_place(url: str) -> None:
    async def cancelled() -> Any:
        async with AsyncClient(url, connections=1, timeout_s=10) as client:
            asking = asyncio.create_task(client.status("v1", USER))
            while not fleet.messages:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            fleet.act = answers(STATUS)
            return await client.status("v1", USER)

    with Fleet(url, answers(None)) as fleet:
        assert asyncio.run(cancelled()).state == "indexed"


def test_an_async_client_serves_one_loop_after_another(url: str) -> None:
    client = AsyncClient(url, timeout_s=10)

    async def status() -> Any:
        return await client.status("v1", USER)

    async def from_another_loop() -> None:
        await client.status("v1", USER)
        with pytest.raises(InvalidRequest, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(status()))
        await client.aclose()

    with Fleet(url, answers(STATUS)):
        assert asyncio.run(status()).state == asyncio.run(status()).state == "indexed"
        asyncio.run(from_another_loop())


# --- follow


def followed(kind: type, url: str, **options: Any) -> list[str]:
    """The states that a follower of v1 sees."""

    async def later() -> list[str]:
        async with AsyncClient(url) as client:
            return [status.state async for status in client.follow("v1", USER, **options)]

    if kind is AsyncClient:
        return asyncio.run(later())
    with Client(url) as client:
        return [status.state for status in client.follow("v1", USER, **options)]


@both
def test_a_note_shows_the_next_state_at_once(
    kind: type, url: str, redis: redis_py.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "POLL_S", 60.0)
    states = iter(["uploaded", "processing", "processing", "indexed"])

    def publish() -> None:
        # A note before the subscription would be lost, and the test's time with it.
        while not redis.publish(routing.CHANGES, json.dumps({"user_id": "another", "video": "7"})):
            time.sleep(0.01)
        for note in ("no JSON", "[1]", json.dumps({"user_id": USER, "video": "7"})):
            redis.publish(routing.CHANGES, note)

    def next_state(message: dict[str, Any]) -> Any:
        threading.Thread(target=publish).start()
        return video(next(states), created_at="2026-01-01T00:00:00Z")

    with Fleet(url, next_state) as fleet:
        assert followed(kind, url, timeout_s=30) == ["uploaded", "processing", "indexed"]
    assert len(fleet.messages) == 4


@both
def test_an_end_is_seen_without_any_note(
    kind: type, url: str, redis: redis_py.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of Redis is lost, and the fleet is away for a while."""
    monkeypatch.setattr(following, "POLL_S", 0.1)
    told = iter(
        ["processing", StorageUnavailable("full"), StorageUnavailable("full"), StorageUnavailable("full")]
    )

    def act(message: dict[str, Any]) -> Any:
        said = next(told, "failed")
        redis.flushall()
        redis.client_kill_filter(_type="pubsub")
        return said if isinstance(said, Exception) else video(said)

    with Fleet(url, act):
        assert followed(kind, url, timeout_s=30) == ["processing", "failed"]


@both
def test_following_has_a_time_limit(kind: type, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.1)
    with (
        Fleet(url, answers(video("processing"))),
        pytest.raises(TimeoutError, match=r"video 'v1' is processing after 0.5 s: follow it again"),
    ):
        followed(kind, url, timeout_s=0.5)


@both
def test_a_video_that_does_not_exist_is_not_followed(kind: type, url: str) -> None:
    with Fleet(url, answers(NotFound("no video"))), pytest.raises(NotFound):
        followed(kind, url)


# --- fallback


class LocalModel:
    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, texts: Any) -> TextVectors:
        self.asked.append(tuple(texts))
        return TextVectors(model="local:m", revision="local", dim=2, vectors=((1.0, 0.0),) * len(texts))


@both
def test_a_local_model_answers_while_the_fleet_is_away(kind: type, url: str) -> None:
    local = LocalModel()

    def embed(client: Any, *args: Any, **options: Any) -> Any:
        found = client.embed_texts(*args, **options)
        return loop.run_until_complete(found) if kind is AsyncClient else found

    loop = asyncio.new_event_loop()
    client = kind(url, timeout_s=0.3, fallback=local)
    found = embed(client, ["a", "b"])
    assert (found.model, len(found.vectors), found.lexical) == ("local:m", 2, None)
    # The next one does not wait for the fleet.
    began_s = time.monotonic()
    embed(client, ["c"], lexical=True)
    assert time.monotonic() - began_s < 0.25 and local.asked == [("a", "b"), ("c",)]
    # Vectors of another model than the one asked for would be compared with the wrong ones.
    with pytest.raises(Outage, match="'local:m', not 'bge-m3'"):
        embed(client, ["d"], model="bge-m3")
    with pytest.raises(InvalidRequest, match="texts"):
        embed(client, [7])
    closed = client.aclose() if kind is AsyncClient else client.close()
    if kind is AsyncClient:
        loop.run_until_complete(closed)
    loop.close()


def test_a_fleet_that_answers_is_preferred(url: str) -> None:
    local = LocalModel()
    vectors = {"model": "bge-m3", "revision": "r", "dim": 1, "vectors": [[1.0]], "lexical": None}
    with Fleet(url, answers(vectors), queue="text.online") as fleet, Client(url, fallback=local) as client:
        assert client.embed_texts(["a"]).model == "bge-m3"
        fleet.act = answers(InvalidRequest("no"))
        with pytest.raises(InvalidRequest):
            client.embed_texts(["a"])
    assert local.asked == []


def test_only_texts_have_a_fallback(url: str) -> None:
    local = LocalModel()
    with Client(url, timeout_s=0.2, fallback=local) as client, pytest.raises(Outage):
        client.status("v1", USER)
    assert local.asked == []
