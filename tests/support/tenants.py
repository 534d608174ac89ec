"""Several users with similar rows in every table of users: the same words, faces and vectors, ids that are each other's prefixes."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector, SparseVector
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from db import tables
from db.engine import get_engine, transact
from db.scenes import scene_id
from db.vectors import ModelRow, ensure_model, index_sql

USERS = ("u", "u1", "u10", "U1", "u_", "u-1")
WORDS = ("rocket", "rockets", "cup", "coffee", "the", "cat", "running", "runs", "not", "or")
LANGUAGES = ("en", "de", None)
DIM, VOCABULARY = 8, 50
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
#: Tables with a row of a user, parents first.
OF_USERS = tuple(
    table for table in tables.Base.metadata.sorted_tables if "user_id" in table.c or table.name == "runs"
)


def secret(user: str) -> str:
    """A word that stands in every text of the user's, and in no other user's."""
    return f"qx{USERS.index(user)}xq"


@dataclass(frozen=True)
class Shot:
    """A scene that was written."""

    id: UUID
    user: str
    video: str
    idx: int
    live: bool
    words: str
    language: str | None
    indexed: datetime
    persons: frozenset[str]


@dataclass
class World:
    shots: list[Shot] = field(default_factory=list)
    #: Id -> owner.
    videos: dict[str, str] = field(default_factory=dict)
    persons: dict[str, str] = field(default_factory=dict)

    def owner(self, scene: str) -> str:
        return next(shot.user for shot in self.shots if str(shot.id) == scene)


def unit(numbers: np.random.Generator) -> npt.NDArray[np.float32]:
    vector = numbers.normal(size=DIM).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def weigh(rng: random.Random) -> dict[int, float]:
    return {token: rng.uniform(0.1, 1) for token in rng.sample(range(VOCABULARY), 5)}


def make_models(names: dict[str, tuple[str, str]]) -> dict[str, ModelRow]:
    """Models of ``DIM`` numbers under these names and revisions, by family; text and vision have their index."""

    def write(session: Session) -> dict[str, ModelRow]:
        shape = {"dim": DIM, "metric": "cosine"}
        return {
            family: ensure_model(session, name=name, revision=revision, family=family, **shape)
            for family, (name, revision) in names.items()
        }

    made = transact(write)
    with get_engine().begin() as connection:
        for family in ("text", "vision"):
            connection.execute(text(index_sql(made[family].model_id, DIM, "cosine", concurrently=False)))
    return made


def populate(seed: int, models: dict[str, ModelRow], users: tuple[str, ...] = USERS) -> World:
    """Take all rows away and write random ones: every user has a video, a person and a row in every table."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    world = World()
    ids = {family: model.model_id for family, model in models.items()}

    def add(table: str, **row: Any) -> None:
        rows[table].append(row)

    for user in users:
        for number in range(rng.randint(1, 3)):
            person = f"p{len(world.persons)}"
            world.persons[person] = user
            base = {"person_id": person, "user_id": user}
            photo_id, key = uuid5(UUID(int=seed), person), f"faces/{secret(user)}/{person}"
            add("people", **base, name=f"Ann {number} {secret(user)}")
            add("person_photos", **base, photo_id=photo_id, storage_key=key, state="good")
            add("person_profiles", **base, model_id=ids["face"], vec=HalfVector(unit(numbers)), photos=1)
            add("people_events", **base, kind="create", payload={"name": secret(user)})
        hook = {"webhook_id": f"w{users.index(user)}", "user_id": user}
        add("webhooks", **hook, url=f"https://{secret(user)}/", secret=secret(user), events=[])
        event = {"event": "video.indexed", "occurrence": "1", "body": secret(user), "give_up_at": EPOCH}
        add("webhook_deliveries", **hook, **event)
        for _ in range(rng.randint(1, 3)):
            _add_film(add, rng, numbers, world, user, ids)

    def write(session: Session) -> None:
        session.execute(text(f"TRUNCATE {', '.join(table.name for table in OF_USERS)} CASCADE"))
        for table in OF_USERS:
            # Triggers write the changes of searches.
            if table.name != "search_changes":
                session.execute(insert(table), rows[table.name])
        both = "{0} = to_tsvector('english', {1}) || to_tsvector('simple', {1})".format
        columns = f"{both('tsv', 'transcript')}, {both('screen_tsv', 'screen_text')}"
        session.execute(text(f"UPDATE scenes SET {columns}"))

    transact(write)
    return world


