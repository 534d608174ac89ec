"""Measures the recall of the vector index on a user's own vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.search.nearest import Vector
from db.search.scope import Scope
from db.vectors import SEARCHED, ModelRow, model_row

#: Differences of similarity below half precision.
_EQUAL = 1e-6


@dataclass(frozen=True)
class Recall:
    """Results of the index compared with an exact scan. Times in milliseconds."""

    model: str
    family: str
    vectors: int
    queries: int
    #: Number of results per query.
    at: int
    #: 0..1: share of the exact results that the index found, over all queries.
    recall: float
    exact_p50_ms: float
    exact_p95_ms: float
    index_p50_ms: float
    index_p95_ms: float


def stored_models(session: Session, user_id: str) -> list[tuple[ModelRow, int]]:
    """Searched models that the user has vectors of, and the number of vectors."""
    rows = session.execute(
        text(
            "SELECT m.model_id, m.name, m.revision, m.family, m.dim, m.metric, e.n FROM models m JOIN"
            " (SELECT model_id, count(*) AS n FROM embeddings WHERE user_id = :user_id GROUP BY model_id) e"
            " USING (model_id) WHERE m.family = ANY(:families) AND m.metric = 'cosine' ORDER BY m.family, m.name"
        ),
        {"user_id": user_id, "families": list(SEARCHED)},
    )
    return [(model_row(row), row.n) for row in rows]


def sample(
    session: Session, user_id: str, model: ModelRow, count: int, noise: float = 0.3
) -> list[npt.NDArray[np.float32]]:
    """Queries near some of the user's vectors, equal to none; always the same ones."""
    rows = session.execute(
        text(
            f"SELECT e.vec::halfvec({int(model.dim or 0)})::real[] AS vec FROM embeddings e JOIN scenes s USING (scene_id)"
            f" WHERE e.user_id = :user_id AND e.model_id = {int(model.model_id)} AND s.user_id = :user_id AND s.live"
            " ORDER BY md5(e.scene_id::text || e.ordinal::text) LIMIT :count"
        ),
        {"user_id": user_id, "count": count},
    ).all()
    rng = np.random.default_rng(1)
    queries = []
    for row in rows:
        direction = rng.normal(size=len(row.vec)).astype(np.float32)
        query = np.asarray(row.vec, np.float32) + noise * direction / np.linalg.norm(direction)
        queries.append(np.asarray(query / np.linalg.norm(query), np.float32))
    return queries


def measure(
    session: Session,
    user_id: str,
    model: ModelRow,
    vectors: int,
    queries: Sequence[npt.NDArray[np.float32]],
    *,
    ef_search: int,
    at: int = 10,
) -> Recall:
    """Run each query twice, by an exact scan and by the index."""
    scope = Scope(user_id=user_id)
    found = wanted = 0
    times: dict[str, list[float]] = {"exact": [], "index": []}
    for query in queries:
        retriever = Vector("text" if model.family == "text" else "vision", model, query)
        began = time.perf_counter()
        exact = retriever.nearest_exactly(session, scope, at)
        times["exact"].append(time.perf_counter() - began)
        began = time.perf_counter()
        by_index = retriever.nearest(session, scope, at, ef_search)
        times["index"].append(time.perf_counter() - began)
        wanted += len(exact)
        # By similarity: of equally similar scenes any is correct.
        least = min((match.similarity for match in exact.values()), default=0.0) - _EQUAL
        found += min(len(exact), sum(match.similarity >= least for match in by_index.values()))
    shown = {
        f"{how}_p{share}_ms": round(float(np.percentile(taken, share)) * 1000, 2) if taken else 0.0
        for how, taken in times.items()
        for share in (50, 95)
    }
    return Recall(
        model=model.name,
        family=model.family,
        vectors=vectors,
        queries=len(queries),
        at=at,
        recall=round(found / wanted, 4) if wanted else 1.0,
        **shown,
    )
