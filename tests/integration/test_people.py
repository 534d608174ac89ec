"""People on a real Postgres: made-up vectors through photos, profiles, matching, decisions, clusters, erasure."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import as_array, people_in
from db.ledger import attempts, person_runs, subjects, video_runs
from db.ledger.jobs import Subject
from db.people import registry
from db.publication import find_people, show_scenes
from db.scenes import page, scene_id
from db.tables import FaceDecision, FaceTrack, Job, Person, PersonProfile, Scene
from shared.contracts import CreatePerson, ListPeople
from shared.errors import Conflict, LeaseLost, ModelFailure, NotFound
from shared.storage import StorageConfig, open_storage
from tests.support.fleet import eventually
from tests.support.ledger import execute, read
from tests.support.people import (
    POLICY,
    add_photo,
    axis,
    change,
    claim,
    create,
    enrol,
    face_of,
    film,
    finish,
    id_of,
    judge,
    look,
    match_all,
    merge,
    must_claim,
    named,
    photos_of,
    rename,
    seen,
    split,
    start,
    tracks,
    undo,
    unknowns,
    view,
)
from worker.stages import erase_video
from worker.stages.context import StageContext

pytestmark = pytest.mark.usefixtures("database")


def test_a_person_added_today_is_found_in_yesterdays_videos() -> None:
    film("v", [[axis(0, 0.9)] * 3, [axis(1)] * 2], [[axis(1)] * 2])
    film("w", [[axis(0, 0.8)]])
    film("x", [[axis(0)]], user="other")
    assert named() == {}
    person = enrol("Ann", axis(0))
    assert view(person).state == "working"
    jobs = read(select(Job).where(Job.stage == "match"))
    assert {(job.priority < 0, job.queue) for job in jobs} == {(True, "housekeeping")}, "behind all videos"
    assert match_all() == 2
    assert named() == {0: {"Ann": (0.9, 3)}}
    assert named("w") == {0: {"Ann": (0.8, 1)}}
    assert named("x") == {}, "another user's video"
    shown = view(person)
    assert (shown.state, shown.scenes, shown.videos, shown.good_photos) == ("ready", 2, 2, 1)


def test_a_new_video_is_matched_at_once_also_after_bad_photos() -> None:
    person = enrol("Ann", None, axis(0), None)
    assert sorted(photo.state for photo in photos_of(person)) == ["good", "refused", "refused"]
    assert view(person).state == "ready"
    film("v", [[axis(0, 0.7)]], [[axis(0, 0.5)]])
    assert seen() == {0: {"Ann": (0.7, 1)}}


def test_near_misses_of_two_people_stay_unlabelled() -> None:
    enrol("Ann", axis(0))
    enrol("Bea", axis(0, 0.95, rest=1))
    film("v", [[axis(0, 0.99)] * 3], [[axis(2)]])
    assert seen() == {}
    assert [(track.person_id, track.decided_by) for track in tracks("v")] == [(None, "machine"), (None, None)]


def test_nobody_is_at_two_places_at_once() -> None:
    enrol("Ann", axis(0))
    film("v", [[axis(0, 0.9)] * 2, [axis(0, 0.8)] * 2])
    assert [track.person_id is not None for track in tracks("v")] == [True, False]
    assert seen() == {0: {"Ann": (0.9, 2)}}


def test_a_photo_removed_takes_its_matches_along() -> None:
    person = enrol("Ann", axis(0), axis(1))
    film("v", [[axis(0)]], [[axis(0, 0.75, rest=1)]])
    assert set(seen()) == {0, 1}
    last, other = sorted(photos_of(person), key=lambda photo: as_array([photo.vec])[0, 1])

    def remove(photo: Any) -> int:
        change(person, lambda session, row: registry.remove_photo(session, row, str(photo.photo_id)))
        start(person)
        return match_all()

    assert remove(other) == 1
    assert seen()[0] == {"Ann": (1.0, 1)} and seen()[1] == {"Ann": (0.75, 1)}
    remove(last)
    assert (view(person).good_photos, view(person).state) == (0, "empty")
    assert {name for found in seen().values() for name in found} == {"unknown 1"}


# --- jobs


@pytest.fixture
def waiting() -> str:
    """A person with a photo that the model has still to look at."""
    person = create("Ann")
    add_photo(person)
    start(person)
    return person


def test_a_failed_look_is_told_per_photo_and_the_person_goes_on(waiting: str) -> None:
    for _ in range(POLICY.max_failures):
        claimed = must_claim("face")
        transact(lambda s, c=claimed: attempts.fail(s, c, ModelFailure("broken"), POLICY))
    (photo,) = photos_of(waiting)
    assert (photo.state, photo.error_class, photo.error) == ("failed", "ModelFailure", "broken")
    assert view(waiting).state == "empty"


def test_a_change_ends_the_jobs_of_the_one_before(waiting: str) -> None:
    old = must_claim("face")
    start(waiting)
    with pytest.raises(LeaseLost):
        finish(old, look(old, [axis(0)]))
    new = must_claim("face")
    finish(new, look(new, [axis(1)]))
    assert view(waiting).state == "ready"


def test_a_lost_worker_gives_the_job_back_and_cancel_stops_it(waiting: str) -> None:
    must_claim("face")
    with reading() as session:
        (held,) = attempts.held_jobs(session)
    assert held.subject == Subject("person", waiting)
    transact(lambda s: attempts.reclaim(s, held, ModelFailure("gone"), POLICY))
    assert must_claim("face").attempt == 2
    assert change(waiting, lambda session, row: person_runs.stop(session, row))
    assert claim("face") is None and view(waiting).state == "empty"


def test_a_person_whose_wake_ups_and_jobs_were_lost_is_advanced(
    monkeypatch: pytest.MonkeyPatch, waiting: str
) -> None:
    film("v", [[axis(0)]])
    claimed = must_claim("face")
    with monkeypatch.context() as patch:
        patch.setattr(subjects, "advance", lambda *_: [])
        finish(claimed, look(claimed, [axis(0)]))
    with reading() as session:
        assert person_runs.find_stuck(session) == [waiting]
    change(waiting, lambda session, row: subjects.advance(session, row, POLICY))
    assert match_all() == 1 and seen() == {0: {"Ann": (1.0, 1)}}


# --- names and sidecars


def test_names_and_ids_are_the_users_own() -> None:
    request = CreatePerson(user_id="u", name="Ann", person_id="p1")
    views = [transact(lambda session: registry.create(session, request)) for _ in range(2)]
    assert [view.accepted for view in views] == [True, False]
    assert views[0].event_id is not None and views[1].event_id is None
    assert create("ann") == create("Ann", person_id="p1") == "p1"
    assert create("Ann", "other", person_id="p1") == "p1", "another user's own"
    with pytest.raises(Conflict, match="already is 'Ann'"):
        create("Bea", person_id="p1")
    rename("p1", "Zoe", "other")
    assert [view("p1", user).name for user in ("u", "other")] == ["Ann", "Zoe"]
    with pytest.raises(NotFound):
        change("p1", lambda session, row: None, "third")
    bea = create("Bea")
    with pytest.raises(Conflict, match="a person 'ANN' exists already"):
        rename(bea, "ANN")
    with reading() as session:
        page = registry.list_page(session, ListPeople(user_id="u", limit=1))
        rest = registry.list_page(session, ListPeople(user_id="u", after=page.next_after))
    assert [row.name for row in (*page.people, *rest.people)] == ["Ann", "Bea"]


#: As ``film`` publishes.
RUNS = {"split": 1, "face": 1}


def outdated() -> list[bool]:
    """Of each scene, whether its sidecar is out of date."""
    return read(select(Scene.people_changed).order_by(Scene.idx))


def test_a_sidecar_that_says_otherwise_is_noticed() -> None:
    enrol("Ann", axis(0))
    film("v", [[axis(0)]])
    scene = scene_id("v", 1, 0)
    transact(lambda session: show_scenes(session, "v", "u", RUNS, people_in(session, {scene: 1})))
    assert outdated() == [False]
    transact(lambda session: show_scenes(session, "v", "u", RUNS, {}))
    assert outdated() == [True]


def test_who_is_named_after_people_were_looked_up_is_shown() -> None:
    """Before its transaction a run looks up what to change about people; what changes until then counts."""
    person = enrol("Ann", axis(0))
    match_all()
    film("v", [[axis(0)]], [[axis(1)]])
    first, second = (scene_id("v", 1, idx) for idx in range(2))

    def found() -> tuple[Any, Any]:
        with reading() as session:
            written = people_in(session, {first: 1, second: 1})
            return written, find_people(session, "v", "u", RUNS, written)

    def publish(written: Any, people: Any) -> dict[int, Any]:
        transact(lambda session: show_scenes(session, "v", "u", RUNS, written, people))
        return seen()

    ann = {0: {"Ann": (1.0, 1)}}
    execute(text("DELETE FROM scene_people"))
    assert publish(*found()) == ann and outdated() == [False, False]
    before = found()
    execute(text("DELETE FROM scene_people"))
    assert publish(*before) == ann and outdated() == [False, False]
    before = found()
    rename(person, "Anna")
    assert publish(*before) == {0: {"Anna": (1.0, 1)}} and outdated() == [True, False]
    before = found()
    execute(text("UPDATE face_tracks SET person_id = NULL"))
    assert publish(*before) == {} and outdated() == [True, False]


def test_a_rename_while_a_video_is_published_reaches_its_sidecars() -> None:
    """The publishing transaction has read the old name, and commits after the rename has begun."""
    person = enrol("Ann", axis(0))
    match_all()
    film("v", [[axis(0)]])
    scene = scene_id("v", 1, 0)
    execute(text("UPDATE scenes SET live = false, people_changed = false"))
    execute(text("DELETE FROM scene_people"))
    renamed = threading.Thread(target=lambda: rename(person, "Anna"))

    def has_gone_on() -> bool:
        with reading() as other:
            waits = other.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()
        return bool(waits) or not renamed.is_alive()

    def publish(session: Session) -> None:
        assert subjects.lock_video(session, "v") is not None
        written = people_in(session, {scene: 1})
        assert [who.name for who in written[scene]] == ["Ann"]
        show_scenes(session, "v", "u", RUNS, written)
        renamed.start()
        eventually(has_gone_on, within_s=10, every_s=0.02, what="the rename waits, or has ended")

    transact(publish)
    renamed.join(timeout=30)
    assert not renamed.is_alive()
    assert outdated() == [True]


# --- unknown people


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
    event = rename(id_of("unknown 1"), "Ann")
    film("w", [[axis(0, 0.8)]])
    assert seen() == {0: {"Ann": (1.0, 2)}} and seen("w") == {0: {"Ann": (0.8, 1)}}
    assert unknowns() == []
    undo(event)
    assert unknowns() == ["unknown 1"]
    with pytest.raises(Conflict, match="has been undone by event"):
        undo(event)


def test_an_unknown_who_is_named_stays_known_when_others_are_merged_into_them() -> None:
    film("v", [[axis(0)] * 2], [[axis(1)] * 2])
    one, two = id_of("unknown 1"), id_of("unknown 2")
    rename(one, "Ann")
    for other, expected in ((create("Bea"), [{"Ann"}, {"unknown 2"}]), (two, [{"Ann"}, {"Ann"}])):
        event = merge(other, one)
        match_all()
        assert names() == expected
        undo(event)
        match_all()
        assert names() == [{"Ann"}, {"unknown 2"}]
    film("v", [[axis(0)] * 2], [[axis(1)] * 2], run=2)
    assert names() == [{"Ann"}, {"unknown 2"}]


def test_an_enrolled_person_takes_over_the_unknown() -> None:
    film("v", [[axis(0)] * 2])
    assert unknowns() == ["unknown 1"]
    enrol("Ann", axis(0))
    match_all()
    assert seen() == {0: {"Ann": (1.0, 2)}} and unknowns() == []


# --- decisions


def test_not_this_person_holds_in_later_runs_and_splits_and_is_undone() -> None:
    ann = enrol("Ann", axis(0))
    film("v", [[axis(0)] * 2], [[axis(0)]])
    event = judge(ann, face_of("v"), is_person=False)
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
    judge(bea, face_of("v"), is_person=True)
    assert seen() == {0: {"Bea": (1.0, 2)}} and face_of("v").decided_by == "human"
    start(ann)
    match_all()
    film("v", [[axis(0)] * 2], run=2)
    assert seen() == {0: {"Bea": (1.0, 2)}}


def names() -> list[set[str]]:
    """Who is in each scene of the video."""
    return [set(found) for found in seen().values()]


def test_two_unknowns_that_are_one_are_merged_and_parted_again() -> None:
    film("v", [[axis(0)] * 2], [[axis(1)] * 2])
    one, two = id_of("unknown 1"), id_of("unknown 2")
    event = merge(two, one)
    assert names()[1] == {"unknown 1"} and unknowns() == ["unknown 1"]
    match_all()
    film("v", [[axis(0)] * 2], [[axis(1)] * 2], run=2)
    assert names()[1] == {"unknown 1"}, "it holds in the next run"
    with pytest.raises(NotFound, match="was merged into"):
        change(two, lambda session, row: None)
    undo(event)
    match_all()
    film("v", [[axis(0)] * 2], [[axis(1)] * 2], run=3)
    assert names() == [{"unknown 1"}, {"unknown 2"}]


@pytest.mark.parametrize("name", ["Bea", None], ids=["undone", "merged and parted again"])
def test_a_face_that_is_somebody_else_is_split_off_and_put_back(name: str | None) -> None:
    scenes, whole = ([[axis(0)] * 2], [[axis(0, 0.8)] * 2]), [{"unknown 1"}] * 2
    film("v", *scenes)
    one = id_of("unknown 1")
    new, event = split(one, face_of("v", 1), name)
    match_all()
    parted = [{"unknown 1"}, {name or "unknown 2"}]
    assert names() == parted
    if name is None:
        event = merge(new, one)
        match_all()
    film("v", *scenes, run=2)
    assert names() == (parted if name else whole), "it holds in the next run"
    undo(event)
    match_all()
    assert names() == (whole if name else parted)


def test_not_this_person_holds_for_whom_that_one_is_merged_into() -> None:
    bea = enrol("Bea", axis(0))
    film("v", [[axis(0)] * 2], [[axis(0)]])
    judge(bea, face_of("v"), is_person=False)
    merge(bea, enrol("Ann", axis(0)))
    match_all()
    assert "Ann" not in seen().get(0, {}) and seen()[1].keys() == {"Ann"}


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("is_person", [True, False])
def test_a_judgement_undone_gives_the_face_back_to_the_unknown_it_was(rerun: bool, is_person: bool) -> None:
    film("v", [[axis(0)] * 2])
    judged = enrol("Ann", axis(1)) if is_person else id_of("unknown 1")
    event = judge(judged, face_of("v"), is_person=is_person)
    assert "unknown 1" not in seen().get(0, {})
    if rerun:
        film("v", [[axis(0)] * 2], run=2)
        assert "unknown 1" not in seen().get(0, {})
    undo(event)
    match_all()
    assert seen() == {0: {"unknown 1": (1.0, 2)}} and face_of("v").decided_by == "machine"


def test_a_scene_counts_people_not_the_pictures_that_show_them() -> None:
    """Four keyframes of one; two strangers; one who left and came back; nobody."""
    ann = enrol("Ann", axis(0))
    film("v", [[axis(5)] * 4], [[axis(6)] * 3, [axis(7)]], [[axis(0)] * 2, [axis(0)]], [])
    execute(update(FaceTrack).where(FaceTrack.scene_id == scene_id("v", 1, 2)).values(person_id=ann))
    with reading() as session:
        shown = page(session, "v", "u", -1, 10).scenes
    assert [scene.faces for scene in shown] == [1, 2, 1, 0]


# --- deleted videos


def profile(person: str) -> tuple[np.ndarray, int] | None:
    """The person's centroid and how many tracks it was made from."""
    rows = read(select(PersonProfile).where(PersonProfile.person_id == person))
    return (as_array([rows[0].vec])[0], rows[0].tracks) if rows else None


