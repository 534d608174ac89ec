"""Requests about people in this process: the feature flag, wrong payloads, tenancy, revisions, who is erased."""

from __future__ import annotations

import random
from functools import partial

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import people_in
from db.ledger import subjects
from db.people import erasure, registry, revisions
from db.scenes import scene_id
from db.tables import FaceTrack, Job, PeopleEvent, Person, Scene, ScenePerson, Video
from shared.contracts import ListPeople
from shared.errors import Conflict, InvalidRequest, NotFound
from tasks import people as requests
from tests.integration.conftest import Configure
from tests.support.ledger import read
from tests.support.people import (
    POLICY,
    axis,
    change,
    create,
    enrol,
    film,
    judge,
    match_all,
    merge,
    named,
    rename,
    tracks,
    undo,
)
from tests.support.services import RedisServer

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def configure(configure: Configure, redis_server: RedisServer) -> Configure:
    """With a Redis."""
    set_all = partial(configure, REDIS_URL=redis_server.url)
    set_all()
    return set_all


def test_enrolment_is_switched_off_and_on_without_loss(configure: Configure) -> None:
    person = enrol("Ann", axis(0))
    film("v", [[axis(0)]])
    configure(FEATURE_FACE_ENROLLMENT="false")
    ids = {"user_id": "u", "person_id": person}
    for ask, payload in (
        (requests.create, {"user_id": "u", "name": "Bea"}),
        (requests.add_photo, ids),
        (requests.enroll, ids),
    ):
        with pytest.raises(Conflict, match="FEATURE_FACE_ENROLLMENT is off"):
            ask(**payload)
    film("w", [[axis(0, 0.9)]])
    assert requests.get(**ids)["scenes"] == 2 and requests.rename(**ids, name="Anna")["name"] == "Anna"
    configure(FEATURE_FACE="false", FEATURE_FACE_ENROLLMENT="true")
    with pytest.raises(Conflict, match="people can't be enrolled: FEATURE_FACE is off"):
        requests.create(user_id="u", name="Bea")
    configure(FEATURE_FACE="true")
    assert requests.create(user_id="u", name="Bea")["accepted"]
    assert requests.get(**ids)["good_photos"] == 1


