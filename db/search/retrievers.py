"""The retrievers of a search: each proposes the most similar scenes by one kind of similarity, and compares any scene by it.

Words are looked for in the views ``searched_*`` and in nothing else: one table with row-level security in the same query
would cost them their index. The retriever of vectors is ``db.search.nearest``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pgvector import SparseVector
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.expressions import statement_of
from db.lexicons import WITHOUT_LANGUAGE, lexicon_of
from db.search.scope import Scope
from db.vectors import ModelRow
from shared.errors import InvalidRequest

#: Program limit exceeded, data exception, internal error: what parsing a hostile query ends with.
_REFUSED = ("54", "22", "XX")
#: Tokens of a query that candidates are found by; the others only add to the similarity.
_MAX_TOKENS = 24
#: A token that weighs less than this share of the heaviest finds no candidates: half of all scenes contain it.
_LIGHT = 0.25
#: ts_rank_cd gives 0.2 to a word spoken once (as itself and as its stem): a similarity of 0.5; more words approach 1.
_RANK_HALF = 0.2
#: (database, model) -> the size of the model's vocabulary, which never changes.
_sizes: dict[Any, int] = {}


@dataclass(frozen=True)
class Tuning:
    """Parameters of a search; see the settings of the same names."""

    exact_rows: int = 20_000
    ef_search: int = 200
    #: Scenes each retriever puts forward at first.
    candidates: int = 150
    #: Scenes each retriever puts forward at most, for later pages.
    depth: int = 10_000
    #: Whether to leave out scenes that no retriever finds similar.
    cut: bool = False


class Match(NamedTuple):
    """A scene's similarity by one retriever; a tuple, because there are many."""

    #: 0..1
    similarity: float
    #: The keyframe that fits best.
    ordinal: int | None = None
    #: The scene's video, and its place there.
    place: tuple[str, int] = ("", 0)


class Retriever(ABC):
    """One kind of similarity."""

    name: str
    #: Whether it proposes scenes, or only compares those of the other retrievers.
    proposes: bool
    #: Whether ``candidates`` finds every scene that it can compare, unless it finds as many as are wanted.
    exhaustive = False
    #: Scenes below this similarity are not similar; None: every scene that it proposes counts as similar.
    cutoff: float | None = None
    #: The column of its query with the scene's id.
    _scene_id = "s.scene_id"

    def finds(self, match: Match) -> bool:
        """Whether a scene is similar enough to be found by this retriever alone."""
        return self.cutoff is None or match.similarity >= self.cutoff

    def proposals(
        self, session: Session, scope: Scope, tuning: Tuning, depths: Sequence[int]
    ) -> list[dict[UUID, Match]]:
        """The most similar scenes of the scope, best first: at most as many as each of the (rising) ``depths``."""
        deepest = self.candidates(session, scope, replace(tuning, candidates=depths[-1]))
        return [
            deepest if depth >= len(deepest) else dict(islice(deepest.items(), depth)) for depth in depths
        ]

    def candidates(self, session: Session, scope: Scope, tuning: Tuning) -> dict[UUID, Match]:
        """The most similar scenes of the scope, best first, at most ``tuning.candidates``."""
        return self._search(session, scope.sql(), {**scope.values(), "rows": tuning.candidates})

    def compare(self, session: Session, scope: Scope, scenes: Collection[UUID]) -> dict[UUID, Match]:
        """The similarities of these scenes of the scope's user; scenes with nothing to compare are absent."""
        where = f"s.user_id = :user_id AND s.live AND {self._scene_id} = ANY(CAST(:scenes AS uuid[]))"
        # One text: the driver would escape each id of a list.
        ids = f"{{{','.join(map(str, scenes))}}}"
        return self._search(session, where, {"user_id": scope.user_id, "scenes": ids, "rows": len(scenes)})

    @abstractmethod
    def _search(self, session: Session, where: str, values: dict[str, Any]) -> dict[UUID, Match]:
        """The most similar of some scenes. ``where``: their condition; ``values``: its parameters, and ``rows``."""


@dataclass(frozen=True)
class WordsQuery:
    """A query in the stems of one configuration of Postgres."""

    lexicon: str
    #: Text of the tsquery; empty: it contains no word.
    tsquery: str
    #: The languages of the scenes that it is for; None: of all scenes.
    languages: tuple[str, ...] | None = None

    def among(self, place: int) -> tuple[str, dict[str, Any]]:
        """What must hold of ``s.language``, and its parameters."""
        if self.languages is None:
            return "true", {}
        return f"coalesce(s.language, '') = ANY(:languages{place})", {
            f"languages{place}": list(self.languages)
        }


