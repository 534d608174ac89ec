"""People and videos of made-up faces on a real Postgres: what requests and jobs do to them, and what is seen of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
from pgvector import HalfVector
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import write_tracks
from db.faces.vote import FaceRule
from db.ledger import attempts, person_runs, subjects
from db.ledger.claims import Claim
from db.ledger.policy import RunPolicy
from db.people import acts, photos, registry
from db.people.unknowns import assign_people
from db.scenes import face_id, scene_id, write_faces, write_scenes
from db.tables import FaceTrack, Person, PersonPhoto, Run, Scene, ScenePerson, Video
from db.vectors import ensure_model
from shared.contracts import CreatePerson, ListPeople, PersonView
from tests.support.ledger import claim, must_claim, read

__all__ = ["claim", "must_claim"]

POLICY = RunPolicy(skips={}, max_failures=2, tmp_ttl_s=60)
RULE = FaceRule()
DIM = 512


def axis(place: int, cosine: float = 1.0, rest: int = 500) -> np.ndarray:
    """A unit vector with this cosine to an axis."""
    found = np.zeros(DIM, np.float32)
    found[place], found[rest] = cosine, np.sqrt(1 - cosine**2)
    return found


def model_id() -> int:
    model = {"name": "face", "revision": "1", "family": "face", "dim": DIM, "metric": "cosine"}
    return transact(lambda session: ensure_model(session, **model)).model_id


# --- videos


def film(
    video: str, *scenes: Sequence[Sequence[np.ndarray]], user: str = "u", run: int = 1, split: int = 1
) -> None:
    """Publish a video; each scene is a list of tracks, each track a list of the vectors of its faces.

    Track n stands at x = 200 n of the picture in all keyframes, one a second.
    """
    model = model_id()

    def write(session: Session) -> None:
        row = session.get(Video, video)
        row = row or Video(video_id=video, user_id=user, storage_key="k", state="indexed")
        session.add(row)
        row.run = row.published_run = run
        session.flush()
        session.add(Run(video_id=video, run=run, stages=["face"], stage_runs={"split": split, "face": run}))
        rows: list[dict[str, Any]] = []
        faces: list[dict[str, Any]] = []
        start_s = 0.0
        for idx, tracks in enumerate(scenes):
            frames = max((len(track) for track in tracks), default=1)
            keyframes = [
                {"ordinal": o, "ts_s": start_s + o, "key": f"k{idx}.{o}", "width": 960, "height": 540}
                for o in range(frames)
            ]
            span = {"start_s": start_s, "end_s": start_s + frames}
            rows.append({"idx": idx, **span, "kind": "cut", "keyframes": keyframes})
            scene = scene_id(video, split, idx)
            faces += [
                {
                    "face_id": face_id(scene, run, ordinal, number), "scene_id": scene, "user_id": user,
                    "run": run, "ordinal": ordinal, "ts_s": start_s + ordinal,
                    "box": [200.0 * number, 50.0, 100.0, 100.0], "landmarks": [], "det_score": 0.9,
                    "model_id": model, "vec": HalfVector(vec), "quality": None, "track": number,
                }
                for number, track in enumerate(tracks)
                for ordinal, vec in enumerate(track)
            ]  # fmt: skip
            start_s += frames
        if split == run:
            write_scenes(session, video, user, split, rows)
        shown = {"live": Scene.split_version == split, "face_run": run}
        session.execute(update(Scene).where(Scene.video_id == video).values(shown))
        ids = [scene_id(video, split, idx) for idx in range(len(scenes))]
        write_faces(session, run, ids, faces)
        write_tracks(session, video, user, run, ids, "cosine")
        match(session, video)

    transact(write)


def match(session: Session, video: str) -> None:
    """What the match stage writes."""
    locked = subjects.lock_video(session, video)
    assert locked is not None
    assign_people(session, locked, RULE)


def tracks(video: str) -> list[FaceTrack]:
    found = select(FaceTrack).where(FaceTrack.video_id == video)
    return read(found.order_by(FaceTrack.ts_s, FaceTrack.track))


def face_of(video: str, idx: int = 0) -> FaceTrack:
    """The first track of a scene."""
    of_scene = (Scene.scene_id == FaceTrack.scene_id) & (Scene.face_run == FaceTrack.run)
    tracks = select(FaceTrack).join(Scene, of_scene).where(Scene.video_id == video, Scene.idx == idx)
    (first,) = read(tracks.where(Scene.live, FaceTrack.track == 0))
    return first


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


# --- jobs


def finish(claimed: Claim, write: Callable[[Session], None] | None) -> None:
    transact(lambda session: attempts.finish(session, claimed, write, {}, POLICY))


def look(claimed: Claim, vectors: Sequence[Any]) -> Callable[[Session], None]:
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
    """Run every match job; returns how many there were."""
    count = 0
    while (claimed := claim("housekeeping")) is not None:
        assert claimed.stage == "match"
        finish(claimed, partial(match, video=claimed.payload["video_id"]))
        count += 1
    return count


# --- people


def create(name: str, user: str = "u", **options: Any) -> str:
    request = CreatePerson(user_id=user, name=name, **options)
    return transact(lambda session: registry.create(session, request)).person_id


def change(person: str, act: Callable[[Session, Person], Any], user: str = "u") -> Any:
    return transact(lambda session: act(session, registry.lock(session, person, user)))


def add_photo(person: str, user: str = "u") -> None:
    change(person, lambda session, row: registry.add_photo(session, row, "jpg"), user)


def start(person: str, user: str = "u") -> None:
    """Look at new photos, then at all videos: the jobs of it."""
    change(person, lambda session, row: person_runs.start(session, row, POLICY), user)


def enrol(name: str, *vectors: Any, user: str = "u", **options: Any) -> str:
    person = create(name, user, **options)
    for _ in vectors:
        add_photo(person, user)
    start(person, user)
    while (claimed := claim("face")) is not None:
        finish(claimed, look(claimed, vectors))
    return person


def photos_of(person: str, user: str = "u") -> list[PersonPhoto]:
    with reading() as session:
        return registry.photos_of(session, registry.get(session, person, user))


def view(person: str, user: str = "u") -> PersonView:
    with reading() as session:
        return registry.view(session, registry.get(session, person, user))


def unknowns() -> list[str]:
    listed = ListPeople(user_id="u", kind="unknown")
    return [person.name for person in transact(lambda session: registry.list_page(session, listed)).people]


def id_of(name: str) -> str:
    (found,) = read(select(Person.person_id).where(Person.user_id == "u", Person.name == name))
    return found


# --- corrections


def rename(person: str, name: str, user: str = "u") -> int:
    return int(change(person, lambda session, row: registry.rename(session, row, name), user))


def judge(person: str, track: FaceTrack, *, is_person: bool) -> int:
    ids = [str(track.track_id)]
    return int(change(person, lambda s, row: acts.judge(s, row, ids, RULE, is_person=is_person)))


def merge(one: str, other: str) -> int:
    def work(session: Session) -> int:
        person, into = acts.lock_two(session, one, other, "u")
        return acts.merge(session, person, into, POLICY)[0]

    return transact(work)


def split(person: str, track: FaceTrack, name: str | None) -> tuple[str, int]:
    """Gives the new person's id and the event's."""
    ids = [str(track.track_id)]
    new, event, _ = change(person, lambda s, row: acts.split(s, row, ids, name, RULE, POLICY))
    return new.person_id, event


def undo(event: int, user: str = "u") -> None:
    transact(lambda session: acts.undo(session, user, event, RULE, POLICY))
