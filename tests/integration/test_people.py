"""People on a real Postgres: made-up vectors through photos, profiles, matching, decisions, clusters, erasure."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from pgvector import HalfVector
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import as_array, people_in, refresh_scene_people, write_tracks
from db.faces.vote import FaceRule
from db.ledger import attempts, claims, person_runs, subjects, video_runs
from db.ledger.claims import Claim
from db.ledger.jobs import Subject
from db.ledger.policy import RunPolicy
from db.people import acts, photos, registry
from db.people.unknowns import assign_people
from db.scenes import face_id, page, scene_id, write_faces, write_scenes
from db.tables import FaceTrack, Job, Person, PersonProfile, Run, Scene, ScenePerson, Video
from db.vectors import ensure_model
from shared.contracts import CreatePerson, ListPeople
from shared.errors import Conflict, LeaseLost, ModelFailure, NotFound
from shared.storage import StorageConfig, open_storage
from worker.stages import erase_video
from worker.stages.context import StageContext

pytestmark = pytest.mark.usefixtures("database")

POLICY = RunPolicy(skips={}, max_failures=2, tmp_ttl_s=60)
RULE = FaceRule()
DIM = 512


def axis(place: int, cosine: float = 1.0, rest: int = 500) -> np.ndarray:
    found = np.zeros(DIM, np.float32)
    found[place], found[rest] = cosine, np.sqrt(1 - cosine**2)
    return found


def model_id() -> int:
    return transact(
        lambda s: ensure_model(s, name="face", revision="1", family="face", dim=DIM, metric="cosine")
    ).model_id


def film(
    video: str, *scenes: Sequence[Sequence[np.ndarray]], user: str = "u", run: int = 1, split: int = 1
) -> None:
    """Publish a video; each scene is a list of tracks, each track a list of the vectors of its faces.

    Track n stands at x = 200 n of the picture in all keyframes, one a second.
    """
    model = model_id()

    def write(session: Session) -> None:
        row = session.get(Video, video)
        if row is None:
            row = Video(video_id=video, user_id=user, storage_key="k", state="indexed")
            session.add(row)
        row.run = row.published_run = run
        session.flush()
        session.add(Run(video_id=video, run=run, stages=["face"], stage_runs={"split": split, "face": run}))
        rows, faces, ids, start_s = [], [], [], 0.0
        for idx, tracks in enumerate(scenes):
            frames = max((len(track) for track in tracks), default=1)
            scene = scene_id(video, split, idx)
            ids.append(scene)
            keyframes = [
                {"ordinal": o, "ts_s": start_s + o, "key": f"k{idx}.{o}", "width": 960, "height": 540}
                for o in range(frames)
            ]
            rows.append(
                {
                    "idx": idx,
                    "start_s": start_s,
                    "end_s": start_s + frames,
                    "kind": "cut",
                    "keyframes": keyframes,
                }
            )
            for number, track in enumerate(tracks):
                faces += [
                    {
                        "face_id": face_id(scene, run, ordinal, number), "scene_id": scene, "user_id": user,
                        "run": run, "ordinal": ordinal, "ts_s": start_s + ordinal,
                        "box": [200.0 * number, 50.0, 100.0, 100.0], "landmarks": [], "det_score": 0.9,
                        "model_id": model, "vec": HalfVector(vec), "quality": None, "track": number,
                    }
                    for ordinal, vec in enumerate(track)
                ]  # fmt: skip
            start_s += frames
        if split == run:
            write_scenes(session, video, user, split, rows)
        session.execute(
            text(
                "UPDATE scenes SET live = (split_version = :split), face_run = :run WHERE video_id = :video"
            ),
            {"split": split, "run": run, "video": video},
        )
        write_faces(session, run, ids, faces)
        write_tracks(session, video, user, run, ids, "cosine")
        locked = subjects.lock_video(session, video)
        assert locked is not None
        assign_people(session, locked, RULE)

    transact(write)


def create(name: str, user: str = "u", **options: Any) -> str:
    request = CreatePerson(user_id=user, name=name, **options)
    return transact(lambda session: registry.create(session, request)).person_id


def change(person: str, act: Any, user: str = "u") -> Any:
    return transact(lambda session: act(session, registry.lock(session, person, user)))


def claim(queue: str) -> Claim | None:
    return transact(lambda session: claims.claim(session, queue, "n:1:0:2", 60.0))


def must_claim(queue: str) -> Claim:
    found = claim(queue)
    assert found is not None
    return found


def finish(claimed: Claim, write: Any) -> None:
    transact(lambda session: attempts.finish(session, claimed, write, {}, POLICY))


def look(claimed: Claim, vectors: Sequence[Any]) -> Any:
    """What the enroll stage writes: a vector, or an error, per photo."""
    model = model_id()
    results = {
        UUID(photo): photos.PhotoResult(state="refused", error_class="NoFace", error="No face.")
        if vec is None
        else photos.PhotoResult(state="good", model_id=model, vec=HalfVector(vec))
        for photo, vec in zip(claimed.payload["photo_ids"], vectors, strict=False)
    }
    return lambda session: photos.write_photos(session, claimed.subject.id, results)


def match_all() -> int:
    """Run every match job."""
    count = 0
    while (claimed := claim("housekeeping")) is not None:
        assert claimed.stage == "match"

        def write(session: Session, claimed: Claim = claimed) -> None:
            video = subjects.lock_video(session, claimed.payload["video_id"])
            assert video is not None
            assign_people(session, video, RULE)

        finish(claimed, write)
        count += 1
    return count


def enrol(name: str, *vectors: Any, user: str = "u") -> str:
    person = create(name, user)
    for _ in vectors:
        change(person, lambda session, row: registry.add_photo(session, row, "jpg"), user)
    change(person, lambda session, row: person_runs.start(session, row, POLICY), user)
    while (claimed := claim("face")) is not None:
        finish(claimed, look(claimed, vectors))
    return person


def tracks(video: str) -> list[FaceTrack]:
    with reading() as session:
        return list(
            session.scalars(
                select(FaceTrack).where(FaceTrack.video_id == video).order_by(FaceTrack.ts_s, FaceTrack.track)
            )
        )


def seen(video: str = "v") -> dict[int, dict[str, tuple[float, int]]]:
    """Scene -> name -> confidence, frames."""
    with reading() as session:
        rows = session.execute(
            select(Scene.idx, Person.name, ScenePerson.confidence, ScenePerson.frame_count)
            .join(ScenePerson, ScenePerson.scene_id == Scene.scene_id)
            .join(Person, Person.person_id == ScenePerson.person_id)
            .where(Scene.video_id == video, Scene.live)
        )
        found: dict[int, dict[str, tuple[float, int]]] = {}
        for idx, name, confidence, count in rows:
            found.setdefault(idx, {})[name] = (round(confidence, 2), count)
        return found


def named(video: str = "v") -> dict[int, dict[str, tuple[float, int]]]:
    """As ``seen``, without the unknown."""
    found = {
        idx: {name: facts for name, facts in people.items() if not name.startswith("unknown")}
        for idx, people in seen(video).items()
    }
    return {idx: people for idx, people in found.items() if people}


def state(person: str, user: str = "u") -> Any:
    with reading() as session:
        return registry.view(session, registry.get(session, person, user))


def test_a_person_added_today_is_found_in_yesterdays_videos() -> None:
    film("v", [[axis(0, 0.9)] * 3, [axis(1)] * 2], [[axis(1)] * 2])
    film("w", [[axis(0, 0.8)]])
    film("x", [[axis(0)]], user="other")
    assert named() == {}
    person = enrol("Ann", axis(0))
    assert state(person).state == "working"
    assert match_all() == 2
    assert named() == {0: {"Ann": (0.9, 3)}}
    assert named("w") == {0: {"Ann": (0.8, 1)}}
    assert named("x") == {}, "another user's video"
    shown = state(person)
    assert (shown.state, shown.scenes, shown.videos, shown.good_photos) == ("ready", 2, 2, 1)


def test_a_new_video_is_matched_at_once() -> None:
    enrol("Ann", axis(0))
    film("v", [[axis(0, 0.7)]], [[axis(0, 0.5)]])
    assert seen() == {0: {"Ann": (0.7, 1)}}


def test_a_bad_photo_does_not_stop_the_good_ones() -> None:
    person = enrol("Ann", None, axis(0), None)
    with reading() as session:
        found = registry.photos_of(session, registry.get(session, person, "u"))
    assert sorted(photo.state for photo in found) == ["good", "refused", "refused"]
    assert state(person).state == "ready"


def test_without_a_good_photo_nobody_is_known() -> None:
    person = enrol("Ann", None)
    assert state(person).state == "empty"
    film("v", [[axis(0)]])
    assert seen() == {}


def test_near_misses_of_two_people_stay_unlabelled() -> None:
    twin = axis(0, 0.95, rest=1)
    enrol("Ann", axis(0))
    enrol("Bea", twin)
    film("v", [[axis(0, 0.99)] * 3], [[axis(2)]])
    assert seen() == {}
    (near, stranger) = tracks("v")
    assert (near.person_id, near.decided_by) == (None, "machine")
    assert (stranger.person_id, stranger.decided_by) == (None, None)


def test_nobody_is_at_two_places_at_once() -> None:
    enrol("Ann", axis(0))
    film("v", [[axis(0, 0.9)] * 2, [axis(0, 0.8)] * 2])
    assert [track.person_id is not None for track in tracks("v")] == [True, False]
    assert seen() == {0: {"Ann": (0.9, 2)}}


def test_a_photo_removed_takes_its_matches_along() -> None:
    person = enrol("Ann", axis(0), axis(1))
    film("v", [[axis(0)]], [[axis(0, 0.75, rest=1)]])
    assert set(seen()) == {0, 1}
    with reading() as session:
        photos = registry.photos_of(session, registry.get(session, person, "u"))
    other = next(photo for photo in photos if as_array([photo.vec])[0, 1] == 1)

    def remove(session: Session, row: Person) -> Any:
        registry.remove_photo(session, row, str(other.photo_id))
        return person_runs.start(session, row, POLICY)

    change(person, remove)
    assert match_all() == 1
    assert seen()[0] == {"Ann": (1.0, 1)} and seen()[1] == {"Ann": (0.75, 1)}
    last = next(photo for photo in photos if photo.photo_id != other.photo_id)

    def remove_last(session: Session, row: Person) -> Any:
        registry.remove_photo(session, row, str(last.photo_id))
        return person_runs.start(session, row, POLICY)

    change(person, remove_last)
    match_all()
    assert (state(person).good_photos, state(person).state) == (0, "empty")
    assert {name for found in seen().values() for name in found} == {"unknown 1"}


def test_a_failed_look_is_told_per_photo_and_the_person_goes_on() -> None:
    person = create("Ann")
    change(person, lambda session, row: registry.add_photo(session, row, "jpg"))
    change(person, lambda session, row: person_runs.start(session, row, POLICY))
    for _ in range(POLICY.max_failures):
        claimed = must_claim("face")
        transact(lambda s, c=claimed: attempts.fail(s, c, ModelFailure("broken"), POLICY))
    with reading() as session:
        (photo,) = registry.photos_of(session, registry.get(session, person, "u"))
    assert (photo.state, photo.error_class, photo.error) == ("failed", "ModelFailure", "broken")
    assert state(person).state == "empty"


def test_a_change_ends_the_jobs_of_the_one_before() -> None:
    person = create("Ann")
    change(person, lambda session, row: registry.add_photo(session, row, "jpg"))
    change(person, lambda session, row: person_runs.start(session, row, POLICY))
    old = must_claim("face")
    change(person, lambda session, row: person_runs.start(session, row, POLICY))
    with pytest.raises(LeaseLost):
        finish(old, look(old, [axis(0)]))
    new = must_claim("face")
    finish(new, look(new, [axis(1)]))
    assert state(person).state == "ready"


def test_a_lost_worker_gives_the_job_back_and_cancel_stops_it() -> None:
    person = create("Ann")
    change(person, lambda session, row: registry.add_photo(session, row, "jpg"))
    change(person, lambda session, row: person_runs.start(session, row, POLICY))
    must_claim("face")
    with reading() as session:
        (held,) = attempts.held_jobs(session)
    assert held.subject == Subject("person", person)
    transact(lambda s: attempts.reclaim(s, held, ModelFailure("gone"), POLICY))
    assert must_claim("face").attempt == 2
    assert change(person, lambda session, row: person_runs.stop(session, row))
    assert claim("face") is None and state(person).state == "empty"


def test_a_person_whose_wake_ups_and_jobs_were_lost_is_advanced(monkeypatch: pytest.MonkeyPatch) -> None:
    film("v", [[axis(0)]])
    person = create("Ann")
    change(person, lambda session, row: registry.add_photo(session, row, "jpg"))
    change(person, lambda session, row: person_runs.start(session, row, POLICY))
    claimed = must_claim("face")
    with monkeypatch.context() as patch:
        patch.setattr(subjects, "advance", lambda *_: [])
        finish(claimed, look(claimed, [axis(0)]))
    with reading() as session:
        assert person_runs.find_stuck(session) == [person]
    change(person, lambda session, row: subjects.advance(session, row, POLICY))
    assert match_all() == 1 and seen() == {0: {"Ann": (1.0, 1)}}


def test_names_and_ids_are_the_users_own() -> None:
    request = CreatePerson(user_id="u", name="Ann", person_id="p1")
    views = [transact(lambda session: registry.create(session, request)) for _ in range(2)]
    assert [view.accepted for view in views] == [True, False]
    assert views[0].event_id is not None and views[1].event_id is None
    person = "p1"
    assert create("ann") == create("Ann", person_id="p1") == person
    assert create("Ann", "other", person_id="p1") == person, "another user's own"
    with pytest.raises(Conflict, match="already is 'Ann'"):
        create("Bea", person_id="p1")
    change(person, lambda session, row: registry.rename(session, row, "Zoe"), "other")
    with reading() as session:
        assert [registry.get(session, person, user).name for user in ("u", "other")] == ["Ann", "Zoe"]
    with pytest.raises(NotFound):
        change(person, lambda session, row: None, "third")
    bea = create("Bea")
    with pytest.raises(Conflict, match="a person 'ANN' exists already"):
        change(bea, lambda session, row: registry.rename(session, row, "ANN"))
    with reading() as session:
        page = registry.list_page(session, ListPeople(user_id="u", limit=1))
        rest = registry.list_page(session, ListPeople(user_id="u", after=page.next_after))
    assert [row.name for row in (*page.people, *rest.people)] == ["Ann", "Bea"]


def test_a_renamed_persons_sidecars_are_out_of_date() -> None:
    person = enrol("Ann", axis(0))
    film("v", [[axis(0)]], [[axis(1)]])
    transact(lambda s: s.execute(text("UPDATE scenes SET people_changed = false")))
    change(person, lambda session, row: registry.rename(session, row, "Anna"))
    with reading() as session:
        assert session.execute(select(Scene.idx, Scene.people_changed).order_by(Scene.idx)).all() == [
            (0, True),
            (1, False),
        ]


def test_a_sidecar_that_says_otherwise_is_noticed() -> None:
    enrol("Ann", axis(0))
    film("v", [[axis(0)]])
    scene = scene_id("v", 1, 0)

    def publish(session: Session) -> None:
        refresh_scene_people(session, [scene], people_in(session, {scene: 1}))

    transact(publish)
    with reading() as session:
        assert session.scalars(select(Scene.people_changed)).all() == [False]
    transact(lambda session: refresh_scene_people(session, [scene], {}))
    with reading() as session:
        assert session.scalars(select(Scene.people_changed)).all() == [True]


def test_jobs_of_people_wait_behind_videos() -> None:
    film("v", [[axis(0)]])
    enrol("Ann", axis(0))
    with reading() as session:
        match = session.scalars(select(Job).where(Job.stage == "match")).one()
    assert match.priority < 0 and match.queue == "housekeeping"


def face_of(video: str, idx: int = 0, run: int | None = None) -> FaceTrack:
    """The first track of a scene."""
    with reading() as session:
        query = (
            select(FaceTrack)
            .join(Scene, Scene.scene_id == FaceTrack.scene_id)
            .where(Scene.video_id == video, Scene.idx == idx, Scene.live, FaceTrack.track == 0)
        )
        query = query.where(FaceTrack.run == (Scene.face_run if run is None else run))
        return session.scalars(query).one()


def judge(person: str, video: str, idx: int = 0, *, is_person: bool) -> int:
    track = str(face_of(video, idx).track_id)
    return change(person, lambda s, row: acts.judge(s, row, [track], RULE, is_person=is_person))


def undo(event: int) -> None:
    transact(lambda session: acts.undo(session, "u", event, RULE, POLICY))
    match_all()


def unknowns() -> list[str]:
    with reading() as session:
        page = registry.list_page(session, ListPeople(user_id="u", kind="unknown"))
    return [person.name for person in page.people]


def id_of(name: str) -> str:
    with reading() as session:
        return session.scalars(
            select(Person.person_id).where(Person.user_id == "u", Person.name == name)
        ).one()


def test_strangers_seen_twice_get_numbers_of_their_user() -> None:
    film("v", [[axis(0)] * 2], [[axis(1)]], [[axis(2)]], [[axis(2, 0.9)]])
    assert seen() == {0: {"unknown 1": (1.0, 2)}, 2: {"unknown 2": (1.0, 1)}, 3: {"unknown 2": (1.0, 1)}}
    film("w", [[axis(1, 0.9)], [axis(0, 0.9)]])
    assert seen("w") == {0: {"unknown 3": (1.0, 1), "unknown 1": (0.9, 1)}}
    assert seen()[1] == {"unknown 3": (1.0, 1)}, "the face seen once in the other video"
    film("x", [[axis(0)] * 2], user="other")
    assert seen("x") == {0: {"unknown 1": (1.0, 2)}}
    assert unknowns() == ["unknown 1", "unknown 2", "unknown 3"]


def test_an_unknown_who_is_named_stays_known_and_can_be_unnamed() -> None:
    film("v", [[axis(0)] * 2])
    event = change(id_of("unknown 1"), lambda session, row: registry.rename(session, row, "Ann"))
    film("w", [[axis(0, 0.8)]])
    assert seen() == {0: {"Ann": (1.0, 2)}} and seen("w") == {0: {"Ann": (0.8, 1)}}
    assert unknowns() == []
    undo(event)
    assert unknowns() == ["unknown 1"]
    with pytest.raises(Conflict, match="has been undone by event"):
        undo(event)


def test_an_enrolled_person_takes_over_the_unknown() -> None:
    film("v", [[axis(0)] * 2])
    assert unknowns() == ["unknown 1"]
    enrol("Ann", axis(0))
    match_all()
    assert seen() == {0: {"Ann": (1.0, 2)}} and unknowns() == []


def test_not_this_person_holds_in_later_runs_and_splits_and_is_undone() -> None:
    ann = enrol("Ann", axis(0))
    film("v", [[axis(0)] * 2], [[axis(0)]])
    event = judge(ann, "v", is_person=False)
    assert "Ann" not in seen().get(0, {}) and "Ann" in seen()[1]
    film("v", [[axis(0)] * 2], [[axis(0)]], run=2)
    assert "Ann" not in seen().get(0, {}) and "Ann" in seen()[1]
    # A new split has one scene of what were two: the decision is about a time and a place.
    film("v", [[axis(0)] * 2], run=3, split=3)
    assert "Ann" not in seen().get(0, {})
    undo(event)
    assert seen() == {0: {"Ann": (1.0, 2)}}


def test_what_a_human_said_is_not_overruled_by_a_machine() -> None:
    ann, bea = enrol("Ann", axis(0)), enrol("Bea", axis(1))
    film("v", [[axis(0)] * 2])
    judge(bea, "v", is_person=True)
    assert seen() == {0: {"Bea": (1.0, 2)}} and face_of("v").decided_by == "human"
    change(ann, lambda session, row: person_runs.start(session, row, POLICY))
    match_all()
    film("v", [[axis(0)] * 2], run=2)
    assert seen() == {0: {"Bea": (1.0, 2)}}


def test_two_unknowns_that_are_one_are_merged_and_parted_again() -> None:
    film("v", [[axis(0)] * 2], [[axis(1)] * 2])
    one, two = id_of("unknown 1"), id_of("unknown 2")

    def merge(session: Session) -> int:
        person, into = acts.lock_two(session, two, one, "u")
        return acts.merge(session, person, into, POLICY)[0]

    event = transact(merge)
    assert seen()[1].keys() == {"unknown 1"} and unknowns() == ["unknown 1"]
    match_all()
    film("v", [[axis(0)] * 2], [[axis(1)] * 2], run=2)
    assert seen()[1].keys() == {"unknown 1"}, "it holds in the next run"
    with pytest.raises(NotFound, match="was merged into"):
        change(two, lambda session, row: None)
    undo(event)
    film("v", [[axis(0)] * 2], [[axis(1)] * 2], run=3)
    assert [set(found) for found in seen().values()] == [{"unknown 1"}, {"unknown 2"}]


def test_a_face_that_is_somebody_else_is_split_off_and_put_back() -> None:
    film("v", [[axis(0)] * 2], [[axis(0, 0.8)] * 2])
    person, track = id_of("unknown 1"), str(face_of("v", 1).track_id)
    new, event, _ = change(
        person, lambda session, row: acts.split(session, row, [track], "Bea", RULE, POLICY)
    )
    match_all()
    assert [set(found) for found in seen().values()] == [{"unknown 1"}, {"Bea"}]
    film("v", [[axis(0)] * 2], [[axis(0, 0.8)] * 2], run=2)
    assert seen()[1].keys() == {"Bea"}
    undo(event)
    assert [set(found) for found in seen().values()] == [{"unknown 1"}] * 2
    assert new.person_id


def test_what_was_split_off_can_be_merged_again() -> None:
    film("v", [[axis(0)] * 2], [[axis(0, 0.8)] * 2])
    one, track = id_of("unknown 1"), str(face_of("v", 1).track_id)
    new, _, _ = change(one, lambda session, row: acts.split(session, row, [track], None, RULE, POLICY))
    match_all()
    assert [set(found) for found in seen().values()] == [{"unknown 1"}, {"unknown 2"}]

    def merge(session: Session) -> int:
        person, into = acts.lock_two(session, new.person_id, one, "u")
        return acts.merge(session, person, into, POLICY)[0]

    event = transact(merge)
    match_all()
    film("v", [[axis(0)] * 2], [[axis(0, 0.8)] * 2], run=2)
    assert [set(found) for found in seen().values()] == [{"unknown 1"}] * 2
    undo(event)
    assert [set(found) for found in seen().values()] == [{"unknown 1"}, {"unknown 2"}]


def test_not_this_person_holds_for_whom_that_one_is_merged_into() -> None:
    bea = enrol("Bea", axis(0))
    film("v", [[axis(0)] * 2], [[axis(0)]])
    judge(bea, "v", is_person=False)
    ann = enrol("Ann", axis(0))

    def merge(session: Session) -> None:
        person, into = acts.lock_two(session, bea, ann, "u")
        acts.merge(session, person, into, POLICY)

    transact(merge)
    match_all()
    assert "Ann" not in seen().get(0, {}) and seen()[1].keys() == {"Ann"}


@pytest.mark.parametrize("rerun", [False, True])
def test_a_judgement_undone_gives_the_face_back_to_the_unknown_it_was(rerun: bool) -> None:
    film("v", [[axis(0)] * 2])
    ann, one = enrol("Ann", axis(1)), id_of("unknown 1")
    for event in (
        lambda: judge(ann, "v", is_person=True),
        lambda: judge(one, "v", is_person=False),
    ):
        number = event()
        assert "unknown 1" not in seen().get(0, {})
        if rerun:
            with reading() as session:
                run = session.get_one(Video, "v").run + 1
            film("v", [[axis(0)] * 2], run=run)
            assert "unknown 1" not in seen().get(0, {})
        undo(number)
        assert seen() == {0: {"unknown 1": (1.0, 2)}} and face_of("v").decided_by == "machine"


def test_nobody_judges_anothers_faces() -> None:
    film("x", [[axis(0)]], user="other")
    ann = enrol("Ann", axis(0))
    with pytest.raises(NotFound, match="there is no face"):
        judge(ann, "x", is_person=True)
    event = change(ann, lambda session, row: registry.rename(session, row, "Anna"))
    with pytest.raises(NotFound):
        transact(lambda session: acts.undo(session, "other", event, RULE, POLICY))


def test_a_scene_counts_people_not_the_pictures_that_show_them() -> None:
    """Four keyframes of one; two strangers; one who left and came back; nobody."""
    ann = enrol("Ann", axis(0))
    film("v", [[axis(5)] * 4], [[axis(6)] * 3, [axis(7)]], [[axis(0)] * 2, [axis(0)]], [])
    came_back = text("UPDATE face_tracks SET person_id = :ann WHERE scene_id = :scene")
    transact(lambda session: session.execute(came_back, {"ann": ann, "scene": scene_id("v", 1, 2)}))
    with reading() as session:
        shown = page(session, "v", "u", -1, 10).scenes
    assert [scene.faces for scene in shown] == [1, 2, 1, 0]


def profile(person: str) -> tuple[np.ndarray, int] | None:
    """The person's centroid and how many tracks it was made from."""
    with reading() as session:
        row = session.execute(
            select(PersonProfile.vec, PersonProfile.tracks).where(PersonProfile.person_id == person)
        ).one_or_none()
    return None if row is None else (as_array([row.vec])[0], row.tracks)


