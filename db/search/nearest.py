"""The retriever of vectors: scenes near a query, by the model's index or by comparing them one by one.

Which of the two is chosen here, not by the planner: a small set of vectors is compared one by one, exactly; a large one
goes through an HNSW index with iterative scan, so that a filter never empties the answer: the user's own one, or the
model's until that is built. Model ids and dimensions are literals, and so is the owner of an index: with a parameter in
their place a generic plan loses it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import ceil
from typing import Any, Literal, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector
from sqlalchemy.orm import Session

from db.expressions import statement_of
from db.search.retrievers import Match, Retriever, Tuning, clamp
from db.search.scope import Scope
from db.vectors import ModelRow, index_name, is_indexed, of_user

#: Maximum number of keyframes compared per requested scene, if a few scenes have most of the nearest ones.
_MOST_KEYFRAMES = 32
#: How long the fact that a user has many vectors, or few, is cached: counting them takes as long as finding the nearest.
_KEPT_S, _KEPT = 60.0, 1000
_known: OrderedDict[Any, tuple[float, _Large | None]] = OrderedDict()
#: More vectors than a database can have.
_NO_END = 2**40


class _Large(NamedTuple):
    """A user who has many vectors of a model."""

    #: About: how many of them a scene has.
    per_scene: float
    #: Whether they have an index of their own.
    own_index: bool


@dataclass(frozen=True, eq=False)
class Vector(Retriever):
    """Cosine similarity to a unit vector float32 [dim], of the transcript (``text``) or the best keyframe (``vision``)."""

    name: Literal["text", "vision"]
    model: ModelRow
    vector: npt.NDArray[np.float32]
    proposes: bool = True
    cutoff: float | None = None

    def __post_init__(self) -> None:
        if self.model.dim is None or self.vector.shape != (self.model.dim,):
            raise ValueError(
                f"the query has shape {self.vector.shape}, {self.model.name} searches ({self.model.dim},)"
            )
        if self.model.metric != "cosine":
            raise ValueError(f"{self.model.name} is compared by {self.model.metric}, not by cosine")

    @property
    def _distance(self) -> str:
        dim = int(self.model.dim or 0)
        return f"(e.vec::halfvec({dim})) <=> CAST(:vector AS halfvec({dim}))"

    def _query(self, scope: Scope) -> str:
        """The embeddings of the scope that count: of this model, of this user, of the run published with their scene."""
        return (
            f"SELECT e.scene_id, s.video_id, s.idx, e.ordinal, {self._distance} AS distance"
            " FROM embeddings e JOIN scenes s USING (scene_id)"
            f" WHERE e.model_id = {int(self.model.model_id)} AND e.user_id = :user_id AND e.run = s.{self.name}_run"
            f" AND {scope.sql()}"
        )

    @cached_property
    def _values(self) -> dict[str, Any]:
        return {"vector": HalfVector(self.vector).to_text()}

    def candidates(self, session: Session, scope: Scope, tuning: Tuning) -> dict[UUID, Match]:
        return self._found(session, scope, tuning, tuning.candidates)[0]

    def proposals(
        self, session: Session, scope: Scope, tuning: Tuning, depths: Sequence[int]
    ) -> list[dict[UUID, Match]]:
        deepest, exact = self._found(session, scope, tuning, depths[-1])
        if exact:
            return [dict(islice(deepest.items(), depth)) for depth in depths[:-1]] + [deepest]
        # What the index finds for some is not the beginning of what it finds for more: ask as the earlier page did.
        return [self._found(session, scope, tuning, depth)[0] for depth in depths[:-1]] + [deepest]

    def _found(
        self, session: Session, scope: Scope, tuning: Tuning, count: int
    ) -> tuple[dict[UUID, Match], bool]:
        """The most similar scenes, and whether every vector of the scope was compared."""
        most = tuning.exact_rows
        if scope.is_narrow:
            found = self._one_by_one(session, scope.sql(), {**scope.values(), "rows": count}, most)
            if found is not None:
                return found, True
        large = self._large(session, scope.user_id, most)
        if large is None and not scope.is_narrow:
            return self.nearest_exactly(session, scope, count), True
        return self.nearest(session, scope, count, tuning.ef_search, large), False

    def nearest_exactly(self, session: Session, scope: Scope, count: int) -> dict[UUID, Match]:
        """By comparing every vector of the scope."""
        values = {**scope.values(), "rows": count}
        if scope.is_narrow:
            return self._search(session, scope.sql(), values)
        return self._best(session, self._query(scope), values)[0]

    def nearest(
        self, session: Session, scope: Scope, count: int, ef_search: int, large: _Large | None = None
    ) -> dict[UUID, Match]:
        """By an HNSW index, going on until enough pass the filters."""
        if large is None:
            large = _Large(1.0, is_indexed(session, self.model, scope.user_id))
        rows = ceil(count * large.per_scene)
        while True:
            found, seen = self._nearest_rows(session, scope, count, rows, ef_search, large.own_index)
            if len(found) >= count or seen < rows or rows >= count * _MOST_KEYFRAMES:
                return found
            # A few scenes with many keyframes took the places: look further.
            rows *= 4

    def _nearest_rows(
        self, session: Session, scope: Scope, count: int, rows: int, ef_search: int, own_index: bool
    ) -> tuple[dict[UUID, Match], int]:
        """The scenes among the nearest ``rows`` vectors, and how many vectors there were."""
        # Left to itself the planner sorts whole tables when a filter looks selective to it.
        steer = {
            "hnsw.ef_search": str(min(1000, max(ef_search, rows))),
            # The strict order drops what comes late; here everything found is sorted afterwards.
            "hnsw.iterative_scan": "relaxed_order",
            "enable_sort": "off",
            # Its default ends a deep scan early.
            "hnsw.max_scan_tuples": str(max(20_000, 20 * rows)),
            "hnsw.scan_mem_multiplier": "1" if rows <= 1000 else "8",
        }
        # One statement: what is sent one by one costs as much as a tenth of the search.
        session.execute(
            statement_of(
                "SELECT " + ", ".join(f"set_config('{name}', :v{n}, true)" for n, name in enumerate(steer))
            ),
            {f"v{n}": value for n, value in enumerate(steer.values())},
        )
        try:
            whose = f" AND e.{of_user(scope.user_id)}" if own_index else ""
            query = f"{self._query(scope)}{whose} ORDER BY {self._distance} LIMIT {int(rows)}"
            return self._best(session, query, {**scope.values(), "rows": count})
        finally:
            session.execute(statement_of("SET LOCAL enable_sort = 'on'"))

    def _search(self, session: Session, where: str, values: dict[str, Any]) -> dict[UUID, Match]:
        return self._one_by_one(session, where, values) or {}

    def _one_by_one(
        self, session: Session, where: str, values: dict[str, Any], most: int = _NO_END
    ) -> dict[UUID, Match] | None:
        """The best vector of each of these scenes, nearest first; None when they have more than ``most`` vectors.

        Vectors are looked up scene by scene: the planner does not know how expensive it is to fetch one, and would
        read the vectors of all users for a few. Counting them is part of the statement, not a round trip of its own.
        """
        # One text vector a scene, one vision vector a keyframe.
        size = "1" if self.name == "text" else "jsonb_array_length(s.keyframes)"
        rows = session.execute(
            statement_of(
                f"""
                WITH few AS MATERIALIZED (
                    SELECT s.scene_id, s.video_id, s.idx, s.{self.name}_run AS run, {size} AS size
                    FROM scenes s WHERE {where} LIMIT :most + 1
                ), counted AS MATERIALIZED (SELECT coalesce(sum(few.size), 0) AS vectors FROM few)
                SELECT near.*, counted.vectors FROM counted LEFT JOIN (
                    SELECT few.scene_id, few.video_id, few.idx, best.ordinal, best.distance
                    FROM few CROSS JOIN LATERAL (
                        SELECT e.ordinal, {self._distance} AS distance FROM embeddings e
                        WHERE e.scene_id = few.scene_id AND e.model_id = {int(self.model.model_id)} AND e.run = few.run
                            AND e.user_id = :user_id
                        ORDER BY distance, e.ordinal LIMIT 1
                    ) best
                    WHERE (SELECT counted.vectors FROM counted) <= :most
                    ORDER BY best.distance, few.scene_id LIMIT :rows
                ) near ON true ORDER BY near.distance, near.scene_id
                """
            ),
            {**self._values, **values, "most": most},
        ).all()
        if rows[0].vectors > most:
            return None
        return self._matches(rows)

    def _best(self, session: Session, near: str, values: dict[str, Any]) -> tuple[dict[UUID, Match], int]:
        """The best vector of each scene of a query, nearest first, and how many vectors the query gave."""
        rows = session.execute(
            statement_of(
                f"""
                SELECT near.scene_id, near.video_id, near.idx,
                    (array_agg(near.ordinal ORDER BY near.distance, near.ordinal))[1] AS ordinal,
                    min(near.distance) AS distance, sum(count(*)) OVER () AS seen
                FROM ({near}) near GROUP BY near.scene_id, near.video_id, near.idx
                ORDER BY distance, near.scene_id LIMIT :rows
                """
            ),
            {**self._values, **values},
        ).all()
        return self._matches(rows), int(rows[0].seen) if rows else 0

    def _matches(self, rows: Sequence[Any]) -> dict[UUID, Match]:
        """Rows: scene, video, place in it, ordinal, distance and one thing more; a row without a scene is none."""
        sees = self.name == "vision"
        return {
            scene_id: Match(clamp(1 - distance), ordinal if sees else None, (video_id, idx))
            for scene_id, video_id, idx, ordinal, distance, _ in rows
            if scene_id is not None
        }

    def _large(self, session: Session, user_id: str, most: int) -> _Large | None:
        """What is known of a user's vectors; None when they are ``most`` at most."""
        key = (session.get_bind().engine.url, user_id, self.model.model_id, most)
        known = _known.get(key)
        if known is not None and time.monotonic() - known[0] < _KEPT_S:
            return known[1]
        mine = f"FROM embeddings WHERE user_id = :user_id AND model_id = {int(self.model.model_id)}"
        statement = statement_of(
            f"""
            SELECT CASE WHEN EXISTS (SELECT {mine} OFFSET :most) THEN
                (SELECT count(*) / greatest(1, count(DISTINCT few.scene_id))::float8
                 FROM (SELECT scene_id {mine} LIMIT 1000) few)
            END AS per_scene,
            (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)) AS own_index
            """
        )
        values = {"user_id": user_id, "most": most, "name": index_name(self.model.model_id, user_id)}
        row = session.execute(statement, values).one()
        large = None if row.per_scene is None else _Large(float(row.per_scene), row.own_index is True)
        _known[key] = (time.monotonic(), large)
        while len(_known) > _KEPT:
            _known.popitem(last=False)
        return large
