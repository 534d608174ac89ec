"""Admission of online requests, in a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import redis
import redis.asyncio
from kombu import Connection

from shared.admission import HEADER, REFUSED, Limits, Reservation, admitted, admitted_later, publish_limits
from shared.errors import BrokerUnavailable, Overloaded
from tests.support.fleet import eventually
from tests.support.messages import make_message
from tests.support.services import RedisServer
from worker.app import app
from worker.online import overload

LIMITS = Limits(queue_items=100, queue_tokens=1000, user_items=60)
QUEUE = "text.online"


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        publish_limits(client, [QUEUE, "vision.online"], LIMITS)
        yield client


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the messages that a node answers with a refusal, in their order."""
    app.set_current()
    found: list[str] = []
    monkeypatch.setattr(overload, "answer_unread", lambda headers, error: found.append(headers["id"]))
    return found


def place(user: str, items: int, tokens: int = 0, hold_s: float = 60, queue: str = QUEUE) -> Reservation:
    return Reservation(queue=queue, user_id=user, items=items, tokens=tokens, hold_s=hold_s)


def counts(client: redis.Redis) -> dict[str, int]:
    return {
        name.decode(): int(value)
        for name, value in client.hgetall(f"scenefleet:admitted:{QUEUE}").items()
        if name != b"mean_s" and int(value)
    }


def test_a_user_and_a_queue_have_a_limit_whether_in_single_requests_or_in_large_ones(
    client: redis.Redis,
) -> None:
    with ExitStack() as held:
        with admitted(client, place("a", 50)):
            for _ in range(10):
                held.enter_context(admitted(client, place("a", 1)))
            with (
                pytest.raises(Overloaded, match=r"^user a has 60 items that wait: send it again in 1 s$"),
                admitted(client, place("a", 1)),
            ):
                pass
            held.enter_context(admitted(client, place("b", 40)))
            with (
                pytest.raises(Overloaded, match=r"^queue text\.online has 100 items"),
                admitted(client, place("c", 1)),
            ):
                pass
            # Another queue has limits of its own.
            held.enter_context(admitted(client, place("a", 60, queue="vision.online")))
        assert counts(client) == {"items": 50, "user:a": 10, "user:b": 40}
        held.enter_context(admitted(client, place("a", 50)))
    assert counts(client) == {}
    assert client.hgetall(REFUSED) == {b"text.online user": b"1", b"text.online items": b"1"}


def test_callers_without_a_user_have_one_limit_together(client: redis.Redis) -> None:
    with (
        admitted(client, place("", 60)),
        pytest.raises(Overloaded, match=r"^callers that name no user have 60 items that wait"),
        admitted(client, place("", 1)),
    ):
        pass


def test_tokens_count_too_and_none_are_released_as_none(client: redis.Redis) -> None:
    with (
        admitted(client, place("a", 1, 900)),
        admitted(client, place("a", 1, 0)),
        pytest.raises(Overloaded, match="has 900 tokens that wait"),
        admitted(client, place("b", 1, 101)),
    ):
        pass
    assert counts(client) == {}
    # Alone, a request of any size is admitted.
    with admitted(client, place("a", 1000, 10**6)):
        pass


def test_a_dead_callers_share_comes_free(client: redis.Redis) -> None:
    dead = admitted(client, place("a", 60, hold_s=0.3))
    dead.__enter__()

    def is_admitted() -> bool:
        try:
            with admitted(client, place("a", 60)):
                assert counts(client) == {"items": 60, "user:a": 60}
        except Overloaded:
            return False
        return True

    eventually(is_admitted, within_s=30, what="the reservation has expired", every_s=0.05)
    assert counts(client) == {}


def test_what_failed_is_released_too(client: redis.Redis, redis_server: RedisServer) -> None:
    with pytest.raises(ZeroDivisionError), admitted(client, place("a", 60)):
        raise ZeroDivisionError

    async def failing() -> None:
        async with (
            redis.asyncio.Redis.from_url(redis_server.url) as later,
            admitted_later(later, place("a", 60)),
        ):
            assert counts(client) == {"items": 60, "user:a": 60}
            with pytest.raises(Overloaded, match="user a has 60 items"):
                async with admitted_later(later, place("a", 1)):
                    pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(failing())
    assert counts(client) == {}


def test_many_callers_at_once_never_exceed_the_limit(client: redis.Redis) -> None:
    def one(number: int) -> bool:
        try:
            with admitted(client, place(f"u{number % 4}", items=10, tokens=10)):
                assert counts(client)["items"] <= LIMITS.queue_items
        except Overloaded as error:
            assert error.retry_after_s > 0
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert any(pool.map(one, range(200)))
    assert counts(client) == {}


def test_queues_without_limits_admit_all(client: redis.Redis) -> None:
    client.flushall()
    with admitted(client, place("a", 10**6)), admitted(client, place("a", 10**6)):
        assert counts(client)["items"] == 2 * 10**6