def delete_video(video: str, folder: Path) -> None:
    """Delete the video and run its erasure, as a media worker does."""

    def begin(session: Session) -> None:
        locked = subjects.lock_video(session, video)
        assert locked is not None
        video_runs.begin_delete(session, locked, POLICY)

    transact(begin)
    storage = open_storage(StorageConfig(backend="local", root=folder / "storage"))
    storage.ensure_buckets()
    with reading() as session:
        queue = session.scalars(
            select(Job.queue).where(Job.stage == "erase_video", Job.video_id == video)
        ).one()
    claimed = must_claim(queue)
    assert claimed.stage == "erase_video"
    runtime: Any = SimpleNamespace(storage=storage, policy=POLICY)
    outcome = erase_video.run(
        StageContext(claimed=claimed, runtime=runtime, folder=folder, report=lambda fraction: None)
    )
    finish(claimed, outcome.write)


def test_a_deleted_video_takes_its_share_out_of_an_unknowns_centroid(tmp_path: Path) -> None:
    film("v", [[axis(0, 0.9, rest=1)] * 3])
    film("w", [[axis(0, 0.9, rest=2)] * 3])
    unknown = next(iter(named_by_nobody()))
    both = profile(unknown)
    assert both is not None and both[1] == 2 and both[0][1] > 0.1, "learned from both videos"
    delete_video("v", tmp_path)
    left = profile(unknown)
    assert left is not None and left[1] == 1
    np.testing.assert_allclose(left[0], axis(0, 0.9, rest=2), atol=2e-3)


