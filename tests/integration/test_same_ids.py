"""Two users who choose the same ids do not notice each other: what one is answered is the same with and without the other.

Random requests of two users about videos and people of the same ids, in one order with both of them and once more with
the first user's alone. Only what the fleet makes (times, uuids, numbers of events) may differ.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from db.engine import get_engine, transact
from db.ids import person_key, video_key
from db.ledger import jobs, subjects
from db.scenes import Words, scene_id, write_scenes
from db.tables import Base, Job, Person, Scene, ScenePerson, Video
from shared.contracts import SearchScenes, parse
from shared.errors import Conflict, InvalidKey, NotFound, ScenefleetError
from shared.storage import Storage, sidecar_key
from tasks import people, video
from tests.integration.conftest import Configure
from tests.support.ledger import POLICY, claim, execute, finish, read
from tests.support.scenes import publish_scene
from worker import stages
from worker.runtime import Runtime
from worker.search import answer, plan
from worker.stages.context import StageContext

pytestmark = pytest.mark.usefixtures("database")

FIRST, OTHER = "u", "u1"
VIDEOS, PEOPLE = ("17", "text", "u1"), ("17", "text", "unknown")
NAMES = ("Ann", "Bea")
#: Requests about one of them.
OF_VIDEO = ("status", "scenes", "subtitles", "cancel", "retry", "rerun", "delete")
OF_PERSON = ("get", "photos", "add_photo", "faces", "enroll", "delete", "cancel")
#: What the fleet makes, differently every time.
_MADE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|photo_\d+|\d{4}-\d\d-\d\dT[\d:.]+Z?"
)
_COUNTED = re.compile(r"('event_id': |'undoes': |'undone_by': |event )\d+")


@pytest.fixture
def runtime(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """This process's; no wake-up message is sent."""
    monkeypatch.setattr("tasks.requests.notify", lambda wake_ups: None)
    made = configure()
    made.storage.ensure_buckets()
    return made


def ask(request: Callable[..., Any], user: str, **payload: Any) -> str:
    """The answer of a request, or its error, as text without what differs every time."""
    try:
        said = str(request(user_id=user, **payload))
    except ScenefleetError as error:
        said = f"{error.code}: {error}"
    return _COUNTED.sub(r"\1N", _MADE.sub("MADE", said))


def index(user: str, name: str) -> str:
    """Publish a video of one scene, if it waits for that: what a fleet would make of it."""
    key = video_key(user, name)

    def write(session: Any) -> str:
        found = subjects.lock_video(session, key)
        if found is None or found.state != "uploaded":
            return "nothing to do"
        scene = scene_id(key, found.run, 0)
        rows = [{"idx": 0, "start_s": 0.0, "end_s": 1.0, "kind": "start", "keyframes": []}]
        write_scenes(session, key, user, found.run, rows)
        made = dict.fromkeys(("split", "text", "vision", "face", "ocr"), found.run)
        stored = sidecar_key(user, name, str(scene), found.run)
        publish_scene(session, scene, Words(f"a rocket of {user}", "en"), stored, made)
        jobs.cancel(session, Job.video_id == key)
        found.state, found.published_run = "indexed", found.run
        return "indexed"

    return transact(write)


def process(user: str) -> None:
    """Publish the user's video 17."""
    video.process(user_id=user, video_id="17", storage_key=f"uploads/{user}/17/a.mp4")
    assert index(user, "17") == "indexed"


def search(runtime: Runtime, user_id: str, **payload: Any) -> dict[str, Any]:
    request = parse(SearchScenes, {"user_id": user_id, "mode": "keyword", "query": "rocket", **payload})
    made = plan.plan(request, runtime)
    return answer.answer(request, runtime, made, {}).model_dump(mode="json")


