"""Combines several retrievers into one order: each proposes its best scenes, and all retrievers compare every proposed scene.

``score = text * weight + vision * weight + ... + boost of people``, each similarity within 0..1; the order is by score,
then video, then place in the video, so it is deterministic.

Words alone, people alone, words with people, and filters alone are read from Postgres in this order, page by page: complete, and every page
costs the same. Other searches come in blocks: the scenes among the first ``candidates`` of any retriever in order, then those among four times as
many that are not in an earlier block, and so on down to ``depth``. So no scene is repeated or left out between pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from db.expressions import statement_of
from db.search.retrievers import Match, People, Retriever, Tuning, Words, clamp
from db.search.scope import Scope

#: A block has this many times the depth of the one before.
_DEEPER = 4
_NOTHING = Match(0.0)


class Place(NamedTuple):
    """A place in the order; the first three fields sort as the order does within a block."""

    minus_score: float
    video_id: str
    idx: int
    #: The block, and the depth of the first one.
    block: int = 0
    first: int = 0


@dataclass(frozen=True)
class Found:
    """A scene and its place in the order."""

    scene_id: UUID
    video_id: str
    idx: int
    score: float
    #: Retriever -> similarity; 0 if the scene has nothing to compare.
    matches: dict[str, Match]
    block: int = 0
    first: int = 0

    @property
    def place(self) -> Place:
        return Place(-self.score, self.video_id, self.idx, self.block, self.first)


@dataclass(frozen=True)
class Ranking:
    """A page of the order."""

    hits: tuple[Found, ...]
    #: Whether there is more after it.
    more: bool
    #: Scenes that were compared and left out, because no retriever finds them similar.
    left_out: int = 0
    #: Whether the order ends at the depth of the search, and there may be more.
    truncated: bool = False


def find(
    session: Session,
    scope: Scope,
    retrievers: Sequence[Retriever],
    weights: Mapping[str, float],
    tuning: Tuning,
    *,
    limit: int,
    after: Place | None = None,
    min_score: float | None = None,
) -> Ranking:
    """Find the scenes of the scope with the highest scores, starting after ``after`` (the ``place`` of a hit)."""
    words = next((one for one in retrievers if isinstance(one, Words)), None)
    people = next((one for one in retrievers if isinstance(one, People)), None)
    proposing = [one for one in retrievers if one.proposes]
    if len(proposing) == 1 and len(retrievers) == (words is not None) + (people is not None):
        return _listed(session, scope, words, people, weights, limit, after, min_score)
    if not retrievers:
        return _listed(session, scope, None, None, weights, limit, after, min_score)
    return _Blocks(session, scope, retrievers, weights, tuning, min_score).find(limit, after)


def _listed(
    session: Session,
    scope: Scope,
    words: Words | None,
    people: People | None,
    weights: Mapping[str, float],
    limit: int,
    after: Place | None,
    min_score: float | None,
) -> Ranking:
    """A page that Postgres puts in order: ``words`` with or without ``people``, people alone, or all scenes of the scope."""
    values: dict[str, Any] = {**scope.values(), "rows": limit + 1}
    names = [one.name for one in (words, people) if one is not None]
    confidence = ""
    if people is not None:
        confidence = (
            ", (SELECT least(1, coalesce(sum(p.confidence ORDER BY p.person_id), 0) / :wanted_count)"
            " FROM scene_people p WHERE p.scene_id = s.scene_id AND p.user_id = :user_id"
            " AND p.person_id = ANY(:wanted)) AS confidence"
        )
        wanted = sorted(set(people.persons))
        values |= {"wanted": wanted, "wanted_count": len(wanted), "people_weight": float(weights["people"])}
    if words is not None:
        found, of_words = words.ranks(scope.sql(), confidence)
        if not found:
            return Ranking((), more=False)
        keyword = "rank / (rank + :half)"
        values |= {**of_words, "half": words.half, "words_weight": float(weights[words.name])}
        score = f"CAST(:words_weight AS float8) * ({keyword})"
        if people is not None:
            score += " + CAST(:people_weight AS float8) * confidence"
    else:
        keyword = "0"
        found = f"SELECT s.scene_id, s.video_id, s.idx FROM scenes s WHERE {scope.sql()}"
        score = "0"
        if people is not None:
            found = (
                "SELECT s.scene_id, s.video_id, s.idx, least(1, sure.total / :wanted_count) AS confidence"
                " FROM (SELECT p.scene_id, sum(p.confidence ORDER BY p.person_id) AS total FROM scene_people p"
                " WHERE p.user_id = :user_id AND p.person_id = ANY(:wanted) GROUP BY p.scene_id) sure"
                f" JOIN scenes s USING (scene_id) WHERE {scope.sql()}"
            )
            score = "CAST(:people_weight AS float8) * confidence"
    conditions = ["true"]
    if min_score is not None:
        conditions.append("score >= CAST(:min_score AS float8)")
        values["min_score"] = min_score
    if not names:
        # Every score is 0: Postgres reads the scenes in the order of their index.
        conditions += ["(video_id, idx) > (:after_video, :after_idx)"] if after is not None else []
        order = "video_id, idx"
    else:
        if after is not None:
            conditions.append(
                "(score < CAST(:after_score AS float8) OR"
                " (score = CAST(:after_score AS float8) AND (video_id, idx) > (:after_video, :after_idx)))"
            )
        order = "score DESC, video_id, idx"
    if after is not None:
        values |= {"after_score": -after.minus_score, "after_video": after.video_id, "after_idx": after.idx}
    # OFFSET 0: each rank and confidence is computed once.
    fence = " OFFSET 0" if names else ""
    rows = session.execute(
        statement_of(
            f"""
            SELECT scene_id, video_id, idx, score, keyword, confidence FROM (
                SELECT scene_id, video_id, idx, {score} AS score, {keyword} AS keyword,
                    {"confidence" if people is not None else "0"} AS confidence
                FROM ({found}{fence}) found{fence}
            ) scored
            WHERE {" AND ".join(conditions)} ORDER BY {order} LIMIT :rows
            """
        ),
        values,
    ).all()
    hits = [
        Found(
            row.scene_id,
            row.video_id,
            row.idx,
            float(row.score),
            {
                name: Match(
                    clamp(row.confidence if name == "people" else row.keyword), place=(row.video_id, row.idx)
                )
                for name in names
            },
        )
        for row in rows
    ]
    return Ranking(tuple(hits[:limit]), more=len(hits) > limit)


class _Blocks:
    """The order of a search of several retrievers, block by block."""

    def __init__(
        self,
        session: Session,
        scope: Scope,
        retrievers: Sequence[Retriever],
        weights: Mapping[str, float],
        tuning: Tuning,
        min_score: float | None,
    ) -> None:
        self.session, self.scope, self.retrievers = session, scope, retrievers
        self.weights, self.tuning, self.min_score = weights, tuning, min_score
        #: Retrievers that propose nothing beyond what they have proposed.
        self.ended: set[str] = set()
        #: Retrievers that have compared every scene that they can compare.
        self.exhausted: set[str] = set()
        #: The highest score of a scene that no block has yet.
        self.bound = 0.0
        self.left_out = 0

    def find(self, limit: int, after: Place | None) -> Ranking:
        first = after.first if after is not None and after.first else self.tuning.candidates
        depths = [first]
        while depths[-1] < self.tuning.depth:
            depths.append(min(_DEEPER * depths[-1], self.tuning.depth))
        begin = 0 if after is None else min(after.block, len(depths) - 1)
        hits: list[Found] = []
        for block in range(begin, len(depths)):
            found = self._block(depths[: block + 1])
            if after is not None and block == begin:
                found = [one for one in found if one[0] > after[:3]]
            hits += self._found(found[: limit + 1 - len(hits)], block, first)
            if len(hits) > limit:
                return Ranking(tuple(hits[:limit]), True, self.left_out)
            if self._is_last():
                return Ranking(tuple(hits), False, self.left_out)
        return Ranking(tuple(hits), False, self.left_out, truncated=True)

    def _is_last(self) -> bool:
        """Whether no retriever proposes more, or nothing more can have the score that is wanted."""
        if all(one.name in self.ended for one in self.retrievers if one.proposes):
            return True
        return self.min_score is not None and self.bound < self.min_score

    def _block(self, depths: Sequence[int]) -> list[tuple[tuple[float, str, int], dict[str, Match], UUID]]:
        """The scenes of the last of these depths that no earlier one has, in order."""
        # By scene first: ids are costly to look up, a search of two retrievers has over a thousand similarities.
        matches: dict[UUID, dict[str, Match]] = {}
        earlier: set[UUID] = set()
        self.ended, self.exhausted, self.bound = set(), set(), 0.0
        for retriever in self.retrievers:
            if not retriever.proposes:
                self.bound += self.weights[retriever.name]
                continue
            # One scene more than is wanted says whether there are more.
            asked = [depth + 1 for depth in depths]
            *before, deepest = retriever.proposals(self.session, self.scope, self.tuning, asked)
            for proposed, depth in zip(before, depths, strict=False):
                earlier.update(islice(proposed, depth))
            found = dict(islice(deepest.items(), depths[-1]))
            self._note(retriever, found, len(deepest) > depths[-1])
            for scene_id, match in found.items():
                matches.setdefault(scene_id, {})[retriever.name] = match
        for scene_id in earlier:
            matches.pop(scene_id, None)
        for retriever in self.retrievers:
            if retriever.name in self.exhausted:
                # It has nothing to say about the others.
                continue
            unknown = [scene_id for scene_id, own in matches.items() if retriever.name not in own]
            if unknown:
                for scene_id, match in retriever.compare(self.session, self.scope, unknown).items():
                    matches[scene_id][retriever.name] = match
        return self._ordered(matches)

    def _note(self, retriever: Retriever, found: dict[UUID, Match], more: bool) -> None:
        """Note whether a retriever has more to propose than these."""
        if not more:
            self.ended.add(retriever.name)
            if retriever.exhaustive:
                self.exhausted.add(retriever.name)
            return
        last = found[next(reversed(found))]
        self.bound += self.weights[retriever.name] * last.similarity
        if self.tuning.cut and not retriever.finds(last):
            self.ended.add(retriever.name)

    def _ordered(
        self, matches: Mapping[UUID, dict[str, Match]]
    ) -> list[tuple[tuple[float, str, int], dict[str, Match], UUID]]:
        # Summed in one order: the same scene has the same score on every page, to the last bit.
        weights = [(one.name, self.weights[one.name]) for one in self.retrievers]
        scored = []
        for scene_id, own in matches.items():
            if self.tuning.cut and not any(
                one.name in own and one.finds(own[one.name]) for one in self.retrievers
            ):
                self.left_out += 1
                continue
            score = sum([weight * own[name].similarity for name, weight in weights if name in own], 0.0)
            if self.min_score is None or score >= self.min_score:
                scored.append(((-score, *next(iter(own.values())).place), own, scene_id))
        scored.sort(key=lambda one: one[0])
        return scored

    def _found(
        self, scored: Sequence[tuple[tuple[float, str, int], dict[str, Match], UUID]], block: int, first: int
    ) -> list[Found]:
        names = [retriever.name for retriever in self.retrievers]
        return [
            Found(
                scene_id,
                video_id,
                idx,
                -minus,
                {name: own.get(name, _NOTHING) for name in names},
                block,
                first,
            )
            for (minus, video_id, idx), own, scene_id in scored
        ]