def test_a_deleted_video_takes_its_share_out_of_a_learned_profile(tmp_path: Path) -> None:
    film("v", [[axis(0)] * 2])
    film("w", [[axis(1)] * 2])
    person = create("Ann")
    confirm(person, "v")
    assert profile(person) is not None
    delete_video("v", tmp_path)
    assert profile(person) is None, "nothing else was known of her"
    assert state(person).state == "empty"


def confirm(person: str, video: str) -> None:
    track = str(tracks(video)[0].track_id)
    change(person, lambda session, row: acts.judge(session, row, [track], RULE, is_person=True))


def named_by_nobody() -> list[str]:
    with reading() as session:
        return list(session.scalars(select(Person.person_id).where(Person.kind == "unknown")))


def test_a_rename_while_a_video_is_published_reaches_its_sidecars() -> None:
    """The publishing transaction has read the old name, and commits after the rename has begun."""
    person = enrol("Ann", axis(0))
    match_all()
    film("v", [[axis(0)]])
    scene = scene_id("v", 1, 0)
    transact(lambda session: session.execute(text("UPDATE scenes SET live = false, people_changed = false")))
    transact(lambda session: session.execute(text("DELETE FROM scene_people")))
    renamed = threading.Thread(
        target=lambda: change(person, lambda session, row: registry.rename(session, row, "Anna"))
    )

    def publish(session: Session) -> None:
        assert subjects.lock_video(session, "v") is not None
        session.execute(text("UPDATE scenes SET live = true"))
        written = people_in(session, {scene: 1})
        assert [who.name for who in written[scene]] == ["Ann"]
        refresh_scene_people(session, [scene], written)
        renamed.start()
        # Long enough for a rename that does not wait; one that waits is seen in pg_locks.
        deadline = time.monotonic() + 10
        while renamed.is_alive() and time.monotonic() < deadline:
            with reading() as other:
                if other.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one():
                    break
            time.sleep(0.02)

    transact(publish)
    renamed.join(timeout=30)
    assert not renamed.is_alive()
    with reading() as session:
        assert session.scalars(select(Scene.people_changed)).all() == [True]
