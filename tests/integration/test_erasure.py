"""Erasing people on a real Postgres, Redis and storage: the very jobs a worker runs, one after the other, in this process."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.people import erasure
from db.people.photos import UPLOAD_GRACE_S
from db.tables import Job, Scene
from shared.storage import StorageConfig, sidecar_key
from tasks import people as requests
from tests.integration.conftest import Configure
from tests.support.people import POLICY, axis, change, create, enrol, film, photos_of, view
from tests.support.s3_servers import variables_of, with_own_buckets
from tests.support.services import RedisServer
from worker import reconcile, runner
from worker.app import app
from worker.runtime import Runtime
from worker.search import stored_answers

pytestmark = pytest.mark.usefixtures("database")

#: Ids that stand in every sidecar as something else.
HOSTILE = ("17", "text", "0", "true", "a", "null", "1", "video_id")


@pytest.fixture
def stack(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> Callable[..., Runtime]:
    """This process as a media and search node: its settings, its Redis; jobs are run by ``work``."""

    def start(**variables: str) -> Runtime:
        runtime = configure(REDIS_URL=redis_server.url, **variables)
        runtime.owner = "n:1:0:2"
        runtime.storage.ensure_buckets()
        return runtime

    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    monkeypatch.setattr(Celery, "backend", RedisBackend(app=app, url=redis_server.url))
    monkeypatch.setattr(runner, "notify", lambda wake_ups: 0)
    monkeypatch.setattr("tasks.requests.notify", lambda wake_ups: 0)
    return start


def publish(runtime: Runtime) -> None:
    """Let made-up videos have what a revision of their sidecars needs, and write all of them."""
    made = json.dumps(dict.fromkeys(("split", "asr", "text", "vision", "face", "ocr"), 1))

    def outdate(session: Session) -> None:
        session.execute(
            text("UPDATE runs SET stage_runs = CAST(:made AS jsonb), ended_at = now()"), {"made": made}
        )
        session.execute(update(Scene).values(people_changed=True))

    transact(outdate)
    work(runtime)


def work(runtime: Runtime) -> None:
    """Run all jobs of housekeeping, pauses left out."""
    for _ in range(30):
        reconcile.stale_sidecars()
        if "idle" in runner.work("housekeeping", runtime) and not skip_pauses():
            return
    with reading() as session:
        left = session.execute(
            text("SELECT stage, state, error, payload FROM jobs WHERE state <> 'done'")
        ).all()
    raise AssertionError(f"no end: {left}")


def skip_pauses(*, of_urls: bool = False) -> bool:
    """Let whatever waits run now; what waits for the end of a URL only if told so. Returns whether anything does."""
    last_look = (Job.stage == "late_photos") | ((Job.stage == "erase_person") & (Job.part == 1))
    waits = (Job.state == "queued") & (Job.queue == "housekeeping") & (last_look if of_urls else ~last_look)

    def skip(session: Session) -> bool:
        found = session.execute(update(Job).where(waits).values(not_before=text("now()")))
        session.execute(text("UPDATE queue_usage SET waiting = true, waiting_since = now(), due_at = NULL"))
        return bool(found.rowcount)

    return transact(skip)


def erase(person: str) -> None:
    change(person, lambda session, row: erasure.begin(session, row, POLICY))


def documents(runtime: Runtime, user: str) -> dict[str, Any]:
    """Every sidecar of a user that is stored."""
    storage = runtime.storage
    return {
        found.key: json.loads(storage.get_bytes("sidecars", found.key))
        for found in storage.list("sidecars", f"sidecars/{user}/")
    }


def people_named(runtime: Runtime, user: str) -> set[str]:
    return {who["person_id"] for document in documents(runtime, user).values() for who in document["people"]}


def answer(client: Any, user: str | None, result: Any, status: str = "SUCCESS") -> bytes:
    """An answer that no caller has collected; of a user if one is named."""
    task = str(uuid4())
    stored_answers.note_asked(user, task)
    key = b"celery-task-meta-" + task.encode()
    client.set(key, json.dumps({"status": status, "result": result, "task_id": task}), ex=600)
    stored_answers.note_answered(user, task)
    return key


@pytest.mark.parametrize("name", HOSTILE)
def test_an_id_that_stands_everywhere_is_erased_and_nothing_else(
    stack: Callable[..., Runtime], redis_server: RedisServer, name: str
) -> None:
    runtime = stack()
    mine = enrol("Ann", axis(0), person_id=name)
    other = enrol("Bea", axis(1), person_id="b")
    theirs = enrol("Ann", axis(0), user="w", person_id=name)
    for person, user in ((mine, "u"), (other, "u"), (theirs, "w")):
        (photo,) = photos_of(person, user)
        runtime.storage.put_bytes("uploads", photo.storage_key, b"photo", "image/jpeg")
    film("v", [[axis(0)] * 3], [[axis(1)]], [[axis(2)]])
    film("w", [[axis(0)]], [[axis(1)]], user="w")
    publish(runtime)
    assert people_named(runtime, "u") == {name, "b"} and people_named(runtime, "w") == {name}
    # A revision that no search shows, of a scene she is not in any more; and one that belongs to no user.
    with reading() as session:
        scene = session.scalars(select(Scene.scene_id).where(Scene.video_id == "v", Scene.idx == 2)).one()
    stray, plain = (sidecar_key("u", "v", str(scene), revision) for revision in (900, 901))
    for key, document in ((stray, {"people": [{"person_id": name}]}), (plain, {"people": [], name: name})):
        runtime.storage.put_bytes("sidecars", key, json.dumps(document).encode(), "a/b")

    client = redis.Redis.from_url(redis_server.url)
    person = {"person_id": name, "user_id": "u", "name": "Ann", "state": "ready"}
    doomed = [
        answer(client, "u", result)
        for result in (
            person,
            {"people": [person], "next_after": None},
            {"hits": [{"highlights": {"people": [{"person_id": name, "name": "Ann"}]}}]},
            {"events": [{"person_id": "b", "name": "Bea", "old_name": "Ann"}]},
        )
    ]
    said = f"a person 'Ann' exists already {name}"
    error = {"exc_type": "Conflict", "exc_message": [said], "exc_module": "m"}
    told = answer(client, "u", error, "FAILURE")
    kept = [
        answer(client, "w", {**person, "user_id": "w"}),
        answer(client, "w", error, "FAILURE"),
        answer(client, None, person),
        answer(client, "u", {"person_id": "b", "name": "Bea", "text": name, name: 17, "n": "Anna"}),
    ]
    for foreign in ("other:app", name, f"celery-task-meta-{name}", "scenefleet:page:x"):
        client.set(foreign, json.dumps({"person_id": name, "name": "Ann", "status": "SUCCESS"}))
        kept.append(foreign.encode())
    values = client.mget(kept)
    before = documents(runtime, "w")
    bystanders = {
        key
        for key, document in documents(runtime, "u").items()
        if key not in (stray, plain) and all(who["person_id"] != name for who in document["people"])
    }

    erase(mine)
    assert view(mine).state == "erasing" and view(mine).scenes == 0
    work(runtime)
    found = view(mine)
    assert found.state == "erased", found
    assert found.receipt["state"] == "complete" and set(found.receipt["left"].values()) == {0}
    assert found.receipt["removed"]["photo files"] == 1 and found.receipt["removed"]["face tracks"] == 1
    after = documents(runtime, "u")
    assert people_named(runtime, "u") == {"b"} and plain in after and stray not in after
    assert bystanders <= after.keys() and len(bystanders) == 2
    assert documents(runtime, "w") == before and view(theirs, "w").scenes == 1
    assert len(list(runtime.storage.list("uploads", "faces/"))) == 2
    assert [client.get(key) for key in doomed] == [None] * 4
    message = json.loads(client.get(told))["result"]["exc_message"]
    assert message == [said.replace("Ann", "(erased)")] and client.ttl(told) > 0
    assert client.mget(kept) == values
    client.close()


def test_whatever_is_left_keeps_the_receipt_incomplete_and_the_job_going(
    stack: Callable[..., Runtime], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = stack()
    ann = enrol("Ann", axis(0))
    film("v", [[axis(0)]])
    publish(runtime)
    monkeypatch.setattr(stored_answers, "count", lambda *_: 3)
    erase(ann)
    pauses = []
    for _ in range(10):
        reconcile.stale_sidecars()
        while "idle" not in runner.work("housekeeping", runtime):
            pass
        with reading() as session:
            left_s = func.extract("epoch", Job.not_before - func.clock_timestamp())
            job = session.execute(select(Job.state, left_s).where(Job.stage == "erase_person")).one()
        assert job[0] == "queued"
        pauses.append(round(job[1]))
        skip_pauses()
    found = view(ann)
    assert found.state == "erasing" and found.receipt["state"] == "incomplete"
    assert found.receipt["left"]["cached results"] == 3
    assert pauses[-7:] == sorted(pauses[-7:]) and pauses[-1] > 50


def test_a_photo_stored_by_an_older_url_after_the_erasure_is_removed_when_the_url_has_ended(
    stack: Callable[..., Runtime], moto: StorageConfig
) -> None:
    """On a real S3 server over HTTP; the other person's photo stays."""
    runtime = stack(**variables_of(with_own_buckets(moto)), UPLOAD_LINK_S="300")
    began = datetime.now(UTC)
    ann, bea = create("Ann", person_id="a"), create("Bea", person_id="aa")
    photo = {"user_id": "u", "extension": "png"}
    slots = {person: requests.add_photo(**photo, person_id=person) for person in (ann, bea)}
    removed = requests.add_photo(**photo, person_id=bea, expires_s=200)
    assert "X-Amz-Expires=300" in slots[bea]["upload_url"] and "Expires=200" in removed["upload_url"]
    for slot in slots.values():
        put(slot["upload_url"])
    erase(ann)
    requests.remove_photo(user_id="u", person_id=bea, photo_id=removed["photo_id"])
    work(runtime)
    found = view(ann)
    assert found.state == "erased" and found.receipt["removed"]["photo files"] == 1
    assert "sweep_due" in found.receipt
    for slot in (slots[ann], removed):
        put(slot["upload_url"])
        assert runtime.storage.exists("uploads", slot["storage_key"])
    with reading() as session:
        waiting = (Job.state == "queued") & (Job.queue == "housekeeping")
        due = session.scalars(select(Job.not_before).where(waiting)).all()
    assert len(due) == 2 and min(due) > began + timedelta(seconds=300 + UPLOAD_GRACE_S)
    skip_pauses(of_urls=True)
    work(runtime)
    assert "sweep_due" not in view(ann).receipt
    keys = {stored.key for stored in runtime.storage.list("uploads", "faces/")}
    assert keys == {slots[bea]["storage_key"]}
    assert view(ann).receipt["removed"]["late photo files"] == 1


def put(url: str) -> None:
    request = urllib.request.Request(url, data=b"photo", method="PUT")
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 200
