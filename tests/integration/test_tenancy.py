"""No query, however it is written, finds or changes another user's scenes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from db import search
from db.engine import get_engine, reading
from db.vectors import ModelRow
from shared.contracts import MAX_QUERY_CHARS, SearchScenes, parse
from shared.errors import InvalidRequest
from tests.support.tenants import USERS, World, make_models, populate, unit

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def models(database: str) -> dict[str, ModelRow]:
    return make_models({family: (family, "1") for family in ("text", "vision", "face", "ocr")})


@pytest.fixture
def world(models: dict[str, ModelRow]) -> World:
    return populate(7, models)


def by_words(user: str, query: str) -> Sequence[search.Found]:
    with reading() as session:
        retriever = search.Words("keyword", search.read_words(session, query), half=1.0)
        scope = search.Scope(user_id=user)
        return search.find(session, scope, [retriever], {"keyword": 1.0}, search.Tuning(), limit=50).hits


def rows() -> list[Any]:
    with reading() as session:
        tables = ("videos", "runs", "jobs", "scenes")
        return [list(session.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2, 3"))) for table in tables]


def test_an_embedding_that_names_a_wrong_user_stays_hidden(world: World, models: dict[str, ModelRow]) -> None:
    """A vector is found only if its own row and its scene's row both belong to the user who asks."""
    with get_engine().begin() as connection:
        connection.execute(text("UPDATE embeddings SET user_id = 'u-1'"))
    retriever = search.Vector("text", models["text"], unit(np.random.default_rng(1)))
    scope = search.Scope(user_id="u-1")
    for exact_rows in (0, 100):
        tuning = search.Tuning(exact_rows=exact_rows, ef_search=40)
        with reading() as session:
            hits = search.find(session, scope, [retriever], {"text": 1.0}, tuning, limit=50).hits
        assert {world.owner(str(hit.scene_id)) for hit in hits} == {"u-1"}


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


def test_a_hostile_query_gives_an_answer_or_one_clear_error(world: World) -> None:
    user = max(USERS, key=lambda user: sum(shot.user == user for shot in world.shots))
    before = rows()
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
                hits = by_words(user, request.query)
            except InvalidRequest as error:
                message = str(error)
                assert "\n" not in message and message.startswith("query="), name
                assert "use plain, shorter words" in message, name
                assert name in ("many nots", "one word of 3000 bytes", "one word of 4000 bytes"), message
        unreadable = name in ("empty", "too long", "too long in bytes", "nul", "surrogate")
        assert refused == ({"keyword", "semantic"} if unreadable else set()), name
        for hit in hits or ():
            assert world.owner(str(hit.scene_id)) == user and 0 <= hit.score <= 1, name
        if name in ("blank", "punctuation", "only quotes", "operators", "emoji", "controls", "replacement"):
            assert hits == (), name
    assert rows() == before


def test_words_are_found_whatever_stands_around_them(world: World) -> None:
    live = [shot for shot in world.shots if shot.live and "rocket" in shot.words]
    user = live[0].user
    mine = {shot.id for shot in live if shot.user == user}
    for query in ("rocket", "ROCKET!", "'rocket'", "(rocket)", "rocket; --", "rockets", "🚀 or rocket"):
        assert {hit.scene_id for hit in by_words(user, query)} == mine, query