def _add_film(
    add: Callable[..., None],
    rng: random.Random,
    numbers: np.random.Generator,
    world: World,
    user: str,
    ids: dict[str, int],
) -> None:
    """Add a video of the user's, its jobs and everything found in it."""
    video, mark = f"v{len(world.videos)}", secret(user)
    world.videos[video] = user
    mine = [person for person, owner in world.persons.items() if owner == user]
    indexed = EPOCH + timedelta(days=rng.randint(0, 9))
    shown_at = {"ordinal": 0, "ts_s": 0.0, "box": [1.0, 2.0, 3.0, 4.0]}
    of_video = {"video_id": video, "user_id": user}
    source = {"storage_key": f"uploads/{mark}/a.mp4", "indexed_at": indexed}
    add("videos", **of_video, **source, state="indexed", run=1, published_run=1)
    add("runs", video_id=video, run=1, stages=["split"], stage_runs={"split": 1})
    add("jobs", **of_video, subject_id=video, queue="media", run=1, stage="split", state="done", error=mark)
    add("transcript_parts", **of_video, run=1, part=0, start_s=0.0, end_s=1.0, segments=[{"text": mark}])
    for idx in range(rng.randint(1, 4)):
        scene, live = scene_id(video, 1, idx), rng.random() < 0.85 or idx == 0
        words = " ".join([mark, *rng.choices(WORDS, k=rng.randint(0, 5))])
        shown = " ".join([mark, *rng.choices(WORDS, k=2)])
        language = rng.choice(LANGUAGES)
        seen = frozenset(rng.sample(mine, rng.randint(0 if idx else 1, len(mine))))
        world.shots.append(Shot(scene, user, video, idx, live, words, language, indexed, seen))
        of_scene = {"scene_id": scene, "user_id": user}
        found = {**of_scene, "run": 1}
        add(
            "scenes", **of_video, scene_id=scene, split_version=1, idx=idx, start_s=10.0 * idx, end_s=10.0 * idx + 10,
            kind="cut", live=live, transcript=words, segments=[{"start_s": 0.0, "end_s": 1.0, "text": words, "words": []}],
            language=language, screen_text=shown, text_run=1, vision_run=1, face_run=1, ocr_run=1,
            sidecar_key=f"sidecars/{mark}/{video}.{idx}",
            keyframes=[
                {"ordinal": ordinal, "key": f"{mark}/{video}.{idx}.{ordinal}", "ts_s": 0.0, "width": 8, "height": 8}
                for ordinal in (0, 1)
            ],
        )  # fmt: skip
        add(
            "prepared_scenes", **of_scene, transcript=mark, segments=[{"text": mark}], tsv="", sidecar_key=mark,
            screen_text=mark, screen_tsv="",
        )  # fmt: skip
        for family, ordinal in (("text", 0), ("vision", 0), ("vision", 1)):
            add("embeddings", **found, model_id=ids[family], ordinal=ordinal, vec=HalfVector(unit(numbers)))
        sparse = SparseVector(weights := weigh(rng), VOCABULARY)
        add("lexical_weights", **found, model_id=ids["text"], tokens=sorted(weights), weights=sparse)
        add("scene_tags", **found, model_id=ids["vision"], tags={mark: 0.5})
        add(
            "screen_texts", **found, model_id=ids["ocr"], place=0, text=shown, score=0.9, sightings=[shown_at]
        )
        for number, person in enumerate(sorted(seen)):
            face = {
                **found,
                **shown_at,
                "model_id": ids["face"],
                "track": number,
                "vec": HalfVector(unit(numbers)),
            }
            track_id = uuid5(face_id := uuid5(scene, str(number)), "track")
            add("faces", **face, face_id=face_id, landmarks=[], det_score=0.9)
            add(
                "face_tracks", **face, track_id=track_id, video_id=video, faces=1, person_id=person,
                similarity=0.8, votes=1, decided_by="machine",
            )  # fmt: skip
            add("moved_tracks", **of_video, event_id=1, track_id=track_id)
            add("erasure_scenes", **of_video, person_id=person, scene_id=scene)
            add("scene_people", **of_scene, person_id=person, confidence=0.8, frame_count=1)
            add("face_decisions", **of_video, person_id=person, is_person=True, ts_s=0.0, box=shown_at["box"])
