"""Kept answers of searches: given again only while nothing has changed that the user's searches read."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis as redis_py
from celery import Celery
from celery.backends.redis import RedisBackend
from sqlalchemy import event, text

from db import search
from db.engine import get_engine, reading_as
from db.tables import Base
from shared.contracts import SearchAnswer, SearchScenes, parse
from shared.replies import Reply, decode_reply, new_reply_key, push_reply
from tests.integration.conftest import Configure
from tests.integration.test_tenancy_search import Searches
from tests.support.services import RedisServer
from tests.support.tenants import USERS, populate
from worker.app import app
from worker.runtime import Runtime
from worker.search import answer, plan, stored_answers
from worker.search.kept_answers import KeptAnswers, kept_key

pytestmark = pytest.mark.usefixtures("database")

MINE, THEIRS = USERS[:2]
#: Read by searches, and changed by no user: what is active is part of an answer's key.
GLOBAL = {"models", "active_models"}


@pytest.fixture
def world(configure: Configure, redis_server: RedisServer, database: str) -> Iterator[Searches]:
    found = Searches(configure(SCENEFLEET_PROFILE="full", REDIS_URL=redis_server.url))
    populate(1, found.models)
    yield found
    with redis_py.Redis.from_url(redis_server.url) as client:
        client.delete(*map(kept_key, USERS))


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as found:
        yield found


def version(user: str = MINE) -> str:
    with reading_as(user) as session:
        return search.read_version(session, user)


def test_the_version_is_read_in_one_round_trip_and_is_the_same(
    world: Searches, connection: psycopg.Connection[Any]
) -> None:
    for _ in range(8):  # the driver prepares what it has executed five times
        assert search.version_now(MINE) == version() != search.version_now("stranger") == version("stranger")
    before = version()
    connection.execute("UPDATE people SET name = name || '!' WHERE user_id = %s", [MINE])
    assert search.version_now(MINE) == version() != before
    with get_engine().connect() as own:
        assert own.execute(text("SELECT current_user = session_user")).scalar_one(), "the role ends with it"
    # A server that ends the session: once more, by another one.
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'scenefleet' AND pid <> pg_backend_pid()"
    )
    assert search.version_now(MINE) == version()


def triggered(connection: psycopg.Connection[Any]) -> dict[str, set[str]]:
    """Table -> the statements after which a change is noted."""
    rows = connection.execute(
        "SELECT c.relname, tgname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE tgname LIKE 'note_search_%'"
    ).fetchall()
    found: dict[str, set[str]] = {}
    for table, name in rows:
        found.setdefault(table, set()).add(name.removeprefix("note_search_"))
    return found


def test_a_change_of_every_table_that_a_search_reads_is_noted(
    world: Searches, connection: psycopg.Connection[Any]
) -> None:
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement)

    event.listen(get_engine(), "before_cursor_execute", note)
    try:
        people = [
            row[0] for row in connection.execute("SELECT external_id FROM people WHERE user_id = %s", [MINE])
        ]
        for options in ({}, {"persons": people}, {"video_ids": ["v"]}, {"languages": ["en"], "from_s": 0.0}):
            payload = {"user_id": MINE, "query": "cat", "mode": "hybrid", **options}
            world.ask(parse(SearchScenes, payload), seed=1, exact_rows=5)
    finally:
        event.remove(get_engine(), "before_cursor_execute", note)
    tables = {name for name in Base.metadata.tables if re.search(rf"\b{name}\b", "\n".join(statements))}
    noted = triggered(connection)
    assert {"scenes", "videos", "scene_people", "face_tracks", "embeddings"} <= tables
    assert tables - {"search_changes"} - GLOBAL <= noted.keys()
    assert all(events == {"insert", "update", "delete"} for events in noted.values())


def test_each_statement_changes_the_version_of_its_user_only(
    world: Searches, connection: psycopg.Connection[Any]
) -> None:
    assert version() != version(THEIRS) != version("nobody") == version("another nobody")
    leaves = ("embeddings", "lexical_weights", "screen_texts", "scene_people", "face_tracks")
    for statement in (
        *(f"UPDATE {table} SET user_id = user_id WHERE user_id = %s" for table in triggered(connection)),
        *(f"DELETE FROM {table} WHERE user_id = %s" for table in leaves),
    ):
        before, others = version(), version(THEIRS)
        assert connection.execute(statement, [MINE]).rowcount > 0, statement
        assert version() != before and version(THEIRS) == others, statement
        # Again: of the deletes nothing is left.
        before, count = version(), connection.execute(statement, [MINE]).rowcount
        assert (version() != before) == (count > 0), statement


def test_a_version_never_comes_back_also_when_transactions_overlap(
    world: Searches, database: str, connection: psycopg.Connection[Any]
) -> None:
    """Transactions that begin early and commit late; a rolled back one changes nothing; nobody waits for another."""
    rng = random.Random(5)
    change = "UPDATE videos SET user_id = user_id WHERE video_id = %s"
    videos = [
        row[0]
        for row in connection.execute("SELECT video_id FROM videos WHERE user_id = %s", [MINE]).fetchall()
    ]
    tables = ("scenes", "embeddings", "people", "scene_people", "screen_texts", "face_tracks")
    opened: list[tuple[psycopg.Connection[Any], str]] = []
    free, seen = list(tables), [version()]
    assert videos
    for _ in range(80):
        if free and (not opened or rng.random() < 0.5):
            table = free.pop(rng.randrange(len(free)))
            late = psycopg.connect(database)
            late.execute("SET lock_timeout = '2s'")
            late.execute(f"UPDATE {table} SET user_id = user_id WHERE user_id = %s", [MINE])
            opened.append((late, table))
            assert version() == seen[-1], "nothing is committed yet"
            connection.execute(change, [videos[0]])
        else:
            late, table = opened.pop(rng.randrange(len(opened)))
            free.append(table)
            if rng.random() < 0.2:
                late.rollback()
                late.close()
                assert version() == seen[-1]
                continue
            late.commit()
            late.close()
        now = version()
        assert now not in seen
        seen.append(now)
    for late, _ in opened:
        late.close()
    connection.execute(change, [videos[0]])
    left = connection.execute("SELECT count(*) FROM search_changes WHERE user_id = %s", [MINE]).fetchone()
    assert left is not None and left[0] < 10, "finished transactions are not kept"


# --- answers


def request(user: str = MINE, **fields: Any) -> SearchScenes:
    return parse(SearchScenes, {"user_id": user, "query": "cat", "mode": "hybrid", **fields})


def kept(world: Searches, **settings: Any) -> KeptAnswers:
    runtime = Runtime(world.runtime.settings.model_copy(update=settings))
    return KeptAnswers(runtime)


def test_an_answer_is_given_again_until_something_changes(
    world: Searches, connection: psycopg.Connection[Any]
) -> None:
    answers = kept(world)
    found = world.ask(request(), seed=1, exact_rows=5)
    assert answers.find(request()) is None
    answers.keep(request(), found, version())
    assert answers.find(request()) == found.model_dump(mode="json")
    connection.execute("UPDATE scenes SET user_id = user_id WHERE user_id = %s", [THEIRS])
    assert answers.find(request()) is not None, "another user's rows"
    connection.execute("UPDATE scenes SET user_id = user_id WHERE user_id = %s", [MINE])
    assert answers.find(request()) is None


def test_an_answer_is_kept_with_the_version_of_its_own_snapshot(
    world: Searches, connection: psycopg.Connection[Any]
) -> None:
    """What is committed while the answer is made makes it stale at once."""
    runtime, answers = world.runtime, kept(world)
    made = plan.plan(request(mode="keyword"), runtime)
    before = version()
    found = answer.answer(request(mode="keyword"), runtime, made, {})
    assert made.version == before
    connection.execute("UPDATE scenes SET user_id = user_id WHERE user_id = %s", [MINE])
    answers.keep(request(mode="keyword"), found, made.version)
    assert answers.find(request(mode="keyword")) is None


def test_no_other_search_user_model_or_setting_gets_it(world: Searches) -> None:
    answers = kept(world)
    found = world.ask(request(), seed=1, exact_rows=5)
    answers.keep(request(), found, version())
    assert answers.find(request()) is not None
    for other in (request(THEIRS), request(query="Cat"), request(limit=3), request(video_ids=["v"])):
        assert answers.find(other) is None
    assert kept(world, search_text_weight=0.9).find(request()) is None
    switched = kept(world)
    spec = dict(switched._runtime.active.models())["text"]
    revised = {**switched._runtime.active.models(), "text": spec.model_copy(update={"revision": "another"})}
    switched._runtime.active.models = lambda: revised  # type: ignore[method-assign]
    assert switched.find(request()) is None


def test_what_is_not_to_be_kept_is_not_kept(world: Searches, redis_server: RedisServer) -> None:
    answers = kept(world)
    found = world.ask(request(), seed=1, exact_rows=5)
    degraded = found.model_copy(update={"degraded": {"vision": "no answer in 5 s"}})
    huge = found.model_copy(
        update={"hits": (found.hits[0].model_copy(update={"transcript": "x" * 200_000}),)}
    )
    answers.keep(request(), degraded, version())
    answers.keep(request(), huge, version())
    for other in (request(rerank=5), request(image_key="uploads/u/a.png", query=None)):
        answers.keep(other, found, version())
        assert answers.find(other) is None
    kept(world, search_kept_s=0).keep(request(), found, version())
    with redis_py.Redis.from_url(redis_server.url) as client:
        assert not client.exists(kept_key(MINE))
        for number in range(100):
            answers.keep(request(query=f"cat {number}"), found, version())
        assert 0 < client.hlen(kept_key(MINE)) <= 64 and 0 < client.ttl(kept_key(MINE)) <= 60


def test_an_answer_expires_though_others_are_kept_after_it(
    world: Searches, redis_server: RedisServer
) -> None:
    answers = kept(world)
    found: SearchAnswer = world.ask(request(), seed=1, exact_rows=5)
    answers.keep(request(), found, version())
    with redis_py.Redis.from_url(redis_server.url) as client:
        ((name, value),) = client.hgetall(kept_key(MINE)).items()
        version_of, _, stored = value.split(b" ", 2)
        client.hset(kept_key(MINE), name, b" ".join((version_of, b"17.5", stored)))
    assert answers.find(request()) is None


def test_without_redis_nothing_is_kept_and_nothing_fails(world: Searches) -> None:
    answers = kept(world, redis_url="redis://127.0.0.1:9/0")
    found = world.ask(request(), seed=1, exact_rows=5)
    answers.keep(request(), found, version())
    assert answers.find(request()) is None


def test_an_erasure_removes_them(
    world: Searches, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Celery, "backend", RedisBackend(app=app, url=redis_server.url))
    answers = kept(world)
    answers.keep(request(), world.ask(request(), seed=1, exact_rows=5), version())
    answers.keep(request(THEIRS), world.ask(request(THEIRS), seed=1, exact_rows=5), version(THEIRS))
    with redis_py.Redis.from_url(redis_server.url) as client:
        stored_answers.remove(MINE, {"p"}, {"Ann"}, 0.0)
        assert not client.exists(kept_key(MINE)) and client.exists(kept_key(THEIRS))
        # Of a search that was on its way.
        answers.keep(request(), world.ask(request(), seed=1, exact_rows=5), version())
        assert stored_answers.count(MINE, {"p"}, {"Ann"}, 0.0) == 0
        assert not client.exists(kept_key(MINE))


def test_an_erasure_removes_answers_from_reply_lists(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own only: a caller may have a list for several users."""
    monkeypatch.setattr(Celery, "backend", RedisBackend(app=app, url=redis_server.url))
    key, person = new_reply_key(), {"person_id": "p", "name": "Ann"}
    stored_answers.note_asked(MINE, "mine", key)
    stored_answers.note_asked(MINE, "other", key)
    stored_answers.note_asked(THEIRS, "theirs", key)
    for task in ("mine", "other", "theirs"):
        stored_answers.note_answered(MINE, task)
    with redis_py.Redis.from_url(redis_server.url) as client:
        push_reply(client, key, Reply(id="mine", result={"hits": [{"highlights": {"people": [person]}}]}))
        push_reply(client, key, Reply(id="other", result={"person_id": "b", "name": "Bea"}))
        push_reply(client, key, Reply(id="theirs", result=person))
        assert stored_answers.count(MINE, {"p"}, {"Ann"}, 0.0) == 1
        assert stored_answers.remove(MINE, {"p"}, {"Ann"}, 0.0) == 1
        assert stored_answers.count(MINE, {"p"}, {"Ann"}, 0.0) == 0
        left = [decode_reply(item) for item in client.lrange(key, 0, -1)]
        assert [reply.id for reply in left if reply is not None] == ["other", "theirs"]
