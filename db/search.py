"""Finding scenes: by words, by meaning. Every query is scoped by ``user_id`` and sees published scenes only.

The plan is chosen here, not by the planner: a small set of vectors is compared one by one, exactly; a large one goes
through the model's HNSW index with iterative scan, so that a filter never empties the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector
from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.scenes import videos_in_work
from db.vectors import ModelRow
from shared.contracts import Coverage, SearchHit
from shared.errors import InvalidRequest

_COLUMNS = "s.scene_id, s.video_id, s.idx, s.start_s, s.end_s, s.transcript, s.keyframes"

# ts_rank_cd with 32: rank/(rank+1), within 0..1.
_KEYWORD = text(
    f"""
    SELECT {_COLUMNS}, ts_rank_cd(s.tsv, q.query, 32) AS score
    FROM scenes s, (
        SELECT websearch_to_tsquery('english', :query) || websearch_to_tsquery('simple', :query) AS query
    ) q
    WHERE s.user_id = :user_id AND s.live AND s.tsv @@ q.query
      AND (CAST(:video_id AS text) IS NULL OR s.video_id = :video_id)
    ORDER BY score DESC, s.video_id, s.idx
    LIMIT :limit
    """
)

# Program limit exceeded, data exception, internal error: what parsing a hostile query ends with.
_REFUSED = ("54", "22", "XX")


def by_words(
    session: Session, user_id: str, query: str, limit: int, video_id: str | None = None
) -> list[SearchHit]:
    """Scenes in which the query's words are spoken, best first; understands "quoted phrases", or, -not.

    Raises:
        InvalidRequest: Postgres can't make a search of it: a word of over 2 KB, dozens of nested "not".
    """
    values = {"user_id": user_id, "query": query, "limit": limit, "video_id": video_id}
    try:
        rows = session.execute(_KEYWORD, values).all()
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if state[:2] not in _REFUSED:
            raise
        reason = str(error.orig).split("\n")[0]
        raise InvalidRequest(
            f"query={query[:40]!r} can't be searched ({reason}): use plain, shorter words"
        ) from error
    return _hits(rows)


def by_meaning(
    session: Session,
    user_id: str,
    model: ModelRow,
    vector: npt.NDArray[np.float32],
    limit: int,
    video_id: str | None = None,
    *,
    exact_rows: int,
    ef_search: int,
) -> list[SearchHit]:
    """Scenes nearest in meaning to a unit vector float32 [dim]; score is 1 - cosine distance.

    Compares exactly when the user (or the video) has at most ``exact_rows`` vectors of the model.
    """
    if model.dim is None or vector.shape != (model.dim,):
        raise ValueError(f"the query has shape {vector.shape}, {model.name} searches ({model.dim},)")
    model_id, dim = int(model.model_id), int(model.dim)
    scope = "e.user_id = :user_id AND s.user_id = :user_id AND s.live AND e.run = s.text_run"
    if video_id is not None:
        scope += " AND s.video_id = :video_id"
    distance = f"(e.vec::halfvec({dim})) <=> CAST(:vector AS halfvec({dim}))"
    values: dict[str, Any] = {
        "user_id": user_id, "video_id": video_id, "limit": limit, "vector": HalfVector(vector).to_text()
    }  # fmt: skip
    exact = video_id is not None or _vectors_up_to(session, user_id, model_id, exact_rows + 1) <= exact_rows
    if exact:
        statement = f"""
            WITH mine AS MATERIALIZED (
                SELECT e.scene_id, e.vec FROM embeddings e JOIN scenes s USING (scene_id)
                WHERE e.model_id = {model_id} AND {scope}
            )
            SELECT {_COLUMNS}, 1 - ({distance}) AS score
            FROM mine e JOIN scenes s USING (scene_id)
            ORDER BY {distance}, s.video_id, s.idx LIMIT :limit
        """
    else:
        session.execute(
            text("SELECT set_config('hnsw.ef_search', :ef, true)"), {"ef": str(max(ef_search, limit))}
        )
        session.execute(text("SET LOCAL hnsw.iterative_scan = 'strict_order'"))
        statement = f"""
            SELECT {_COLUMNS}, 1 - ({distance}) AS score
            FROM embeddings e JOIN scenes s USING (scene_id)
            WHERE e.model_id = {model_id} AND {scope}
            ORDER BY {distance} LIMIT :limit
        """
    return _hits(session.execute(text(statement), values).all())


def _vectors_up_to(session: Session, user_id: str, model_id: int, limit: int) -> int:
    """How many vectors of a model a user has, counted no further than ``limit``."""
    return int(
        session.execute(
            text(
                "SELECT count(*) FROM (SELECT 1 FROM embeddings WHERE user_id = :user_id"
                f" AND model_id = {int(model_id)} LIMIT :limit) few"
            ),
            {"user_id": user_id, "limit": limit},
        ).scalar_one()
    )


def _hits(rows: Sequence[Row[Any]]) -> list[SearchHit]:
    return [
        SearchHit(
            scene_id=str(row.scene_id),
            video_id=row.video_id,
            idx=row.idx,
            start_s=row.start_s,
            end_s=row.end_s,
            transcript=row.transcript,
            score=float(row.score),
            keyframe_keys=tuple(keyframe["key"] for keyframe in row.keyframes),
        )
        for row in rows
    ]


def coverage(session: Session, user_id: str, model: ModelRow | None, video_id: str | None = None) -> Coverage:
    """How much of the user's scenes the search could look at."""
    vectors = "NULL"
    if model is not None:
        vectors = f"""count(*) FILTER (WHERE EXISTS (
            SELECT 1 FROM embeddings e WHERE e.scene_id = s.scene_id
              AND e.model_id = {int(model.model_id)} AND e.run = s.text_run))"""
    row = session.execute(
        text(
            f"""
            SELECT count(*) AS scenes, count(*) FILTER (WHERE s.transcript <> '') AS with_words, {vectors} AS with_vectors
            FROM scenes s WHERE s.user_id = :user_id AND s.live
              AND (CAST(:video_id AS text) IS NULL OR s.video_id = :video_id)
            """
        ),
        {"user_id": user_id, "video_id": video_id},
    ).one()
    return Coverage(
        scenes=row.scenes,
        with_words=row.with_words,
        with_vectors=row.with_vectors,
        videos_in_work=videos_in_work(session, user_id),
    )