def read_words(session: Session, query: str, languages: Collection[str] = ()) -> tuple[WordsQuery, ...]:
    """Parse a query as the words of the scenes were: once per configuration of the scope's languages.

    It understands "quoted phrases", or, -not. Ends the session's transaction if it raises.
    ``languages``: of the scope's scenes; "" stands for scenes without one.

    Raises:
        InvalidRequest: Postgres can't make a search of it: a word of over 2 KB, dozens of nested "not".
    """
    of_lexicon: dict[str, list[str]] = {}
    for language in sorted(languages):
        of_lexicon.setdefault(lexicon_of(language) if language else WITHOUT_LANGUAGE, []).append(language)
    lexicons = sorted(of_lexicon) or [WITHOUT_LANGUAGE]
    statement = statement_of(
        "SELECT lexicon, CAST(websearch_to_tsquery(CAST(lexicon AS regconfig), :query)"
        " || websearch_to_tsquery('simple', :query) AS text) AS tsquery"
        " FROM unnest(CAST(:lexicons AS text[])) AS lexicon"
    )
    try:
        rows = session.execute(statement, {"query": query, "lexicons": lexicons}).all()
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if state[:2] not in _REFUSED:
            raise
        session.rollback()
        reason = str(error.orig).split("\n")[0]
        raise InvalidRequest(
            f"query={query[:40]!r} can't be searched ({reason}): use plain, shorter words"
        ) from error
    if len(rows) == 1:
        return (WordsQuery(*rows[0]),)
    return tuple(WordsQuery(lexicon, tsquery, tuple(of_lexicon[lexicon])) for lexicon, tsquery in rows)


@dataclass(frozen=True)
class Words(Retriever):
    """Spoken words (``keyword``) or on-screen text (``screen``). ``queries``: from ``read_words``."""

    name: Literal["keyword", "screen"]
    queries: tuple[WordsQuery, ...]
    #: The rank that is a similarity of 0.5.
    half: float = _RANK_HALF
    proposes: bool = True
    exhaustive = True

    def ranks(self, where: str, columns: str = "") -> tuple[str, dict[str, Any]]:
        """A query for the matching scenes with their ``rank``, and its parameters; empty: no words are searched for."""
        column = "s.tsv" if self.name == "keyword" else "s.screen_tsv"
        parts: list[str] = []
        values: dict[str, Any] = {}
        for place, query in enumerate(self.queries):
            if query.tsquery:
                among, of_among = query.among(place)
                parts.append(
                    f"""
                    SELECT s.scene_id, s.video_id, s.idx, CAST(ts_rank_cd({column}, q.query) AS float8) AS rank{columns}
                    FROM searched_scenes s, (SELECT CAST(:tsquery{place} AS tsquery) AS query) q
                    WHERE {where} AND {among} AND {column} @@ q.query
                    """
                )
                values |= {f"tsquery{place}": query.tsquery, **of_among}
        return " UNION ALL ".join(parts), values

    def _search(self, session: Session, where: str, values: dict[str, Any]) -> dict[UUID, Match]:
        ranks, own = self.ranks(where)
        if not ranks:
            return {}
        statement = statement_of(f"{ranks} ORDER BY rank DESC, video_id, idx LIMIT :rows")
        rows = session.execute(statement, {**values, **own})
        half = self.half
        return {
            row.scene_id: Match(row.rank / (row.rank + half), place=(row.video_id, row.idx)) for row in rows
        }