def random_act(rng: random.Random, runtime: Runtime) -> Callable[[str], str]:
    """One thing a user does."""
    name, who, into, called = rng.choice(VIDEOS), rng.choice(PEOPLE), rng.choice(PEOPLE), rng.choice(NAMES)
    place = f"{name}/{rng.choice(('a.mp4', 'b.mp4'))}"
    of_video, of_person = getattr(video, rng.choice(OF_VIDEO)), getattr(people, rng.choice(OF_PERSON))
    acts: dict[Callable[[str], str], int] = {
        lambda user: ask(video.process, user, video_id=name, storage_key=f"uploads/{user}/{place}"): 20,
        lambda user: ask(video.process, user, video_id=name, storage_key=f"uploads/{user}x/{place}"): 10,
        lambda user: index(user, name): 10,
        lambda user: ask(partial(search, runtime), user, video_ids=[name]): 10,
        lambda user: ask(of_video, user, video_id=name): 20,
        lambda user: ask(people.create, user, name=called, person_id=who): 20,
        lambda user: ask(of_person, user, person_id=who): 20,
        lambda user: ask(people.rename, user, person_id=who, name=called): 3,
        lambda user: ask(people.merge, user, person_id=who, into=into): 3,
        lambda user: ask(people.list_people, user): 2,
        lambda user: ask(people.list_events, user): 2,
    }
    return rng.choices(list(acts), list(acts.values()))[0]


def empty() -> None:
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables if "user_id" in table.c)
    with get_engine().begin() as connection:
        connection.execute(text(f"TRUNCATE {tables}, runs CASCADE"))


@pytest.mark.parametrize("seed", range(12))
def test_what_a_user_is_answered_does_not_depend_on_another(runtime: Runtime, seed: int) -> None:
    rng = random.Random(seed)
    acts = [(rng.random() < 0.5, random_act(rng, runtime)) for _ in range(80)]
    empty()
    together = [(act(FIRST) if first else act(OTHER), first) for first, act in acts]
    empty()
    alone = [act(FIRST) for first, act in acts if first]
    assert [said for said, first in together if first] == alone
    assert sum("Error" not in said and "NotFound" not in said for said in alone) > 10
    told = [said for said, _ in together]
    assert not [said for said in told if "another" in said and "user" in said]
    for said, first in together:
        stranger = OTHER if first else FIRST
        assert f"'user_id': '{stranger}'" not in said and f"s/{stranger}/" not in said


def test_a_refused_request_stores_nothing_and_blocks_nobody(runtime: Runtime) -> None:
    for key in ("uploads/u1/17/a.mp4", "uploads/u/170/a.mp4", "../x", "uploads/u/17"):
        with pytest.raises(InvalidKey):
            video.process(user_id=FIRST, video_id="17", storage_key=key)
    assert read(select(Video)) == []
    with pytest.raises(NotFound):
        video.status(user_id=FIRST, video_id="17")
    for user in (OTHER, FIRST):
        receipt = video.process(user_id=user, video_id="17", storage_key=f"uploads/{user}/17/a.mp4")
        assert (receipt["video_id"], receipt["user_id"], receipt["accepted"]) == ("17", user, True)
    people.create(user_id=FIRST, name="Ann", person_id="17")
    with pytest.raises(Conflict):
        people.create(user_id=FIRST, name="Ann", person_id="18")
    assert read(select(Person.person_id)) == [person_key(FIRST, "17")]


def test_the_same_request_gives_the_same_scene_ids_and_another_users_others(runtime: Runtime) -> None:
    made: list[dict[str, str]] = []
    for _ in range(2):
        empty()
        for user in (FIRST, OTHER):
            process(user)
        shown = {user: video.scenes(user_id=user, video_id="17")["scenes"][0] for user in (FIRST, OTHER)}
        assert all(scene["video_id"] == "17" for scene in shown.values())
        assert all(scene["sidecar_key"].startswith(f"sidecars/{user}/17/") for user, scene in shown.items())
        made.append({user: scene["scene_id"] for user, scene in shown.items()})
    assert made[0] == made[1] and made[0][FIRST] != made[0][OTHER]


