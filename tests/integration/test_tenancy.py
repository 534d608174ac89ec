"""Nobody finds, reads or changes another user's video: random users, videos and queries against a real Postgres."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db import search, videos
from db.engine import get_engine, reading, transact
from db.ids import video_key
from db.ledger import video_runs
from db.ledger.policy import RunPolicy
from db.scenes import Words, page, publish_scene, referenced_keys, scene_id, write_scenes
from db.tables import Scene, Video
from db.vectors import ModelRow, ensure_model, index_sql, write_embeddings
from shared.contracts import MAX_QUERY_CHARS, ListVideos, ProcessVideo, SearchScenes, parse
from shared.errors import InvalidRequest, NotFound

pytestmark = pytest.mark.usefixtures("database")

POLICY = RunPolicy(skips={}, max_failures=3, tmp_ttl_s=60)
#: Few, so that words and ids coincide between users all the time; ids that are each other's prefixes.
USERS = ("u", "u1", "u10", "U1", "u_", "u-1")
WORDS = ("rocket", "rockets", "cup", "coffee", "the", "cat", "running", "runs", "not", "or")
DIM = 8


@dataclass(frozen=True)
class World:
    """What was written: scene -> owner."""

    owner: dict[str, str]
    #: Id -> owner, and id -> primary key.
    videos: dict[str, str]
    keys: dict[str, str]
    model: ModelRow
    #: Scenes a search may show.
    live: frozenset[str]


def build(seed: int) -> World:
    """Random users with random videos: published, half published, deleted, unpublished."""
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    owner: dict[str, str] = {}
    live: set[str] = set()
    of_video: dict[str, str] = {}
    keys: dict[str, str] = {}

    def write(session: Session) -> ModelRow:
        session.execute(
            text("TRUNCATE videos, scenes, embeddings, faces, jobs, runs, transcript_parts CASCADE")
        )
        model = ensure_model(session, name="tiny", revision="1", family="text", dim=DIM, metric="cosine")
        for number in range(rng.randint(2, 12)):
            user, video = rng.choice(USERS), f"v{number}"
            of_video[video] = user
            request = ProcessVideo(video_id=video, user_id=user, storage_key=f"uploads/{user}/{video}/a.mp4")
            videos.accept(session, request, POLICY)
            key = keys[video] = video_key(user, video)
            published = rng.random() < 0.8
            count = rng.randint(1, 4)
            scenes = [
                {"idx": idx, "start_s": float(idx), "end_s": idx + 1.0, "kind": "cut", "keyframes": []}
                for idx in range(count)
            ]
            write_scenes(session, key, user, 1, scenes)
            for idx in range(count):
                scene = scene_id(key, 1, idx)
                owner[str(scene)] = user
                words = Words(" ".join(rng.choices(WORDS, k=rng.randint(0, 6))), "en", [])
                if published and rng.random() < 0.9:
                    publish_scene(session, scene, words, f"sidecars/{user}/{video}/{idx}.json", {"text": 1})
                    live.add(str(scene))
                vector = numbers.normal(size=DIM).astype(np.float32)
                write_embeddings(
                    session, model, 1, user, [scene], [(scene, 0, vector / np.linalg.norm(vector))]
                )
            if rng.random() < 0.15:
                row = session.get(Video, key)
                assert row is not None
                video_runs.begin_delete(session, row, POLICY)
                live.difference_update(str(scene_id(key, 1, idx)) for idx in range(count))
        return model

    model = transact(write)
    with get_engine().begin() as connection:
        connection.execute(text(index_sql(model.model_id, DIM, "cosine", concurrently=False)))
    return World(owner, of_video, keys, model, frozenset(live))


def by_words(session: Session, scope: search.Scope, query: str, limit: int) -> tuple[search.Found, ...]:
    retriever = search.Words("keyword", search.read_words(session, query), half=1.0)
    return search.find(session, scope, [retriever], {"keyword": 1.0}, search.Tuning(), limit=limit).hits


def by_meaning(
    session: Session, scope: search.Scope, model: ModelRow, vector: Any, limit: int, exact_rows: int
) -> tuple[search.Found, ...]:
    tuning = search.Tuning(exact_rows=exact_rows, ef_search=40)
    retriever = search.Vector("text", model, vector)
    return search.find(session, scope, [retriever], {"text": 1.0}, tuning, limit=limit).hits


SLOW = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SLOW
@given(seed=st.integers(0, 2**32), asker=st.sampled_from(USERS))
def test_nobody_reads_or_changes_another_users_video(seed: int, asker: str) -> None:
    world = build(seed)
    with reading() as session:
        deleted = set(session.scalars(select(Video.external_id).where(Video.deleted_at.is_not(None))))
        listed = [row.video_id for row in videos.list_page(session, ListVideos(user_id=asker)).videos]
    assert set(listed) == {video for video, owner in world.videos.items() if owner == asker} - deleted
    before = ledger()
    for video, owner in world.videos.items():
        is_mine = owner == asker and video not in deleted
        for ask in (
            lambda session, video=video: videos.status(session, video, asker),
            lambda session, video=video: page(session, video, asker, -1, 100),
            lambda session, video=video: videos.lock(session, video, asker),
        ):
            if is_mine:
                assert transact(ask) is not None
            else:
                with pytest.raises(NotFound, match=f"no video '{video}': check the id"):
                    transact(ask)
        request = ProcessVideo(video_id=video, user_id=asker, storage_key=f"uploads/{asker}/{video}/a.mp4")
        if owner != asker:
            accept = partial(videos.accept, request=request, policy=POLICY)
            with Session(get_engine()) as session:
                receipt, _ = accept(session)
                session.rollback()
            assert receipt.accepted, "as if there were no other"
        if is_mine:
            with reading() as session:
                shown = page(session, video, asker, -1, 100)
                keys = referenced_keys(session, world.keys[video], None)
            assert {world.owner[scene.scene_id] for scene in shown.scenes} <= {asker}
            assert {scene.scene_id for scene in shown.scenes} <= world.live
            assert all(key.split("/")[1] == asker for key in keys)
    assert ledger() == before, "asking changed nothing"


def ledger() -> list[Any]:
    with reading() as session:
        return [
            list(session.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2, 3")))
            for table in ("videos", "runs", "jobs", "scenes")
        ]


def test_rows_of_an_embedding_that_names_a_wrong_user_stay_hidden() -> None:
    """Two walls: a vector shows up only when its own row and its scene's row both belong to the asker."""
    world = build(1)
    with get_engine().begin() as connection:
        connection.execute(text("UPDATE embeddings SET user_id = 'u-1'"))
    vector = np.ones(DIM, np.float32) / np.sqrt(DIM, dtype=np.float32)
    others = set(world.videos.values()) - {"u-1"}
    assert others
    with reading() as session:
        for exact_rows in (0, 100):
            hits = by_meaning(session, search.Scope(user_id="u-1"), world.model, vector, 50, exact_rows)
            assert {world.owner[str(hit.scene_id)] for hit in hits} <= {"u-1"}


