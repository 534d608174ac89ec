"""Erasing people on a real Postgres, Redis and storage: the very jobs a worker runs, one after the other, in this process."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.backends.redis import RedisBackend
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.ledger import person_runs
from db.people import erasure, photos, registry
from db.tables import Job, Scene
from shared.storage import sidecar_key
from tasks import people as requests
from tests.integration.conftest import Configure
from tests.integration.test_people import (
    POLICY,
    axis,
    change,
    create,
    enrol,
    film,
)
from tests.support.s3_servers import moto_server
from tests.support.services import RedisServer
from worker import reconcile, runner
from worker.app import app
from worker.runtime import Runtime
from worker.search import stored_answers
from worker.stages import erase_person

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
    made = dict.fromkeys(("split", "asr", "text", "vision", "face", "ocr"), 1)

    def outdate(session: Session) -> None:
        session.execute(
            text("UPDATE runs SET stage_runs = CAST(:made AS jsonb), ended_at = now()"),
            {"made": json.dumps(made)},
        )
        session.execute(update(Scene).values(people_changed=True))

    transact(outdate)
    work(runtime)


def work(runtime: Runtime, limit: int = 30) -> list[str]:
    """Run everything there is to do on media, pauses left out. Returns the stages that ran."""
    ran: list[str] = []
    while len(ran) < limit:
        reconcile.stale_sidecars()
        done = runner.work("housekeeping", runtime)
        if "idle" not in done:
            ran.append(done["stage"])
        elif not skip_pauses():
            return ran
    with reading() as session:
        left = session.execute(
            text("SELECT stage, state, error, payload FROM jobs WHERE state <> 'done'")
        ).all()
    raise AssertionError(f"no end: {ran[-5:]}, {left}")


def skip_pauses() -> bool:
    """Let whatever waits run now, but for what waits for the end of a URL. Returns whether anything does."""
    waits = (Job.state == "queued") & (Job.queue == "housekeeping") & (Job.stage != "late_photos")
    last_look = (Job.stage == "erase_person") & (Job.part == 1)

    def skip(session: Session) -> bool:
        found = session.execute(
            update(Job).where(waits, ~last_look).values(not_before=text("now()"))
        ).rowcount
        session.execute(text("UPDATE queue_usage SET waiting = true, waiting_since = now(), due_at = NULL"))
        return bool(found)

    return transact(skip)


def erase(person: str, user: str = "u") -> None:
    change(person, lambda session, row: erasure.begin(session, row, POLICY), user)


def shown(person: str, user: str = "u") -> Any:
    with reading() as session:
        return registry.view(session, registry.get(session, person, user))


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
    """An answer that nobody has collected; of a user if one is named."""
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
    mine, other = create("Ann", person_id=name), create("Bea", person_id="b")
    theirs = create("Ann", "w", person_id=name)
    for place, person, user in ((0, mine, "u"), (1, other, "u"), (0, theirs, "w")):
        change(person, lambda session, row: registry.add_photo(session, row, "jpg"), user)
        _enrol(person, place, user)
        with reading() as session:
            (photo,) = registry.photos_of(session, registry.get(session, person, user))
        runtime.storage.put_bytes("uploads", photo.storage_key, b"photo", "image/jpeg")
    film("v", [[axis(0)] * 3], [[axis(1)]], [[axis(2)]])
    film("w", [[axis(0)]], [[axis(1)]], user="w")
    publish(runtime)
    assert people_named(runtime, "u") == {name, "b"} and people_named(runtime, "w") == {name}
    # A revision that nobody is shown, of a scene she is not in any more; and one of nobody's.
    with reading() as session:
        scene = session.scalars(select(Scene.scene_id).where(Scene.video_id == "v", Scene.idx == 2)).one()
    stray = sidecar_key("u", "v", str(scene), 900)
    runtime.storage.put_bytes(
        "sidecars", stray, json.dumps({"people": [{"person_id": name}]}).encode(), "a/b"
    )
    plain = sidecar_key("u", "v", str(scene), 901)
    runtime.storage.put_bytes("sidecars", plain, json.dumps({"people": [], name: name}).encode(), "a/b")

    client = redis.Redis.from_url(redis_server.url)
    view = {"person_id": name, "user_id": "u", "name": "Ann", "state": "ready"}
    doomed = [
        answer(client, "u", view),
        answer(client, "u", {"people": [view], "next_after": None}),
        answer(client, "u", {"hits": [{"highlights": {"people": [{"person_id": name, "name": "Ann"}]}}]}),
        answer(client, "u", {"events": [{"person_id": "b", "name": "Bea", "old_name": "Ann"}]}),
    ]
    error = {
        "exc_type": "Conflict",
        "exc_message": [f"a person 'Ann' exists already {name}"],
        "exc_module": "m",
    }
    told = answer(client, "u", error, "FAILURE")
    kept = {
        key: client.get(key)
        for key in (
            answer(client, "w", {**view, "user_id": "w"}),
            answer(client, "w", error, "FAILURE"),
            answer(client, None, view),
            answer(client, "u", {"person_id": "b", "name": "Bea", "text": name, name: 17, "n": "Anna"}),
        )
    }
    for foreign in ("other:app", name, f"celery-task-meta-{name}", "scenefleet:page:x"):
        client.set(foreign, json.dumps({"person_id": name, "name": "Ann", "status": "SUCCESS"}))
        kept[foreign.encode()] = client.get(foreign)
    before = documents(runtime, "w")
    bystander = {key: text_ for key, text_ in documents(runtime, "u").items() if key not in (stray, plain)}

    erase(mine)
    assert shown(mine).state == "erasing" and shown(mine).scenes == 0
    work(runtime)
    found = shown(mine)
    assert found.state == "erased", found
    assert found.receipt["state"] == "complete" and set(found.receipt["left"].values()) == {0}
    assert found.receipt["removed"]["photo files"] == 1 and found.receipt["removed"]["face tracks"] == 1
    assert people_named(runtime, "u") == {"b"} and plain in documents(runtime, "u")
    assert stray not in documents(runtime, "u")
    after = documents(runtime, "u")
    unchanged = {
        key
        for key, document in bystander.items()
        if not any(w["person_id"] == name for w in document["people"])
    }
    assert unchanged <= after.keys() and len(unchanged) == 2
    assert documents(runtime, "w") == before and shown(theirs, "w").scenes == 1
    assert len(list(runtime.storage.list("uploads", "faces/"))) == 2
    assert [client.get(key) for key in doomed] == [None] * 4
    said = json.loads(client.get(told))["result"]["exc_message"]
    assert said == [f"a person '(erased)' exists already {name}"] and client.ttl(told) > 0
    assert {key: client.get(key) for key in kept} == kept
    client.close()


def _enrol(person: str, place: int, user: str) -> None:
    from tests.integration.test_people import claim, finish, look

    change(person, lambda session, row: person_runs.start(session, row, POLICY), user)
    while (claimed := claim("face")) is not None:
        finish(claimed, look(claimed, [axis(place)]))


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
            job = session.scalars(select(Job).where(Job.stage == "erase_person")).one()
            assert job.state == "queued"
            pauses.append(
                session.execute(
                    text(
                        "SELECT extract(epoch FROM not_before - clock_timestamp()) FROM jobs WHERE job_id = :id"
                    ),
                    {"id": job.job_id},
                ).scalar_one()
            )
        skip_pauses()
    found = shown(ann)
    assert found.state == "erasing" and found.receipt["state"] == "incomplete"
    assert found.receipt["left"]["cached results"] == 3
    assert [round(pause) for pause in pauses[-7:]] == sorted(round(pause) for pause in pauses[-7:])
    assert pauses[-1] > 50


def test_a_photo_stored_by_an_older_url_after_the_erasure_is_removed_when_the_url_has_ended(
    stack: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real S3 server over HTTP; the other person's photo stays."""
    monkeypatch.setattr(erase_person, "UPLOAD_GRACE_S", 0.0)
    monkeypatch.setattr(photos, "UPLOAD_GRACE_S", 0.0)
    with moto_server() as server:
        runtime = stack(
            STORAGE_BACKEND="minio",
            STORAGE_ENDPOINT=server.endpoint,
            STORAGE_ACCESS_KEY=server.access_key,
            STORAGE_SECRET_KEY=server.secret_key.get_secret_value(),
            UPLOAD_LINK_S="15",
        )
        ann, bea = create("Ann", person_id="a"), create("Bea", person_id="aa")
        slots = {
            person: requests.add_photo(user_id="u", person_id=person, extension="png")
            for person in (ann, bea)
        }
        removed = requests.add_photo(user_id="u", person_id=bea, extension="png")
        assert "X-Amz-Expires=15" in removed["upload_url"]
        for slot in slots.values():
            put(slot["upload_url"])
        erase(ann)
        requests.remove_photo(user_id="u", person_id=bea, photo_id=removed["photo_id"])
        work(runtime)
        found = shown(ann)
        assert found.state == "erased" and found.receipt["removed"]["photo files"] == 1
        assert "sweep_due" in found.receipt
        for slot in (slots[ann], removed):
            put(slot["upload_url"])
            assert runtime.storage.exists("uploads", slot["storage_key"])
        deadline = time.monotonic() + 60
        while "sweep_due" in shown(ann).receipt or runtime.storage.exists("uploads", removed["storage_key"]):
            assert time.monotonic() < deadline
            runner.work("housekeeping", runtime)
            time.sleep(0.1)
        keys = {stored.key for stored in runtime.storage.list("uploads", "faces/")}
        assert keys == {slots[bea]["storage_key"]}
        assert shown(ann).receipt["removed"]["late photo files"] == 1


def put(url: str) -> None:
    request = urllib.request.Request(url, data=b"photo", method="PUT")
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 200


def test_many_objects_are_removed_in_few_calls(stack: Callable[..., Runtime]) -> None:
    with moto_server() as server:
        runtime = stack(
            STORAGE_BACKEND="minio",
            STORAGE_ENDPOINT=server.endpoint,
            STORAGE_ACCESS_KEY=server.access_key,
            STORAGE_SECRET_KEY=server.secret_key.get_secret_value(),
        )
        for number in range(3):
            runtime.storage.put_bytes("tmp", f"tmp/u/{number}", b"x", "text/plain")
        runtime.storage.delete_many("tmp", ["tmp/u/0", "tmp/u/2", "tmp/u/gone"])
        assert [found.key for found in runtime.storage.list("tmp", "tmp/u/")] == ["tmp/u/1"]
        runtime.storage.delete_many("tmp", [])
