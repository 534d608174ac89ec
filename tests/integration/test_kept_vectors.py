"""What clients find in the vector cache without a queue, over a real Redis, with no node at work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py

from shared import routing
from shared.client import AsyncClient, Client
from shared.contracts import UnpackedVectors
from shared.errors import Outage
from shared.kept_vectors import ActiveModel, KeptVectors, publish_active
from shared.settings import Settings
from tests.support.services import RedisServer
from worker.models.vector_cache import VectorCache

MODEL = ActiveModel(name="m", revision="1", dim=3, device="cpu", max_chars=10)
A, B = np.array([0.6, 0.8, 0.0], np.float32), np.array([0.0, 1.0, 0.0], np.float32)


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Any]:
    """A Redis in which a node has kept two vectors a moment ago."""
    with redis_py.Redis.from_url(redis_server.url, socket_timeout=5) as client:
        client.flushdb()
        keep(client)
        publish_active(client, {"text": MODEL})
        yield client
        client.flushdb()


def keep(redis: Any, revision: str = "1") -> None:
    cache = VectorCache(redis, Settings(_env_file=None))
    cache.put_many("m", revision, "text", ["a", "b"], [A, B], [3, 4])


def find(redis: Any, *texts: str, kept: KeptVectors | None = None, **options: Any) -> UnpackedVectors | None:
    return (kept or KeptVectors()).find(redis, routing.TEXT_EMBED, {"texts": list(texts), **options})


def test_both_clients_answer_without_a_node(redis: Any, redis_server: RedisServer) -> None:
    with Client(redis_server.url, timeout_s=5) as client:
        found = client.embed_texts(["b", "a", "b"], model="m")
    assert found.vectors == (tuple(B.tolist()), tuple(A.tolist()), tuple(B.tolist()))
    assert (found.model, found.revision, found.dim, found.device) == ("m", "1", 3, "cpu")
    assert (found.tokens, found.cached, found.node) == ((4, 3, 4), 3, None)

    async def later() -> Any:
        async with AsyncClient(redis_server.url, timeout_s=5) as client:
            return await client.embed_texts(["b", "a", "b"])

    assert asyncio.run(later()).vectors == found.vectors
    assert redis.llen(routing.TASK_QUEUE[routing.TEXT_EMBED]) == 0


def test_what_is_not_kept_goes_to_the_queue(redis: Any, redis_server: RedisServer) -> None:
    with Client(redis_server.url, timeout_s=0.5, retries=0) as client, pytest.raises(Outage):
        client.embed_texts(["a", "new"])
    assert redis.llen(routing.TASK_QUEUE[routing.TEXT_EMBED]) == 1


def test_only_requests_whose_every_vector_is_kept_are_answered(redis: Any) -> None:
    assert find(redis, "a") is not None
    assert find(redis, "a", "new") is None
    assert find(redis, "a", model="other") is None
    assert find(redis, "a", lexical=True) is None
    assert find(redis) is None
    assert find(redis, *["a"] * 65) is None
    keep_long = VectorCache(redis, Settings(_env_file=None))
    keep_long.put_many("m", "1", "text", ["x" * 11], [A])
    assert find(redis, "x" * 11) is None, "longer than its node keeps"
    assert KeptVectors().find(redis, routing.VISION_EMBED_TEXTS, {"texts": ["a"]}) is None
    assert KeptVectors().find(redis, routing.TEXT_RERANK, {"query": "a", "documents": ["a"]}) is None


def test_a_switch_of_the_model_is_noticed_by_a_client_that_knew_the_old_one(redis: Any) -> None:
    kept = KeptVectors()
    assert find(redis, "a", kept=kept) is not None
    publish_active(redis, {"text": MODEL.model_copy(update={"revision": "2"})})
    assert find(redis, "a", kept=kept) is None, "never the old revision's"
    keep(redis, "2")
    found = find(redis, "a", kept=kept)
    assert found is not None and found.revision == "2"


def test_without_word_of_a_node_nothing_is_answered(redis: Any) -> None:
    kept = KeptVectors()
    assert find(redis, "a", kept=kept) is not None
    assert 0 < redis.ttl("scenefleet:vector-model:text") <= 15
    redis.delete("scenefleet:vector-model:text")
    assert find(redis, "a", kept=kept) is None


@pytest.mark.parametrize("value", [b"", b"abc", b"\0\0\0\0" + A.tobytes() + b"\0", A.tobytes()])
def test_a_damaged_value_is_a_miss(redis: Any, value: bytes) -> None:
    for key in redis.keys("scenefleet:vector:*"):
        redis.set(key, value)
    assert find(redis, "a") is None


@pytest.mark.parametrize("said", [b"", b"{}", b'{"name": 1}', b"\xff"])
def test_a_damaged_word_of_a_node_is_a_miss(redis: Any, said: bytes) -> None:
    redis.set("scenefleet:vector-model:text", said)
    assert find(redis, "a") is None


def test_a_redis_that_does_not_answer_is_a_miss() -> None:
    assert find(redis_py.Redis(port=9, socket_connect_timeout=1), "a") is None