# --- hostile queries

HOSTILE = {
    "empty": "",
    "blank": " \t\n ",
    "punctuation": "!?.,;:--()[]{}'\"`~@#$%^&*_+=|\\/<>",
    "only quotes": '"""""',
    "unbalanced": '"rocket',
    "operators": "& | ! <-> :* ( ) <2>",
    "operators in words": "rocket & !cup | (coffee <-> cat):*",
    "only not": "-rocket",
    "only or": "or or or",
    "sql": "'; DROP TABLE scenes; --",
    "sql quoted": "\\'; DELETE FROM videos WHERE 't'='t",
    "percent": "%s %(query)s :query {query} $1 ?",
    "tsquery cast": "'a'::tsquery",
    "emoji": "🚀🚀 👩‍🚀 🏳️‍🌈",
    "right to left": "مرحبا بالعالم \u202e rocket",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "combining": "e" + "\u0301" * 900,
    "one long word": "a" * 1000,
    "many words": "x " * 500,
    "deep": "(" * 500 + ")" * 500,
    "many nots": "-" * 999 + "a",
    "nots and quotes": '-"' * 499,
    "one word of 3000 bytes": "語" * 1000,
    "one word of 4000 bytes": "𝒜" * 1000,
    "one phrase of many words": '"' + "a " * 499 + '"',
    "many phrases": '"a b" ' * 166,
    "replacement": "\ufffd\uffff\ufeff",
    "astral": "\U0010ffff" * 500,
    "too long": "x" * 10_000,
    "too long in bytes": "🚀" * 3000,
    "nul": "rocket\x00cup",
    "surrogate": "\ud800",
}


def test_a_hostile_query_gives_an_answer_or_one_clear_error() -> None:
    world = build(7)
    user = max(USERS, key=lambda user: sum(owner == user for owner in world.owner.values()))
    before = ledger()
    for name, query in HOSTILE.items():
        refused, hits = set(), None
        for mode in ("keyword", "semantic"):
            try:
                request = parse(SearchScenes, {"user_id": user, "query": query, "mode": mode})
            except InvalidRequest as error:
                message = str(error)
                assert "\n" not in message and 20 < len(message) < 250, name
                assert message.startswith("query=") or re.search(
                    "bytes, more than 8192|not valid Unicode", message
                )
                refused.add(mode)
                continue
            assert request.query is not None and len(request.query) <= MAX_QUERY_CHARS
            try:
                with reading() as session:
                    hits = by_words(session, search.Scope(user_id=user), request.query, 50)
            except InvalidRequest as error:
                message = str(error)
                assert "\n" not in message and message.startswith("query="), name
                assert "use plain, shorter words" in message, name
                assert name in ("many nots", "one word of 3000 bytes", "one word of 4000 bytes"), message
        unreadable = name in ("empty", "too long", "too long in bytes", "nul", "surrogate")
        assert refused == ({"keyword", "semantic"} if unreadable else set()), name
        for hit in hits or ():
            assert world.owner[str(hit.scene_id)] == user and 0 <= hit.score <= 1, name
        if name in ("blank", "punctuation", "only quotes", "operators", "emoji", "controls", "replacement"):
            assert hits == (), name
    assert ledger() == before


def test_words_are_found_whatever_stands_around_them() -> None:
    world = build(11)
    with reading() as session:
        live = session.scalars(select(Scene).where(Scene.live, Scene.transcript.contains("rocket"))).all()
        assert live
        user = live[0].user_id
        mine = {str(scene.scene_id) for scene in live if scene.user_id == user}
        for query in ("rocket", "ROCKET!", "'rocket'", "(rocket)", "rocket; --", "rockets", "🚀 or rocket"):
            hits = by_words(session, search.Scope(user_id=user), query, 50)
            found = {str(hit.scene_id) for hit in hits}
            assert found == mine, query
    assert world.live
