"""The cache of query vectors over a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py

from shared.errors import ModelUnavailable
from shared.settings import Settings
from tests.support.services import RedisServer
from worker.models.common_queries import embed_queries, read_queries
from worker.models.spec import ModelSpec
from worker.models.text import TextEmbedder, TextVectors
from worker.models.vector_cache import LEXICAL, VectorCache, VectorKey, pack_weights, unpack_weights
from worker.search import vectors
from worker.search.plan import Call

A, B = np.array([1.5, -2.25, 1e-7], np.float32), np.array([0.0, 1.0, 3.0], np.float32)


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Any]:
    with redis_py.Redis.from_url(redis_server.url, socket_timeout=5) as client:
        client.flushdb()
        yield client


def cache(redis: Any, **settings: Any) -> VectorCache:
    return VectorCache(redis, Settings(_env_file=None, **settings))


def test_a_vector_is_read_to_the_last_bit_by_another_process(redis: Any) -> None:
    cache(redis).put_many("m", "1", "text", ["a", "b"], [A, B.astype(np.float64)], [7, None])
    found = cache(redis).get_many("m", "1", "text", ["b", "none", "a"])
    assert found[1] is None
    assert found[0] is not None and found[2] is not None
    np.testing.assert_array_equal(found[0].values, B)
    np.testing.assert_array_equal(found[2].values, A)
    assert (found[0].tokens, found[2].tokens) == (None, 7)
    assert redis.get(VectorKey("m", "1", "text", "a").redis_key) == b"\7\0\0\0" + A.astype("<f4").tobytes()


@pytest.mark.parametrize(
    "other",
    [("n", "1", "text", "a"), ("m", "2", "text", "a"), ("m", "1", "vision", "a"), ("m", "1", "text", "A")],
)
def test_another_model_revision_kind_or_text_is_a_miss(redis: Any, other: tuple[str, str, str, str]) -> None:
    kept = cache(redis)
    kept.put_many("m", "1", "text", ["a"], [A])
    assert kept.get([VectorKey(*other)]) == [None]
    # Nor do parts of a key run into each other.
    assert kept.get([VectorKey("m1", "", "text", "a"), VectorKey("m", "1text", "", "a")]) == [None, None]


def test_no_text_can_be_read_from_redis(redis: Any) -> None:
    cache(redis).put_many("m", "1", "text", ["a secret query"], [A])
    stored = b"".join(key + redis.dump(key) for key in redis.keys("*"))
    assert b"secret" not in stored


def test_lexical_weights_are_kept_also_none(redis: Any) -> None:
    weights = {7: 0.25, 250_000: 1.5}
    cache(redis).put_many("m", "1", LEXICAL, ["a", "b"], [pack_weights(weights), pack_weights({})])
    found = cache(redis).get_many("m", "1", LEXICAL, ["a", "b"])
    assert [unpack_weights(packed) for packed in (kept.values for kept in found if kept is not None)] == [
        weights,
        {},
    ]


def test_long_texts_are_not_kept_and_vectors_expire(redis: Any) -> None:
    kept = cache(redis, embedding_cache_max_chars=3, embedding_cache_ttl_s=60)
    kept.put_many("m", "1", "text", ["abc", "abcd"], [A, A])
    assert [found is not None for found in kept.get_many("m", "1", "text", ["abc", "abcd"])] == [True, False]
    assert all(0 < redis.ttl(key) <= 60 for key in redis.keys("*"))
    off = cache(redis, embedding_cache_ttl_s=0)
    off.put_many("m", "1", "text", ["x"], [A])
    assert off.get_many("m", "1", "text", ["abc", "x"]) == [None, None]


def test_the_oldest_go_when_there_are_too_many(redis: Any) -> None:
    kept = cache(redis, embedding_cache_size=10)
    for number in range(25):
        kept.put_many("m", "1", "text", [str(number)], [A])
    assert len(redis.keys("scenefleet:vector:*")) == 10
    found = cache(redis).get_many("m", "1", "text", [str(number) for number in range(25)])
    assert [vector is not None for vector in found] == [False] * 15 + [True] * 10


def test_the_process_keeps_the_latest_without_redis(redis: Any) -> None:
    kept = cache(redis, embedding_cache_size=2)
    kept.put_many("m", "1", "text", ["a", "b"], [A, B])
    redis.flushdb()
    assert kept.get_many("m", "1", "text", ["a"])[0] is not None
    kept.put_many("m", "1", "text", ["c"], [A])
    redis.flushdb()
    found = kept.get_many("m", "1", "text", ["a", "b", "c"])
    assert [vector is not None for vector in found] == [True, False, True], "b was used longest ago"


def test_a_redis_that_does_not_answer_is_a_miss() -> None:
    kept = cache(redis_py.Redis(port=9, socket_connect_timeout=1))
    kept.put_many("m", "1", "text", ["a"], [A])
    assert kept.get_many("m", "1", "text", ["b"]) == [None]


# --- of a search


def spec(**fields: Any) -> ModelSpec:
    named: dict[str, Any] = {
        "name": "m",
        "family": "text",
        "kind": "text",
        "provider": "bge-m3",
        "source": "user:",
        "files": ("m",),
    }
    return ModelSpec(**named, revision="1", dim=3, metric="cosine", licence="MIT", memory_mb=1, **fields)


CALLS = {"text": Call("tasks.text.embed", {"texts": ["a cup"], "lexical": True, "model": "m"}, spec())}
SAID = {
    "ok": {"model": "m", "revision": "1", "dim": 3, "vectors": [[0.5, 0.25, 1.0]], "lexical": [{"7": 0.5}]}
}


def test_a_search_asks_no_queue_for_what_another_has_asked(redis: Any) -> None:
    assert vectors.find(cache(redis), CALLS) == {}
    vectors.keep(cache(redis), CALLS, {"text": SAID})
    assert vectors.find(cache(redis), CALLS) == {"text": SAID}
    without = Call("tasks.text.embed", {"texts": ["a cup"], "lexical": False, "model": "m"}, spec())
    assert vectors.find(cache(redis), {"text": without})["text"]["ok"]["vectors"] == SAID["ok"]["vectors"]


def test_a_search_remembers_what_the_node_of_the_model_keeps(redis: Any) -> None:
    own, calls = cache(redis), {"text": Call("tasks.text.embed", {"texts": ["a cup"], "model": "m"}, spec())}
    vectors.keep(own, calls, {"text": SAID})
    assert vectors.find(own, calls)["text"]["ok"]["vectors"] == SAID["ok"]["vectors"]
    assert redis.keys("scenefleet:vector*") == []


def test_what_a_queue_has_answered_by_another_revision_is_kept_as_that(redis: Any) -> None:
    vectors.keep(cache(redis), CALLS, {"text": {"ok": {**SAID["ok"], "revision": "2"}}})
    assert vectors.find(cache(redis), CALLS) == {}
    assert cache(redis).get_many("m", "2", "text", ["a cup"])[0] is not None


def test_errors_and_vectors_of_another_size_are_not_used(redis: Any) -> None:
    vectors.keep(cache(redis), CALLS, {"text": {"error": "no answer in 5 s"}})
    assert vectors.find(cache(redis), CALLS) == {}
    cache(redis).put_many("m", "1", "text", ["a cup"], [np.zeros(4, np.float32)])
    cache(redis).put_many("m", "1", LEXICAL, ["a cup"], [pack_weights({})])
    assert vectors.find(cache(redis), CALLS) == {}


# --- of common queries


class Counting(TextEmbedder):
    """Gives each text its length as a vector, and counts texts."""

    has_lexical = True
    count = 0

    def __init__(self) -> None:
        self.spec = spec()

    def encode(self, texts: Any) -> TextVectors:
        self.count += len(texts)
        dense = np.array([[len(text)] * 3 for text in texts], np.float32)
        return TextVectors(dense, tuple({len(text): 1.0} for text in texts))

    def _load(self) -> None:
        raise NotImplementedError

    def _encode(self, texts: Any) -> TextVectors:
        raise NotImplementedError


def test_common_queries_are_embedded_once(redis: Any, tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("a cup\n\n  a rocket \na cup\n" + "x" * 600 + "\n" + "\n".join(map(str, range(70))))
    model, queries = Counting(), read_queries(path)
    assert queries[:2] == ("a cup", "a rocket")
    assert embed_queries(model, queries, cache(redis)) == 72 == model.count
    assert embed_queries(model, queries, cache(redis)) == 0
    assert vectors.find(cache(redis), CALLS)["text"]["ok"]["lexical"] == [{"5": 1.0}]


def test_a_bad_file_of_queries_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "large").write_bytes(b"x" * (2**20 + 1))
    for name, says in (("none", "can't be read"), ("binary", "is not UTF-8"), ("large", "has more than")):
        with pytest.raises(ModelUnavailable, match=f"WARM_QUERIES=.*{name} {says}"):
            read_queries(tmp_path / name)
