"""Reply lists in a real Redis: what the backend of workers appends, and how a caller waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
from celery.app.task import Context

from shared.errors import InvalidRequest
from shared.replies import KEPT_S, Reply, new_reply_key, push_reply, wait_replies
from tests.support.services import RedisServer
from worker.app import app
from worker.broker.replies import ReplyingBackend


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Any]:
    with redis_py.Redis.from_url(redis_server.url, socket_timeout=5) as client:
        yield client


@pytest.fixture
def backend(redis_server: RedisServer) -> ReplyingBackend:
    return ReplyingBackend(app=app, url=redis_server.url)


def wait(redis: Any, key: str, ids: set[str], *, timeout_s: float = 5.0) -> dict[str, Reply]:
    return {reply.id: reply for reply in wait_replies(redis, key, ids, time.monotonic() + timeout_s)}


def test_workers_use_this_backend() -> None:
    assert type(app.backend) is ReplyingBackend


def test_an_answer_is_stored_and_appended(redis: Any, backend: ReplyingBackend) -> None:
    key = new_reply_key()
    backend.mark_as_done("t1", {"n": 1}, Context(id="t1", reply_to=key))
    assert backend.get_task_meta("t1")["result"] == {"n": 1}
    assert 0 < redis.ttl(key) <= KEPT_S
    assert wait(redis, key, {"t1"}) == {"t1": Reply(id="t1", result={"n": 1})}
    assert not redis.exists(key)


def test_an_answer_that_is_not_to_be_stored_is_appended(redis: Any, backend: ReplyingBackend) -> None:
    key = new_reply_key()
    backend.mark_as_done("t2", [1], Context(id="t2", reply_to=key, ignore_result=True), False)
    assert not redis.exists(backend.get_key_for_task("t2"))
    assert wait(redis, key, {"t2"})["t2"].result == [1]


def test_an_error_is_appended_with_its_class(redis: Any, backend: ReplyingBackend) -> None:
    key = new_reply_key()
    backend.mark_as_failure("t3", InvalidRequest("no"), request=Context(id="t3", reply_to=key))
    error = wait(redis, key, {"t3"})["t3"].error
    assert isinstance(error, InvalidRequest)
    assert str(error) == "no"


def test_a_key_of_another_form_is_not_written(redis: Any, backend: ReplyingBackend) -> None:
    backend.mark_as_done("t4", 1, Context(id="t4", reply_to="unacked"))
    backend.mark_as_done("t5", 1, None)
    assert not redis.exists("unacked")


def test_a_key_of_another_type_does_not_fail_the_task(redis: Any, backend: ReplyingBackend) -> None:
    key = new_reply_key()
    redis.set(key, "taken")
    backend.mark_as_done("t6", 1, Context(id="t6", reply_to=key))
    assert backend.get_task_meta("t6")["result"] == 1
    assert redis.get(key) == b"taken"


def test_answers_of_a_batch_are_sent_together(
    redis: Any, backend: ReplyingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [new_reply_key() for _ in range(4)]
    redis.set(keys[3], "taken")
    backend.mark_as_done("b3", "the first", Context(id="b3"))
    with redis.pubsub(ignore_subscribe_messages=True) as told:
        told.subscribe(backend.get_key_for_task("b0"))
        told.get_message(timeout=5)
        with backend.together():
            for number, key in enumerate(keys[:2]):
                backend.mark_as_done(f"b{number}", number, Context(id=f"b{number}", reply_to=key))
            backend.mark_as_failure("b2", InvalidRequest("no"), request=Context(id="b2", reply_to=keys[2]))
            backend.mark_as_done("b3", "the second", Context(id="b3", reply_to=keys[3]))
            assert not redis.exists(*keys[:3])
            assert not redis.exists(*(backend.get_key_for_task(f"b{number}") for number in range(3)))
        assert told.get_message(timeout=5) is not None
    assert [wait(redis, key, {f"b{number}"})[f"b{number}"].result for number, key in enumerate(keys[:2])] == [
        0,
        1,
    ]
    assert isinstance(wait(redis, keys[2], {"b2"})["b2"].error, InvalidRequest)
    metas = [backend.get_task_meta(f"b{number}", cache=False) for number in range(4)]
    assert [meta["status"] for meta in metas] == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS"]
    # As Celery does: a later answer changes no success.
    assert metas[3]["result"] == "the first" and redis.get(keys[3]) == b"taken"
    assert 0 < redis.ttl(backend.get_key_for_task("b1")) <= app.conf.result_expires
    # Many large ones are not held until the end.
    monkeypatch.setattr("worker.broker.replies._HELD_BYTES", 100)
    with backend.together():
        backend.mark_as_done("b4", "x" * 200, Context(id="b4"))
        assert redis.exists(backend.get_key_for_task("b4"))
    backend.mark_as_done("b5", 5, Context(id="b5"))
    assert backend.get_task_meta("b5")["result"] == 5


def test_a_caller_waits_for_all_its_tasks_and_for_no_others(redis: Any) -> None:
    key = new_reply_key()
    # Twice, and of a task that was not asked for.
    for task in ("a", "a", "other"):
        push_reply(redis, key, Reply(id=task, result=task))
    redis.rpush(key, b"nonsense")
    late = threading.Timer(0.2, push_reply, (redis, key, Reply(id="b", result="b")))
    late.start()
    try:
        assert set(wait(redis, key, {"a", "b"})) == {"a", "b"}
    finally:
        late.join()


def test_a_caller_gets_what_arrived_before_the_deadline(redis: Any) -> None:
    key = new_reply_key()
    push_reply(redis, key, Reply(id="a", result=1))
    began = time.monotonic()
    assert set(wait(redis, key, {"a", "b"}, timeout_s=0.3)) == {"a"}
    assert 0.25 < time.monotonic() - began < 2


def test_no_wait_after_the_deadline(redis: Any) -> None:
    assert list(wait_replies(redis, new_reply_key(), {"a"}, time.monotonic() - 1)) == []