@dataclass(frozen=True, eq=False)
class Lexical(Retriever):
    """Inner product of lexical weights, divided by that of the query with itself."""

    model: ModelRow
    #: Token id of the model's vocabulary -> weight above 0.
    weights: Mapping[int, float]
    name: Literal["lexical"] = "lexical"
    proposes: bool = True
    cutoff: float | None = None
    _scene_id = "l.scene_id"

    @property
    def _finding(self) -> list[int]:
        """The tokens that candidates are found by: those that weigh most."""
        heaviest = sorted(self.weights.items(), key=lambda item: (-item[1], item[0]))[:_MAX_TOKENS]
        return [token for token, weight in heaviest if weight >= _LIGHT * heaviest[0][1]]

    def candidates(self, session: Session, scope: Scope, tuning: Tuning) -> dict[UUID, Match]:
        where = f"l.tokens && CAST(:tokens AS integer[]) AND {scope.sql()}"
        values = {**scope.values(), "tokens": self._finding, "rows": tuning.candidates}
        return self._search(session, where, values)

    def _search(self, session: Session, where: str, values: dict[str, Any]) -> dict[UUID, Match]:
        own = sum(weight * weight for weight in self.weights.values())
        size = self._vocabulary_size(session, values["user_id"])
        if not own or size is None:
            return {}
        known = {token: weight for token, weight in self.weights.items() if token < size}
        rows = session.execute(
            statement_of(
                f"""
                SELECT l.scene_id, s.video_id, s.idx, -(l.weights <#> CAST(:weights AS sparsevec)) AS product
                FROM searched_weights l JOIN searched_scenes s USING (scene_id)
                WHERE l.model_id = {int(self.model.model_id)} AND l.user_id = :user_id AND l.run = s.text_run AND {where}
                ORDER BY product DESC, s.video_id, s.idx LIMIT :rows
                """
            ),
            {**values, "weights": SparseVector(known, size).to_text()},
        )
        return {
            row.scene_id: Match(clamp(row.product / own), place=(row.video_id, row.idx))
            for row in rows
            if row.product > 0
        }

    def _vocabulary_size(self, session: Session, user_id: str) -> int | None:
        """Sparse vectors are compared only with others of their length; any row has it."""
        key = (session.get_bind().engine.url, self.model.model_id)
        if key not in _sizes:
            statement = statement_of(
                "SELECT CAST(weights AS text) FROM lexical_weights"
                f" WHERE user_id = :user_id AND model_id = {int(self.model.model_id)} LIMIT 1"
            )
            found = session.execute(statement, {"user_id": user_id}).scalar()
            if found is None:
                return None
            _sizes[key] = int(str(found).rpartition("/")[2])
        return _sizes[key]


@dataclass(frozen=True)
class People(Retriever):
    """Confidence of the requested persons: the mean over them, 0 for one who is absent."""

    persons: tuple[str, ...]
    proposes: bool
    name: Literal["people"] = "people"

    def _search(self, session: Session, where: str, values: dict[str, Any]) -> dict[UUID, Match]:
        rows = session.execute(
            statement_of(
                f"""
                SELECT s.scene_id, s.video_id, s.idx, sum(p.confidence ORDER BY p.person_id) AS confidence
                FROM scene_people p JOIN scenes s USING (scene_id)
                WHERE p.user_id = :user_id AND p.person_id = ANY(:wanted) AND {where}
                GROUP BY s.scene_id, s.video_id, s.idx ORDER BY confidence DESC, s.video_id, s.idx LIMIT :rows
                """
            ),
            {**values, "wanted": list(self.persons)},
        )
        persons = len(set(self.persons))
        return {
            row.scene_id: Match(clamp(row.confidence / persons), place=(row.video_id, row.idx))
            for row in rows
        }


def exemplar(
    session: Session, user_id: str, scene: UUID, models: Mapping[str, ModelRow]
) -> dict[str, npt.NDArray[np.float32]] | None:
    """Read a published scene of the user as a query; None: there is no such scene.

    Several keyframes count as the middle between them.

    Returns:
        Unit vector float32 [dim] by retriever, of the models asked for; a retriever the scene has no vector for is absent.
    """
    values = {"scene": scene, "user_id": user_id}
    shown = statement_of(
        "SELECT 1 FROM scenes s WHERE s.scene_id = :scene AND s.user_id = :user_id AND s.live"
    )
    if session.execute(shown, values).one_or_none() is None:
        return None
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    for retriever, model in models.items():
        rows = session.execute(
            statement_of(
                f"SELECT e.vec::halfvec({int(model.dim or 0)})::real[] AS vec FROM embeddings e JOIN scenes s USING (scene_id)"
                f" WHERE e.scene_id = :scene AND e.user_id = :user_id AND e.model_id = {int(model.model_id)}"
                f" AND e.run = s.{'text' if retriever == 'text' else 'vision'}_run"
            ),
            values,
        ).all()
        middle = np.sum([np.asarray(row.vec, np.float32) for row in rows], axis=0) if rows else None
        if middle is not None and (length := float(np.linalg.norm(middle))):
            vectors[retriever] = np.asarray(middle / length, np.float32)
    return vectors


def clamp(similarity: float) -> float:
    """Clamp a similarity to 0..1, against rounding of half precision; opposites and NaN count as 0."""
    return min(1.0, float(similarity)) if similarity > 0 else 0.0
