"""Combines several retrievers into one order: each proposes its best scenes, and all retrievers compare every proposed scene.

``score = text * weight + vision * weight + ... + boost of people``, each similarity within 0..1; the order is by score,
then video, then place in the video, so it is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from db.search.retrievers import Match, Retriever, Tuning
from db.search.scope import Scope


@dataclass(frozen=True)
class Found:
    """A scene and its place in the order."""

    scene_id: UUID
    video_id: str
    idx: int
    score: float
    #: Retriever -> similarity; 0 if the scene has nothing to compare.
    matches: dict[str, Match]

    @property
    def place(self) -> tuple[float, str, int]:
        """Sorts as the order does."""
        return (-self.score, self.video_id, self.idx)


@dataclass(frozen=True)
class Ranking:
    """A page of the order."""

    hits: tuple[Found, ...]
    #: Whether there is more after it.
    more: bool


def find(
    session: Session,
    scope: Scope,
    retrievers: Sequence[Retriever],
    weights: Mapping[str, float],
    tuning: Tuning,
    *,
    limit: int,
    after: tuple[float, str, int] | None = None,
    min_score: float | None = None,
) -> Ranking:
    """Find the scenes of the scope with the highest scores, starting after ``after`` (the ``place`` of a hit)."""
    # By scene first: ids are costly to look up, a search of two retrievers has over a thousand similarities.
    matches: dict[UUID, dict[str, Match]] = {}
    exhausted = set()
    for retriever in retrievers:
        if retriever.proposes:
            found = retriever.candidates(session, scope, tuning)
            if retriever.exhaustive and len(found) < tuning.candidates:
                exhausted.add(retriever.name)
            for scene_id, match in found.items():
                matches.setdefault(scene_id, {})[retriever.name] = match
    for retriever in retrievers:
        if retriever.name in exhausted:
            # It has nothing to say about the others.
            continue
        unknown = [scene_id for scene_id, own in matches.items() if retriever.name not in own]
        if unknown:
            for scene_id, match in retriever.compare(session, scope, unknown).items():
                matches[scene_id][retriever.name] = match
    # Summed in one order: the same scene has the same score on every page, to the last bit.
    names = [retriever.name for retriever in retrievers]
    scored = []
    for scene_id, own in matches.items():
        score = sum([weights[name] * own[name].similarity for name in names if name in own], 0.0)
        if min_score is None or score >= min_score:
            place = next(iter(own.values())).place
            scored.append(((-score, *place), scene_id))
    scored.sort()
    wanted = [one for one in scored if after is None or one[0] > after]
    nothing = Match(0.0)
    hits = [
        Found(scene_id, video_id, idx, -minus, {name: matches[scene_id].get(name, nothing) for name in names})
        for (minus, video_id, idx), scene_id in wanted[:limit]
    ]
    return Ranking(tuple(hits), len(wanted) > limit)