def test_a_row_from_before_is_known_by_the_id_it_had(runtime: Runtime) -> None:
    def write(session: Any) -> None:
        session.add(Video(video_id="old", user_id=FIRST, storage_key="uploads/u/old/a.mp4", run=1))
        session.add(Person(person_id="old", user_id=FIRST, name="Ann"))

    transact(write)
    again = video.process(user_id=FIRST, video_id="old", storage_key="uploads/u/old/a.mp4")
    assert (again["video_id"], again["accepted"]) == ("old", False)
    assert people.create(user_id=FIRST, name="Ann", person_id="old")["accepted"] is False
    other = video.process(user_id=OTHER, video_id="old", storage_key="uploads/u1/old/a.mp4")
    assert (other["video_id"], other["accepted"]) == ("old", True)
    assert people.create(user_id=OTHER, name="Ann", person_id="old")["accepted"] is True


def objects(storage: Storage) -> set[str]:
    return {found.key for bucket in ("uploads", "sidecars", "tmp") for found in storage.list(bucket, "")}


def work_off(runtime: Runtime) -> None:
    """Do every job of housekeeping that waits: they erase something."""
    while (claimed := claim("housekeeping")) is not None:
        folder = runtime.work_dir / claimed.storage_part
        folder.mkdir(parents=True, exist_ok=True)
        context = StageContext(claimed=claimed, runtime=runtime, folder=folder, report=lambda fraction: None)
        done = stages.run(context)
        finish(claimed, done.write, policy=replace(POLICY, tmp_ttl_s=0), **done.result)


def test_deleting_a_video_leaves_the_other_users_of_the_same_id(runtime: Runtime) -> None:
    for user in (FIRST, OTHER):
        runtime.storage.put_bytes("uploads", f"uploads/{user}/17/a.mp4", b"film", "video/mp4")
        process(user)
        scene = video.scenes(user_id=user, video_id="17")["scenes"][0]
        runtime.storage.put_bytes("sidecars", scene["sidecar_key"], b"{}", "application/json")
        runtime.storage.put_bytes("tmp", f"tmp/{user}/17/1.1/audio.wav", b"sound", "audio/wav")
    before = objects(runtime.storage)
    answers = [request(user_id=OTHER, video_id="17") for request in (video.status, video.scenes)]
    assert video.delete(user_id=FIRST, video_id="17")["state"] == "deleted"
    work_off(runtime)
    assert objects(runtime.storage) == {key for key in before if key.split("/")[1] == OTHER}
    assert [request(user_id=OTHER, video_id="17") for request in (video.status, video.scenes)] == answers
    with pytest.raises(NotFound):
        video.status(user_id=FIRST, video_id="17")
    assert set(read(select(Scene.user_id))) == {OTHER}
    assert [hit["video_id"] for hit in search(runtime, OTHER, video_id="17")["hits"]] == ["17"]
    assert search(runtime, FIRST, video_id="17")["hits"] == []


def test_people_of_the_same_id_are_found_apart(runtime: Runtime) -> None:
    confidences = {FIRST: 0.9, OTHER: 0.4}
    for user, confidence in confidences.items():
        process(user)
        people.create(user_id=user, name="Ann", person_id="17")
        seen = {"scene_id": scene_id(video_key(user, "17"), 1, 0), "person_id": person_key(user, "17")}
        execute(insert(ScenePerson).values(**seen, user_id=user, confidence=confidence, frame_count=1))
    for user, confidence in confidences.items():
        (hit,) = search(runtime, user, persons=["17"])["hits"]
        (who,) = hit["highlights"]["people"]
        assert (hit["video_id"], who["person_id"], who["confidence"]) == ("17", "17", confidence)
        view = people.get(user_id=user, person_id="17")
        assert (view["person_id"], view["scenes"], view["videos"]) == ("17", 1, 1)
    assert search(runtime, FIRST, persons=["17", "nobody"], persons_match="all")["hits"] == []
    assert search(runtime, FIRST, video_ids=["nothing"])["hits"] == []
