"""People end to end: dlib on a real node, the sample's astronaut found in a video indexed before she was known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from celery import Celery

from shared.contracts import PersonView
from shared.errors import Conflict, NotFound
from tests.acceptance.lite.conftest import VIEWER
from tests.contracts.candidates import sample_picture
from tests.faults.material import cut_clips
from tests.support.fleet import ROOT, Fleet, eventually
from tests.support.pictures import odd, unusable
from tests.support.stores import look

USER, VIDEO = VIEWER, "sample"
OTHER = "u3"


@pytest.fixture(scope="module", autouse=True)
def video(indexed: Fleet) -> None:
    """The sample is indexed before anyone is enrolled."""
    assert indexed.client.status(VIDEO, USER).published_run == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ann.png shows the astronaut, two.png twice, none.jpg no face, blurred.png and small.png her badly."""
    folder = tmp_path_factory.mktemp("photos")
    portrait = sample_picture(12.5)
    pictures = {
        "ann.png": portrait,
        "two.png": np.concatenate([portrait, portrait], axis=1),
        "none.jpg": np.full((300, 400, 3), 128, np.uint8),
        "blurred.png": cv2.GaussianBlur(portrait, (15, 15), 0),
        "small.png": cv2.resize(portrait, None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA),
    }
    for name, picture in pictures.items():
        assert cv2.imwrite(str(folder / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def command(fleet: Fleet, *arguments: str, user: str = USER) -> Any:
    done = fleet.command("people", *arguments, "--json", "--user", user)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def astronauts_scenes(fleet: Fleet) -> set[int]:
    """Where she is; the only person of the sample."""
    truth = json.loads((ROOT / "samples" / "truth.json").read_text())
    return {face["scene"] for face in truth["faces"]}


def person(fleet: Fleet, name: str, user: str = USER) -> PersonView:
    return next(found for found in fleet.client.people(user).people if found.name == name)


def scenes_of(fleet: Fleet, name: str) -> dict[int, tuple[float, int]]:
    return {
        row["idx"]: (row["confidence"], row["frame_count"])
        for row in fleet.rows(
            "SELECT idx, confidence, frame_count FROM scene_people JOIN scenes USING (scene_id)"
            " JOIN people USING (person_id) WHERE name = %s AND live AND people.user_id = %s",
            name,
            USER,
        )
    }


def documents(fleet: Fleet) -> dict[int, Any]:
    """The sidecars that are shown, by scene."""
    return {
        scene.idx: json.loads(fleet.storage.get_bytes("sidecars", scene.sidecar_key or ""))
        for scene in fleet.client.scenes(VIDEO, USER).scenes
    }


def named(document: Any) -> set[str]:
    """Whom a sidecar names, unknown people left out: the sample has a false detection or two."""
    return {who["name"] for who in document["people"] if not who["name"].startswith("unknown")}


def names_in(fleet: Fleet) -> set[str]:
    return {name for document in documents(fleet).values() for name in named(document)}


def seen(fleet: Fleet, who: str) -> dict[str, str]:
    """Video -> track of the other user's person."""
    faces = fleet.client.faces(OTHER, person(fleet, who, OTHER).person_id).faces
    return {face.video_id: face.track_id for face in faces}


def strangers(fleet: Fleet) -> dict[str, int]:
    """The other user's unknown people, and in how many scenes each is."""
    return {found.name: found.scenes for found in fleet.client.people(OTHER, kind="unknown").people}


def test_the_astronaut_is_one_person_however_often_she_is_seen(indexed: Fleet, truth: dict[str, Any]) -> None:
    """Before the tests below name and erase her."""
    scenes = indexed.client.scenes(VIDEO, VIEWER).scenes
    shown = indexed.client.timeline(VIDEO, VIEWER).scenes
    for face in truth["faces"]:
        scene, (who,) = scenes[face["scene"]], shown[face["scene"]].people
        assert len(scene.keyframe_keys) > 1 and scene.faces == 1
        assert scene.start_s <= who.start_s < who.end_s <= scene.end_s


def test_what_a_human_says_of_strangers_holds_and_is_taken_back(
    fleet: Fleet, sample: Path, tmp_path: Path
) -> None:
    """One stranger in two clips of another user."""
    for name, clip in zip(("a", "b"), cut_clips(sample, tmp_path, ((6.2, 13.4), (13.4, 19.6))), strict=True):
        fleet.process(clip, name, OTHER)
    fleet.wait_ended(["a", "b"], within_s=120, user_id=OTHER)
    assert strangers(fleet) == {"unknown 1": 2}
    tracks = seen(fleet, "unknown 1")

    parted = command(fleet, "split", "unknown 1", tracks["b"], user=OTHER)
    assert (parted["name"], parted["scenes"]) == ("unknown 2", 1)
    merged = command(fleet, "merge", "unknown 2", "unknown 1", user=OTHER)
    assert merged["name"] == "unknown 1" and strangers(fleet) == {"unknown 1": 2}
    gone = fleet.command("people", "faces", "unknown 2", "--user", OTHER)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("scenefleet: user u3 has no person 'unknown 2'")
    command(fleet, "undo", str(merged["event_id"]), user=OTHER)
    assert seen(fleet, "unknown 2") == {"b": tracks["b"]}
    again = fleet.command("people", "undo", str(merged["event_id"]), "--user", OTHER)
    assert again.returncode == 1
    assert again.stderr.startswith(f"scenefleet: event {merged['event_id']} has been undone by event ")

    judged = command(fleet, "is-not", "unknown 1", tracks["a"], user=OTHER)
    assert "unknown 1" not in strangers(fleet)
    fleet.client.rerun("a", OTHER, ["face"])
    assert fleet.wait_for("a", user_id=OTHER).published_run == 2
    assert "unknown 1" not in strangers(fleet), "the judgement holds for the tracks of the new run"

    events = command(fleet, "events", user=OTHER)["events"]
    assert [event["kind"] for event in events] == ["reject", "undo", "merge", "split"]
    assert events[2]["undone_by"] == events[1]["event_id"] and events[1]["undoes"] == events[2]["event_id"]
    assert [event["video_ids"] for event in events] == [["a"], [], [], ["b"]]
    assert (events[3]["name"], events[3]["other"]) == ("unknown 1", "unknown 2")
    table = fleet.command("people", "events", "--user", OTHER).stdout
    assert f"by {events[1]['event_id']}" in table and "1 face of b split off as unknown 2" in table

    command(fleet, "undo", str(judged["event_id"]), user=OTHER)
    command(fleet, "undo", str(parted["event_id"]), user=OTHER)
    assert strangers(fleet) == {"unknown 1": 2} and seen(fleet, "unknown 1").keys() == {"a", "b"}


def test_a_person_is_found_in_yesterdays_video_in_spite_of_bad_photos(fleet: Fleet, photos: Path) -> None:
    names = ("ann.png", "two.png", "none.jpg", "blurred.png", "small.png", "broken.jpg")
    answer = command(fleet, "add", "Ann", *(str(photos / name) for name in names))
    assert [photo["error_class"] for photo in answer["photos"]] == [
        None, "SeveralFaces", "NoFace", "BlurredFace", "SmallFace", "BadMedia",
    ]  # fmt: skip
    assert [photo["state"] for photo in answer["photos"]] == ["good"] + ["refused"] * 5
    assert answer["person"]["state"] == "ready"
    found = scenes_of(fleet, "Ann")
    assert set(found) == astronauts_scenes(fleet) != set()
    assert all(0.45 <= confidence <= 1 and frames >= 1 for confidence, frames in found.values())
    refused = answer["photos"][1]
    left = command(fleet, "rm-photo", "Ann", refused["storage_key"].rpartition("/")[2])
    assert (left["photos"], left["good_photos"], left["state"]) == (5, 1, "ready")
    assert not fleet.storage.exists("uploads", refused["storage_key"]) and scenes_of(fleet, "Ann") == found
    again = fleet.command("people", "rm-photo", "Ann", refused["photo_id"], "--user", USER)
    assert again.returncode == 1 and f"Ann has no photo '{refused['photo_id']}'" in again.stderr
    page = fleet.client.faces(USER, answer["person"]["person_id"])
    assert {face.video_id for face in page.faces} == {VIDEO}
    assert all(fleet.storage.exists("sidecars", face.keyframe_key) for face in page.faces)


def test_a_hostile_photo_is_told_from_odd_ones_and_harms_no_node(fleet: Fleet, tmp_path: Path) -> None:
    nodes = ("face", "media", "search")
    before = fleet.peaks_mb(*nodes)
    sent = [*unusable(), *odd(sample_picture(12.5))]
    for photo in sent:
        (tmp_path / photo.name).write_bytes(photo.data)
    answer = command(fleet, "add", "Cam", *(str(tmp_path / photo.name) for photo in sent), user="u4")
    found = dict(zip((photo.name for photo in sent), answer["photos"], strict=True))
    assert {name: photo["error_class"] for name, photo in found.items()} == {
        photo.name: photo.error for photo in sent
    }
    for photo in sent:
        error = found[photo.name]["error"] or ""
        assert photo.says in error and "\n" not in error and len(error) < 200
    assert (answer["person"]["state"], answer["person"]["good_photos"]) == (
        "ready",
        sum(photo.error is None for photo in sent),
    )
    shown = fleet.command("people", "photos", "Cam", "--user", "u4").stdout
    assert "10000x10000" in shown and all(len(line) <= 120 for line in shown.splitlines())
    after = fleet.peaks_mb(*nodes)
    assert after.keys() == before.keys()
    assert max(after[pid] - before[pid] for pid in after) < 100, "no large picture was decoded"


def test_a_new_run_of_the_video_has_her_at_once_and_in_its_sidecars(fleet: Fleet) -> None:
    fleet.client.rerun(VIDEO, USER, ["face"])
    assert fleet.wait_for(VIDEO, user_id=USER).published_run == 2
    assert set(scenes_of(fleet, "Ann")) == astronauts_scenes(fleet)
    for idx, document in documents(fleet).items():
        assert named(document) == ({"Ann"} if idx in astronauts_scenes(fleet) else set())


@pytest.fixture
def ask(fleet: Fleet) -> Iterator[Callable[..., Any]]:
    """Ask as an API does that has none of our code, and leave the answer where it is."""
    with Celery(broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False) as stranger:
        # Not subscribed to answers: a subscription would end when it is collected, after Redis has gone.
        stranger.backend.on_task_call = lambda producer, task_id: None

        def send(task: str, /, **kwargs: Any) -> Any:
            name = task if task.startswith("tasks.") else f"tasks.people.{task}"
            sent = stranger.send_task(name, kwargs={"user_id": USER, **kwargs}, queue="search")
            sent.backend = None

            def answer() -> Any:
                found = stranger.backend.get_task_meta(sent.id)
                return found if found["status"] in ("SUCCESS", "FAILURE") else None

            found = eventually(answer, within_s=60, what=f"{task} is answered")
            return found["result"] if found["status"] == "SUCCESS" else str(found["result"])

        yield send


def test_an_api_without_our_code_asks_by_name(fleet: Fleet, photos: Path, ask: Callable[..., Any]) -> None:
    assert ask("create", name="Twice", person_id="p-twice")["accepted"]
    assert not ask("create", name="Twice", person_id="p-twice")["accepted"]
    slot = ask("add_photo", person_id="p-twice", extension="png")
    assert slot["storage_key"].startswith(f"faces/{USER}/p-twice/photo_") and slot["upload_url"] is None
    ask("enroll", person_id="p-twice")
    eventually(lambda: ask("get", person_id="p-twice")["state"] == "empty", within_s=60, what="looked at")
    (photo,) = ask("photos", person_id="p-twice")["photos"]
    assert (photo["state"], photo["error_class"]) == ("waiting", "ObjectMissing")
    fleet.storage.put_file("uploads", slot["storage_key"], photos / "ann.png", "image/png")
    ask("enroll", person_id="p-twice")
    eventually(lambda: ask("get", person_id="p-twice")["state"] == "ready", within_s=60, what="enrolled")
    # The same face twice: neither of the two is named.
    assert scenes_of(fleet, "Twice") == {} == scenes_of(fleet, "Ann")
    ask("remove_photo", person_id="p-twice", photo_id=photo["photo_id"])
    eventually(
        lambda: set(scenes_of(fleet, "Ann")) == astronauts_scenes(fleet),
        within_s=60,
        what="she is found again",
    )
    assert not fleet.storage.exists("uploads", slot["storage_key"])


def test_no_user_reaches_anothers_people(fleet: Fleet) -> None:
    client, ann = fleet.client, person(fleet, "Ann").person_id
    assert client.people("u2").people == ()
    (face, *_) = client.faces(USER, ann).faces
    (photo, *_) = client.photos(USER, ann).photos
    (event, *_) = client.people_events(USER).events
    own = client.create_person("u2", "Ann").person_id
    for act in (client.person, client.photos, client.enroll, client.add_photo, client.cancel_enrolment,
                client.faces, client.delete_person):  # fmt: skip
        with pytest.raises(NotFound, match=f"no person '{ann}'"):
            act("u2", ann)
    for act, arguments in (
        (client.rename_person, (ann, "Eve")),
        (client.remove_photo, (ann, photo.photo_id)),
        (client.remove_photo, (own, photo.photo_id)),
        (partial(client.judge_faces, is_person=True), (own, [face.track_id])),
        (partial(client.judge_faces, is_person=False), (ann, [face.track_id])),
        (client.split_person, (own, [face.track_id])),
        (client.merge_people, (ann, own)),
        (client.merge_people, (own, ann)),
        (client.undo, (event.event_id,)),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            act("u2", *arguments)
    assert [found.person_id for found in client.people_events("u2").events] == [own]
    client.delete_person("u2", own)
    eventually(lambda: client.person("u2", own).state == "erased", within_s=60, what="erased")
    with pytest.raises(Conflict, match="exists already"):
        client.rename_person(USER, ann, "TWICE")


def test_a_new_name_reaches_the_sidecars_in_a_new_revision(fleet: Fleet) -> None:
    before = {scene.idx: scene.sidecar_key for scene in fleet.client.scenes(VIDEO, USER).scenes}
    event = fleet.client.rename_person(USER, person(fleet, "Ann").person_id, "Anna Lee").event_id
    assert event is not None
    eventually(lambda: names_in(fleet) == {"Anna Lee"}, within_s=60, what="the sidecars say her new name")
    after = {scene.idx: scene.sidecar_key for scene in fleet.client.scenes(VIDEO, USER).scenes}
    assert {idx for idx in after if after[idx] != before[idx]} == astronauts_scenes(fleet)
    old = {str(before[idx]) for idx in astronauts_scenes(fleet)}
    eventually(lambda: not old & set(fleet.objects()), within_s=60, what="the replaced revisions are removed")
    fleet.client.undo(USER, event)
    eventually(lambda: names_in(fleet) == {"Ann"}, within_s=60, what="the name is back")


def test_the_tables_are_for_people(fleet: Fleet) -> None:
    done = fleet.command("people", "list", "--user", USER)
    assert done.returncode == 0 and "Ann" in done.stdout and "1/5" in done.stdout
    assert command(fleet, "faces", "Ann")["faces"]
    assert {"Ann"} <= {found["name"] for found in command(fleet, "list", "--kind", "named")["people"]}


def test_an_erased_person_is_gone_from_every_store(
    fleet: Fleet, photos: Path, ask: Callable[..., Any]
) -> None:
    """Last, and found by looking at everything, not by asking for it. Another user has the same photo and name."""
    name = "Annabel Quillfeather"
    (ann,) = (person for person in fleet.client.people(USER).people if person.name == "Ann")
    command(fleet, "rename", "Ann", name)
    namesake = command(fleet, "add", name, str(photos / "ann.png"), user=OTHER)["person"]["person_id"]
    assert seen(fleet, name).keys() == {"a", "b"}
    fleet.client.judge_faces(OTHER, namesake, list(seen(fleet, name).values()), is_person=True)
    eventually(lambda: names_in(fleet) == {name}, within_s=60, what="the sidecars say her new name")
    for user in (USER, OTHER):
        _wait_quiet(fleet, user)
    # Answers nobody has collected.
    for task in ("get", "photos", "faces"):
        assert ann.person_id in str(ask(task, person_id=ann.person_id))
    assert name in str(ask("list")) and ann.person_id in str(ask("events"))
    assert name in str(ask("tasks.search.scenes", persons=[ann.person_id], limit=1))
    assert name in ask("create", name=name, person_id="p-other"), "an error that says the name"

    before = look(fleet)
    hers = [photo.storage_key for photo in fleet.client.photos(USER, ann.person_id).photos]
    vectors = [
        row["vec"]
        for query in (
            "SELECT vec::text AS vec FROM person_photos WHERE person_id IN (SELECT person_id FROM people WHERE external_id = %s) AND vec IS NOT NULL",
            "SELECT vec::text AS vec FROM person_profiles WHERE person_id IN (SELECT person_id FROM people WHERE external_id = %s)",
            "SELECT vec::text AS vec FROM face_tracks WHERE person_id IN (SELECT person_id FROM people WHERE external_id = %s)",
            "SELECT f.vec::text AS vec FROM faces f JOIN face_tracks t USING (scene_id, run, track)"
            " WHERE t.person_id IN (SELECT person_id FROM people WHERE external_id = %s)",
        )
        for row in fleet.rows(query, ann.person_id)
    ]
    assert len(hers) == 5 and len(vectors) >= 4
    for needle in (ann.person_id, name, *hers, *vectors):
        assert before.traces([needle]), needle
    portrait = (photos / "ann.png").read_bytes()
    copies = [path for path in of_users(before.files, USER, OTHER) if before.files[path] == portrait]
    assert len(copies) == 2

    answer = command(fleet, "rm", name, "--yes")
    receipt = answer["receipt"]
    assert receipt["removed"]["photo files"] == receipt["removed"]["photos"] == 5
    assert receipt["removed"]["face tracks"] >= 1 and set(receipt["left"].values()) == {0}

    after = look(fleet)
    # Other users have the same photo and the same film, and so the same vectors.
    others = {
        row["user_id"] for row in fleet.rows("SELECT user_id FROM videos UNION SELECT user_id FROM people")
    }
    left = {
        place: mine
        for place, rows in after.traces([ann.person_id, *hers, *vectors]).items()
        if (mine := [row for row in rows if not (others - {USER}) & set(row.split("\t"))])
    }
    # The tombstone, the event and the job of the erasure: the id, no name, no photo, no vector.
    assert {table: len(rows) for table, rows in left.items()} == {"people": 1, "people_events": 1, "jobs": 1}
    assert json.dumps(receipt["left"])[1:-1] in left["people"][0] and "erase" in left["people_events"][0]
    assert "erase_person" in left["jobs"][0]
    # Her name is still the other user's.
    for place, rows in after.traces([name]).items():
        assert f"/{OTHER}/" in place or (place in after.rows and rows == _of(OTHER, rows)), (place, rows)
    assert (
        [path for path in copies if path in after.files]
        == [path for path in copies if namesake in path]
        != []
    )

    # Nobody else has lost or changed anything; what a queue knows of a user changes by itself.
    for table in before.rows.keys() - {"queue_usage"}:
        assert _of(OTHER, after.rows[table]) == _of(OTHER, before.rows[table]), table
    own = of_users(before.files, OTHER)
    assert own and all(after.files[path] == before.files[path] for path in own)
    kept = of_users(before.files, USER) & after.files.keys()
    assert all(after.files[path] == before.files[path] for path in kept)
    gone = of_users(before.files, USER) - after.files.keys()
    assert len(gone) == 5 + len(astronauts_scenes(fleet)), "her photos and the sidecars that named her"
    assert names_in(fleet) == set()
    assert fleet.client.person(USER, ann.person_id).state == "erased"
    with pytest.raises(Conflict, match="was erased"):
        fleet.client.create_person(USER, "Ann", person_id=ann.person_id)


def of_users(files: Iterable[str], *users: str) -> set[str]:
    """The paths that belong to these users."""
    return {path for path in files if any(f"/{user}/" in path for user in users)}


def _of(user: str, rows: list[str]) -> list[str]:
    """Rows in which a field is the user's id."""
    return [row for row in rows if user in row.split("\t")]


def _wait_quiet(fleet: Fleet, user: str) -> None:
    """Until nothing is at work for a user. A removed photo's URL outlives the test: its job is left to wait."""
    eventually(
        lambda: not fleet.rows(
            "SELECT 1 FROM jobs WHERE user_id = %s AND state IN ('queued', 'running') AND stage <> 'late_photos'"
            " UNION ALL SELECT 1 FROM scenes WHERE user_id = %s AND live AND people_changed",
            user, user,
        ),
        within_s=60, what=f"nothing is at work for {user}",
    )  # fmt: skip