def delete_video(video: str, folder: Path) -> None:
    """Delete the video and run its erasure, as a housekeeping worker does."""

    transact(lambda s: video_runs.begin_delete(s, subjects.lock_video(s, video), POLICY))  # type: ignore[arg-type]
    storage = open_storage(StorageConfig(backend="local", root=folder / "storage"))
    storage.ensure_buckets()
    claimed = must_claim("housekeeping")
    assert claimed.stage == "erase_video"
    runtime: Any = SimpleNamespace(storage=storage, policy=POLICY)
    context = StageContext(claimed=claimed, runtime=runtime, folder=folder, report=lambda fraction: None)
    finish(claimed, erase_video.run(context).write)
    again = select(Job.stage).where(Job.video_id == video, Job.state == "queued")
    assert read(again) == ["erase_video"], "once more after the longest time limit"


def test_a_deleted_video_takes_along_what_was_learned_from_it(tmp_path: Path) -> None:
    """A share of unknown 1, all of unknown 2, and of Ann the only face that was confirmed."""
    film("v", [[axis(0, 0.9, rest=1)] * 3, [axis(5)] * 2, [axis(6)] * 2])
    film("w", [[axis(0, 0.9, rest=2)] * 3])
    unknown, ann = id_of("unknown 1"), create("Ann")
    judge(ann, tracks("v")[2], is_person=True)
    both = profile(unknown)
    assert both is not None and both[1] == 2 and both[0][1] > 0.1, "learned from both videos"
    assert profile(ann) is not None
    delete_video("v", tmp_path)
    left = profile(unknown)
    assert left is not None and left[1] == 1
    np.testing.assert_allclose(left[0], axis(0, 0.9, rest=2), atol=2e-3)
    assert profile(ann) is None and view(ann).state == "empty"
    assert read(select(FaceDecision)) == [] and set(read(select(Person.name))) == {"Ann", "unknown 1"}
