"""Admission of online requests, in a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from shared.admission import Admission, Limits, Reservation
from shared.errors import BrokerUnavailable, Overloaded
from tests.support.fleet import eventually
from tests.support.services import RedisServer

LIMITS = Limits(queue_items=100, queue_tokens=1000, user_items=60)
QUEUE = "text.online"


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def admission(client: redis.Redis) -> Admission:
    return Admission(client, LIMITS)


def reserve(
    admission: Admission, user: str, items: int, tokens: int = 0, hold_s: float = 60, queue: str = QUEUE
) -> Reservation:
    return admission.reserve(queue, user, items=items, tokens=tokens, hold_s=hold_s)


def counts(client: redis.Redis) -> dict[str, int]:
    return {
        name.decode(): int(value)
        for name, value in client.hgetall(f"scenefleet:admitted:{QUEUE}").items()
        if name != b"mean_s" and int(value)
    }


def test_a_user_and_a_queue_have_a_limit_whether_in_single_requests_or_in_large_ones(
    admission: Admission, client: redis.Redis
) -> None:
    large = reserve(admission, "a", 50)
    for _ in range(10):
        reserve(admission, "a", 1)
    with pytest.raises(Overloaded, match=r"^user a has 60 items that wait: send it again in 1 s$"):
        reserve(admission, "a", 1)
    reserve(admission, "b", 40)
    with pytest.raises(Overloaded, match=r"^queue text\.online has 100 items"):
        reserve(admission, "c", 1)
    # Another queue has limits of its own.
    reserve(admission, "a", 60, queue="vision.online")
    admission.release(large)
    admission.release(large)
    assert counts(client) == {"items": 50, "user:a": 10, "user:b": 40}
    assert reserve(admission, "a", 50).items == 50


def test_tokens_count_too_and_none_are_released_as_none(admission: Admission, client: redis.Redis) -> None:
    first, second = reserve(admission, "a", 1, 900), reserve(admission, "a", 1, 0)
    with pytest.raises(Overloaded, match="has 900 tokens that wait"):
        reserve(admission, "b", 1, 101)
    for reservation in (first, second):
        admission.release(reservation)
    assert counts(client) == {}
    # Alone, a request of any size is admitted.
    reserve(admission, "a", 1000, 10**6)


def test_a_dead_callers_share_comes_free(admission: Admission, client: redis.Redis) -> None:
    reserve(admission, "a", 60, hold_s=0.3)

    def admitted() -> bool:
        try:
            reserve(admission, "a", 60)
        except Overloaded:
            return False
        return True

    assert not admitted()
    eventually(admitted, within_s=5, what="the reservation has expired", every_s=0.05)
    assert counts(client) == {"items": 60, "user:a": 60}


def test_many_callers_at_once_never_exceed_the_limit(admission: Admission, client: redis.Redis) -> None:
    def one(number: int) -> bool:
        try:
            with admission.admitted(QUEUE, f"u{number % 4}", items=10, tokens=10, hold_s=60):
                assert counts(client)["items"] <= LIMITS.queue_items
        except Overloaded as error:
            assert error.retry_after_s > 0
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert any(pool.map(one, range(200)))
    assert counts(client) == {}


def test_without_redis_the_error_says_so() -> None:
    nowhere = Admission(redis.Redis(port=9), LIMITS)
    with pytest.raises(BrokerUnavailable, match="is REDIS_URL right"):
        reserve(nowhere, "a", 1)
