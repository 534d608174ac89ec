"""Fetches the fields of a hit: the scene, and its highlights (words, keyframe, faces)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, cast
from uuid import UUID

from sqlalchemy.orm import Session

from db.expressions import statement_of
from db.rows import by_scene
from db.search.ranking import Found
from db.search.retrievers import Match, WordsQuery
from db.search.scope import Scope
from shared.contracts import Highlights, KeyframeMatch, PersonMatch, ScreenMatch, SearchHit, WordSpan

#: Marks around found words: control characters, which are blanked in the text first.
_OPEN, _CLOSE = "\x02", "\x03"
_HEADLINE = f"HighlightAll=true, StartSel={_OPEN}, StopSel={_CLOSE}"
_MARKED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]+){_CLOSE}")
_MAX_SPANS, _MAX_LINES = 100, 5


def describe(
    session: Session,
    scope: Scope,
    found: Sequence[Found],
    queries: Sequence[WordsQuery],
    link: Callable[[str], str | None],
) -> list[SearchHit]:
    """Describe hits as callers see them, in the given order.

    Args:
        queries: from ``retrievers.read_words``, for the words to mark; empty: none.
        link: the URL of a keyframe's key; None where the storage has no URLs.
    """
    scenes = [hit.scene_id for hit in found]
    query = statement_of(
        "SELECT s.scene_id, v.external_id AS video_id, s.start_s, s.end_s, s.transcript, s.language, s.keyframes"
        " FROM scenes s JOIN videos v ON v.video_id = s.video_id AND v.user_id = :user_id"
        " WHERE s.user_id = :user_id AND s.scene_id = ANY(:scenes)"
    )
    found_rows = session.execute(query, {"user_id": scope.user_id, "scenes": scenes})
    rows = {row.scene_id: row for row in found_rows}
    # Both retrievers of words have compared every hit: those without a match need no headline, which is expensive.
    spoken = [hit.scene_id for hit in found if not _has_no_word(hit)]
    words = _found_words(session, scope.user_id, spoken, queries)
    screens = _screen_lines(session, scope.user_id, [scene for scene in scenes if words.get(scene)])
    people = _people(session, scope, scenes)
    hits = []
    for hit in found:
        row = rows[hit.scene_id]
        pattern = _pattern(words.get(hit.scene_id, set()))
        keys = tuple(keyframe["key"] for keyframe in row.keyframes)
        urls = [link(key) for key in keys]
        hits.append(
            SearchHit(
                scene_id=str(hit.scene_id),
                video_id=row.video_id,
                idx=hit.idx,
                start_s=row.start_s,
                end_s=row.end_s,
                transcript=row.transcript,
                language=row.language,
                score=hit.score,
                similarities={
                    cast(Any, name): round(match.similarity, 6) for name, match in hit.matches.items()
                },
                keyframe_keys=keys,
                keyframe_urls=None if None in urls else tuple(url for url in urls if url is not None),
                highlights=Highlights(
                    words=_spans(pattern, row.transcript),
                    keyframe=_keyframe(hit, row.keyframes, link),
                    screen=_screen(pattern, screens.get(hit.scene_id, [])),
                    people=tuple(map(_person, people.get(hit.scene_id, []))),
                ),
            )
        )
    return hits


def _found_words(
    session: Session, user_id: str, scenes: Sequence[UUID], queries: Sequence[WordsQuery]
) -> dict[UUID, set[str]]:
    """Scene -> the matching words of its transcript and on-screen text, as written there.

    Only the words are taken from Postgres's headline, not their places: it rewrites what looks like markup.
    """
    queries = [query for query in queries if query.tsquery]
    if not queries or not scenes:
        return {}
    blanked = f"translate(left(s.transcript, 200000) || ' ' || s.screen_text, '{_OPEN}{_CLOSE}', '  ')"
    parts = []
    values: dict[str, Any] = {"user_id": user_id, "scenes": list(scenes), "options": _HEADLINE}
    for place, query in enumerate(queries):
        among, of_among = query.among(place)
        parts.append(
            f"""
            SELECT s.scene_id, ts_headline(CAST(:lexicon{place} AS regconfig), {blanked}, q.query, :options)
                || ts_headline('simple', {blanked}, q.query, :options) AS marked
            FROM scenes s, (SELECT CAST(:tsquery{place} AS tsquery) AS query) q
            WHERE s.user_id = :user_id AND s.scene_id = ANY(:scenes) AND {among}
                AND (s.tsv @@ q.query OR s.screen_tsv @@ q.query)
            """
        )
        values |= {f"lexicon{place}": query.lexicon, f"tsquery{place}": query.tsquery, **of_among}
    rows = session.execute(statement_of(" UNION ALL ".join(parts)), values)
    return {row.scene_id: set(_MARKED.findall(row.marked)) for row in rows}


def _has_no_word(hit: Found) -> bool:
    return all(name in hit.matches and not hit.matches[name].similarity for name in ("keyword", "screen"))


def _pattern(words: set[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    # Without words nothing matches.
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)")


def _spans(pattern: re.Pattern[str], transcript: str) -> tuple[WordSpan, ...]:
    found = islice(pattern.finditer(transcript), _MAX_SPANS)
    return tuple(WordSpan(start=match.start(), end=match.end()) for match in found)


def _keyframe(
    hit: Found, keyframes: Sequence[dict[str, Any]], link: Callable[[str], str | None]
) -> KeyframeMatch | None:
    match = hit.matches.get("vision", Match(0.0))
    similarity = round(match.similarity, 6)
    for keyframe in keyframes:
        ordinal, key = keyframe["ordinal"], keyframe["key"]
        if ordinal == match.ordinal:
            return KeyframeMatch(ordinal=ordinal, key=key, url=link(key), similarity=similarity)
    return None


def _screen_lines(session: Session, user_id: str, scenes: Sequence[UUID]) -> dict[UUID, list[Any]]:
    if not scenes:
        return {}
    rows = session.execute(
        statement_of(
            "SELECT t.scene_id, t.text, t.sightings FROM screen_texts t JOIN scenes s USING (scene_id)"
            " WHERE t.user_id = :user_id AND s.user_id = :user_id AND t.run = s.ocr_run"
            " AND t.scene_id = ANY(:scenes) ORDER BY t.scene_id, t.place"
        ),
        {"user_id": user_id, "scenes": list(scenes)},
    )
    return by_scene(rows)


def _screen(pattern: re.Pattern[str], lines: Sequence[Any]) -> tuple[ScreenMatch, ...]:
    found = [
        ScreenMatch(text=line.text, ordinal=line.sightings[0]["ordinal"], box=tuple(line.sightings[0]["box"]))
        for line in lines
        if line.sightings and pattern.search(line.text)
    ]
    return tuple(found[:_MAX_LINES])


def _person(row: Any) -> PersonMatch:
    # Not strict: a box is stored as a list.
    return PersonMatch.model_validate(row, from_attributes=True, strict=False)


def _people(session: Session, scope: Scope, scenes: Sequence[UUID]) -> dict[UUID, list[Any]]:
    """Scene -> rows of the requested people in it, with their best face."""
    if not scope.persons or not scenes:
        return {}
    rows = session.execute(
        statement_of(
            """
            SELECT p.scene_id, who.external_id AS person_id, who.name, p.confidence, p.frame_count, best.ordinal, best.box
            FROM scene_people p
            JOIN people who ON who.person_id = p.person_id AND who.user_id = :user_id AND who.deleted_at IS NULL
            JOIN scenes s ON s.scene_id = p.scene_id
            LEFT JOIN LATERAL (
                SELECT t.ordinal, t.box FROM face_tracks t
                WHERE t.scene_id = p.scene_id AND t.person_id = p.person_id AND t.user_id = :user_id
                  AND t.run = s.face_run
                ORDER BY t.similarity DESC NULLS LAST, t.track LIMIT 1
            ) best ON true
            WHERE p.user_id = :user_id AND p.scene_id = ANY(:scenes) AND p.person_id = ANY(:persons)
            ORDER BY p.scene_id, p.confidence DESC, p.person_id
            """
        ),
        {"user_id": scope.user_id, "scenes": list(scenes), "persons": list(scope.persons)},
    )
    return by_scene(rows)
