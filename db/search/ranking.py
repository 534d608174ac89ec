"""One order out of several legs: the best of each are put forward, and every one of them is compared on all legs.

``score = text * weight + vision * weight + ... + boost of people``, each likeness within 0..1; the order is by score,
then video, then place in the video, so it is the same however often it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from db.search.legs import Leg, Match, Tuning
from db.search.scope import Scope


@dataclass(frozen=True)
class Found:
    """A scene and its place in the order."""

    scene_id: UUID
    video_id: str
    idx: int
    score: float
    #: Leg -> how alike; a leg the scene has nothing to compare with counts 0.
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
    legs: Sequence[Leg],
    weights: Mapping[str, float],
    tuning: Tuning,
    *,
    limit: int,
    after: tuple[float, str, int] | None = None,
    min_score: float | None = None,
) -> Ranking:
    """The scenes of the scope that score best, from behind ``after`` (the ``place`` of a hit) on."""
    matches: dict[str, dict[UUID, Match]] = {leg.name: {} for leg in legs}
    places: dict[UUID, tuple[str, int]] = {}
    for leg in legs:
        if leg.proposes:
            matches[leg.name] = leg.candidates(session, scope, tuning)
            places.update((scene_id, match.place) for scene_id, match in matches[leg.name].items())
    for leg in legs:
        unknown = places.keys() - matches[leg.name].keys()
        if unknown:
            matches[leg.name] = {**matches[leg.name], **leg.compare(session, scope, unknown)}
    nothing = Match(0.0)
    found = []
    for scene_id, (video_id, idx) in places.items():
        own = {leg.name: matches[leg.name].get(scene_id, nothing) for leg in legs}
        score = sum(weights[name] * match.similarity for name, match in own.items())
        found.append(Found(scene_id, video_id, idx, score, own))
    found.sort(key=lambda hit: hit.place)
    wanted = [
        hit
        for hit in found
        if (min_score is None or hit.score >= min_score) and (after is None or hit.place > after)
    ]
    return Ranking(tuple(wanted[:limit]), len(wanted) > limit)