def test_a_wrong_payload_is_one_sentence(configure: Configure) -> None:
    person = create("Ann")
    for ask, payload, says in (
        ("create", {"name": ""}, "name=''"),
        ("create", {"name": " Ann"}, "name=' Ann'"),
        ("create", {"name": "A\nB"}, "name="),
        ("create", {"name": "A" * 201}, "name="),
        ("create", {"name": "Ann\x00"}, "name="),
        ("create", {"name": "Ann", "person_id": "../x"}, "person_id='../x'"),
        ("add_photo", {"person_id": "p", "extension": "svg"}, "extension='svg'"),
        ("list_people", {"limit": 0}, "limit=0"),
        ("split", {"person_id": "p", "track_ids": []}, "track_ids"),
        ("undo", {"event_id": 2**63}, "event_id="),
        ("merge", {"person_id": "p", "into": "p"}, "names? the person itself|is the person itself"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            getattr(requests, ask)(user_id="u", **payload)
    for track in ("no-uuid", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(NotFound, match=track):
            requests.judge(user_id="u", person_id=person, track_ids=[track], is_person=True)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_found_in_another_users_video(seed: int) -> None:
    """Users whose people and videos have the same few faces, in a random order."""
    rng = random.Random(seed)
    users = ["u", "u1", "u_", "U"]
    for step in range(8):
        user = rng.choice(users)
        if rng.random() < 0.5:
            enrol(f"p{rng.randint(0, 2)}-{step}", axis(rng.randint(0, 2)), user=user)
        else:
            film(f"v{step}", *[[[axis(rng.randint(0, 3))] * 2] for _ in range(2)], user=user)
        match_all()
    with reading() as session:
        shown = (
            select(Video.user_id, Scene.user_id, ScenePerson.user_id, Person.user_id)
            .join(Scene, Scene.video_id == Video.video_id)
            .join(ScenePerson, ScenePerson.scene_id == Scene.scene_id)
            .join(Person, Person.person_id == ScenePerson.person_id)
        )
        matched = select(FaceTrack.user_id, Person.user_id).join(
            Person, Person.person_id == FaceTrack.person_id
        )
        assert all(len(set(row)) == 1 for query in (shown, matched) for row in session.execute(query))


def stale() -> set[int]:
    with reading() as session:
        return {idx for _, idx, _ in revisions.stale_scenes(session, "v", 100)}


def who() -> dict[int, set[str]]:
    return {idx: set(found) for idx, found in named().items()}


def test_a_sidecar_overtaken_by_another_change_is_not_shown() -> None:
    ann = enrol("Ann", axis(0))
    film("v", [[axis(0)]], [[axis(0)]])
    first, second = scene_id("v", 1, 0), scene_id("v", 1, 1)
    before = transact(lambda session: people_in(session, {first: 1, second: 1}))
    rename(ann, "Anna")
    now = transact(lambda session: people_in(session, {first: 1, second: 1}))
    written = {first: (None, "new.0", now[first]), second: (None, "new.1", before[second])}
    assert transact(lambda session: revisions.show(session, written)) == ["new.1"]
    assert stale() == {1}
    # The next one replaces what is shown, unless that is not what it was made from.
    assert transact(lambda s: revisions.show(s, {first: ("other", "new.2", now[first])})) == ["new.2"]
    assert transact(lambda s: revisions.show(s, {first: ("new.0", "new.3", now[first])})) == ["new.0"]


def test_each_stale_video_gets_one_revision_at_a_time() -> None:
    enrol("Ann", axis(0))
    film("v", [[axis(0)]])

    def queue(session: Session) -> int:
        found = subjects.lock_videos(session, revisions.stale_videos(session))
        for video in found.values():
            revisions.queue(session, video, POLICY)
        return len(found)

    assert transact(queue) == 1 and transact(queue) == 0
    (job,) = read(select(Job).where(Job.stage == "rewrite_sidecars"))
    assert (job.video_id, job.run, job.queue) == ("v", 1, "housekeeping")


def test_erasing_takes_those_merged_into_a_person_along_and_nobody_else() -> None:
    ann, other = enrol("Ann", axis(0)), enrol("Bea", axis(1))
    ben = enrol("Ben", axis(2))
    film("v", [[axis(0)], [axis(2)]], [[axis(1)]])
    merge(other, ann)
    match_all()
    assert who() == {0: {"Ann", "Ben"}, 1: {"Ann"}}
    # What was said about somebody who stays does not keep the id of whose the face had been.
    track = next(row for row in tracks("v") if row.person_id == ann)
    event = judge(ben, track, is_person=True)
    judge(ann, track, is_person=True)
    change(ann, lambda session, row: erasure.begin(session, row, POLICY))
    with reading() as session:
        job = session.scalars(select(Job).where(Job.stage == "erase_person")).one()
        assert set(job.payload["ids"]) == {ann, other} and len(job.payload["keys"]) == 2
        page = registry.list_page(session, ListPeople(user_id="u", kind="named"))
        assert [person.name for person in page.people] == ["Ben"], "hidden at once"
    for step in erasure.STEPS.values():
        while transact(lambda session, step=step: step(session, ann, [ann, other], 100)):  # type: ignore[misc]
            pass
    assert who() == {0: {"Ben"}} and stale() == {0, 1}
    with reading() as session:
        assert "were" not in session.get_one(PeopleEvent, event).payload
        left = erasure.rows_left(session, "u", [ann, other], ["Ann", "Bea"])
        assert set(left.values()) == {0}, left
        assert session.scalars(select(FaceTrack.person_id)).all() == [ben]
        noted = {erasure.NO_SCENE, scene_id("v", 1, 0), scene_id("v", 1, 1)}
        assert erasure.noted_scenes(session, ann, "v") == noted
        assert erasure.is_waiting(session, ann, "u", erasure.now(session))
    with pytest.raises(NotFound):
        change(ann, lambda session, row: None)
    film("v", [[axis(0)], [axis(2)]], [[axis(1)]], run=2)
    assert who() == {0: {"Ben"}}
    with pytest.raises(NotFound):
        undo(1)