def test_a_request_has_as_many_items_as_its_longest_list() -> None:
    texts = Reservation.of("tasks.text.embed", {"texts": ["abcdefgh", "ä"], "model": None}, 30, "u1")
    assert (texts.queue, texts.user_id, texts.items, texts.tokens) == (QUEUE, "u1", 2, 3 + 2)
    pictures = {"user_id": "u2", "storage_keys": ["a", "b", "c"], "inline": []}
    assert Reservation.of("tasks.vision.embed_images", pictures, 30).items == 3
    assert Reservation.of("tasks.vision.embed_images", pictures, 30).user_id == "u2"
    search = Reservation.of("tasks.search.scenes", {"user_id": "u2", "video_ids": ["a", "b"]}, 30)
    assert (search.items, search.tokens) == (1, 0)


def test_without_redis_the_error_says_so() -> None:
    nowhere = redis.Redis(port=9)
    with pytest.raises(BrokerUnavailable, match="is REDIS_URL right"), admitted(nowhere, place("a", 1)):
        pass


def test_nodes_refuse_the_newest_requests_that_were_not_reserved_and_no_others(
    client: redis.Redis, redis_server: RedisServer, refused: list[str]
) -> None:
    # A text is no header, whatever it says.
    text = json.dumps({HEADER: "lease"})
    for number in range(5):
        for header in ({}, {f"headers.{HEADER}": "lease"}):
            made = make_message("tasks.text.embed", {"texts": [text]}, QUEUE, **header)
            made["headers"]["id"] = f"{'reserved' if header else 'bare'} {number}"
            client.lpush(QUEUE, json.dumps(made))
    with Connection(redis_server.url) as connection, connection.channel() as channel:
        look = partial(overload.refuse_newest, channel, QUEUE)
        look(Limits(queue_items=100, queue_tokens=1, user_items=8))
        assert refused == ["bare 4", "bare 3"]
        # As many as one user may have are no reason to refuse anything.
        look(Limits(queue_items=100, queue_tokens=1, user_items=8))
        assert len(refused) == 2
        # Those that are said to be reserved go when no others are left.
        look(Limits(queue_items=4, queue_tokens=1, user_items=8))
        assert refused[2:] == ["bare 2", "bare 1", "bare 0"]
        look(Limits(queue_items=4, queue_tokens=1, user_items=8))
        assert refused[5:] == ["reserved 4"]
    left = [json.loads(raw)["headers"]["id"] for raw in client.lrange(QUEUE, 0, -1)]
    assert left == [f"reserved {number}" for number in (3, 2, 1, 0)]
    assert client.llen(f"scenefleet:refused:{QUEUE}") == 0


def test_a_refusal_is_not_answered_after_its_deadline(
    client: redis.Redis, redis_server: RedisServer, refused: list[str]
) -> None:
    made = make_message("tasks.text.embed", {"texts": ["x"]}, QUEUE)
    for number, left_s in enumerate((60, -60, 60, None)):
        made["headers"]["id"] = str(number)
        made["headers"]["expires"] = left_s and (datetime.now(UTC) + timedelta(seconds=left_s)).isoformat()
        client.lpush(QUEUE, json.dumps(made))
    with Connection(redis_server.url) as connection, connection.channel() as channel:
        overload.refuse_newest(channel, QUEUE, Limits(queue_items=100, queue_tokens=1, user_items=0))
    assert refused == ["3", "2", "0"]
    assert client.llen(f"scenefleet:refused:{QUEUE}") == client.llen(QUEUE) == 0


def test_many_messages_leave_the_queue_at_once_and_are_answered_by_and_by(
    client: redis.Redis, redis_server: RedisServer, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "_REFUSING_S", 0.0001)
    made = make_message("tasks.text.embed", {"texts": ["x"]}, QUEUE)
    for number in range(1000):
        made["headers"]["id"] = str(number)
        client.lpush(QUEUE, json.dumps(made))
    limits = Limits(queue_items=100, queue_tokens=1, user_items=8)
    with Connection(redis_server.url) as connection, connection.channel() as channel:
        overload.refuse_newest(channel, QUEUE, limits)
        assert client.llen(QUEUE) == 8 and 0 < len(refused) < 992
        # Another node answers them at the moment.
        client.set(f"scenefleet:refused:{QUEUE}:node", "")
        already = len(refused)
        overload.refuse_newest(channel, QUEUE, limits)
        assert len(refused) == already
        client.delete(f"scenefleet:refused:{QUEUE}:node")
        while client.llen(f"scenefleet:refused:{QUEUE}"):
            overload.refuse_newest(channel, QUEUE, limits)
    assert refused == [str(number) for number in range(999, 7, -1)] and client.llen(QUEUE) == 8
