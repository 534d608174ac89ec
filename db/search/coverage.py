"""Counts the scenes of a scope that each retriever can search: distinguishes "nothing found" from "not processed yet"."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db.engine import read_one_as
from db.expressions import statement_of
from db.scenes import videos_in_work
from db.search.scope import Scope
from db.vectors import ModelRow

#: A scope of more scenes is not counted again while the user's videos are the same: it takes longer than the search.
_LARGE = 5_000
_KEPT_S = 30.0
_KEPT = 256
_known: OrderedDict[Any, tuple[float, Covered]] = OrderedDict()


@dataclass(frozen=True)
class Covered:
    """Counts of scenes of a scope."""

    scenes: int
    with_words: int
    videos_in_work: int
    #: Retriever -> scenes that it can compare.
    retrievers: dict[str, int]
    #: Languages of the scenes; "" stands for scenes without one.
    languages: tuple[str, ...] = ()
    #: Scenes of which a stage has left something out.
    not_looked_at: int = 0


def cover(session: Session, scope: Scope, models: Mapping[str, ModelRow], version: str = "") -> Covered:
    """Count a scope's scenes, and those each retriever can compare. ``models``: of the retrievers text, lexical and vision.

    Counts are cached for some seconds: while the user's rows have the same ``version`` (``read_version``), those of a large
    scope until a video of the user is added, deleted or published again.
    """
    searched = tuple(sorted((retriever, model.model_id) for retriever, model in models.items()))
    database = session.get_bind().engine.url
    if scope.filters:
        # Of tables of plug-ins, whose changes have no version.
        version = ""
    if version and (known := _get((database, scope, searched, version))) is not None:
        return known
    key = (scope, searched, _state(session, scope))
    if (known := _get(key)) is not None:
        return known
    covered = _count(session, scope, models)
    if covered.scenes > _LARGE:
        _put(key, covered)
    elif version:
        _put((database, scope, searched, version), covered)
    return covered


def _get(key: Any) -> Covered | None:
    known = _known.get(key)
    return known[1] if known is not None and time.monotonic() - known[0] < _KEPT_S else None


def _put(key: Any, covered: Covered) -> None:
    _known[key] = (time.monotonic(), covered)
    while len(_known) > _KEPT:
        _known.popitem(last=False)


_VERSION = (
    "SELECT md5(coalesce(string_agg(CAST(token AS text), '' ORDER BY transaction), ''))"
    " FROM search_changes WHERE user_id = :user_id"
)


def read_version(session: Session, user_id: str) -> str:
    """A hash that differs between two snapshots if anything that the user's searches read was committed in between."""
    return str(session.execute(statement_of(_VERSION), {"user_id": user_id}).scalar_one())


def version_now(user_id: str) -> str:
    """``read_version`` of a snapshot of its own, in one round trip.

    Raises:
        DatabaseUnavailable.
    """
    return str(read_one_as(user_id, statement_of(_VERSION)))


def _state(session: Session, scope: Scope) -> tuple[Any, ...]:
    """A value that changes whenever the user's searchable scenes change; includes the database's name."""
    statement = statement_of(
        "SELECT current_database(), count(*), max(indexed_at), sum(run), sum(published_run), count(deleted_at)"
        " FROM videos WHERE user_id = :user_id"
    )
    return tuple(session.execute(statement, {"user_id": scope.user_id}).one())


def _count(session: Session, scope: Scope, models: Mapping[str, ModelRow]) -> Covered:
    counted = {
        "scenes": "count(*)",
        "keyword": "count(*) FILTER (WHERE s.transcript <> '')",
        "screen": f"count(*) FILTER (WHERE s.ocr_run IS NOT NULL AND {_whole('ocr')})",
        "people": f"count(*) FILTER (WHERE s.face_run IS NOT NULL AND {_whole('face')})",
        "not_looked_at": "count(s.not_looked_at)",
        "languages": "array_agg(DISTINCT coalesce(s.language, ''))",
    }
    joined = ""
    for retriever, model in models.items():
        table = "lexical_weights" if retriever == "lexical" else "embeddings"
        run = "vision_run" if retriever == "vision" else "text_run"
        mine = f"e.user_id = :user_id AND e.model_id = {int(model.model_id)}"
        if scope.is_narrow:
            # Some scenes of many are looked up one by one, ten times as fast as reading the rows of all.
            counted[retriever] = (
                f"count(*) FILTER (WHERE EXISTS (SELECT FROM {table} e WHERE {mine}"
                f" AND e.scene_id = s.scene_id AND e.run = s.{run}))"
            )
        else:
            joined += (
                f" LEFT JOIN (SELECT DISTINCT e.scene_id, e.run FROM {table} e WHERE {mine}) of_{retriever}"
                f" ON of_{retriever}.scene_id = s.scene_id AND of_{retriever}.run = s.{run}"
            )
            counted[retriever] = f"count(of_{retriever}.scene_id)"
    columns = ", ".join(f"{what} AS {name}" for name, what in counted.items())
    statement = statement_of(f"SELECT {columns} FROM scenes s{joined} WHERE {scope.sql()}")
    counts = dict(session.execute(statement, scope.values()).mappings().one())
    scenes, languages, gaps = (counts.pop(name) for name in ("scenes", "languages", "not_looked_at"))
    in_work = videos_in_work(session, scope.user_id)
    return Covered(scenes, counts["keyword"], in_work, counts, tuple(sorted(languages or ())), gaps)


def _whole(stage: str) -> str:
    """That a stage has left nothing out of the scene."""
    return f'(s.not_looked_at IS NULL OR NOT s.not_looked_at @> \'[{{"stage": "{stage}"}}]\')'
