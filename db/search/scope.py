"""Which scenes a search may find: one user's published ones, narrowed by what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from db.search.filters import Condition


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The scenes of ``user_id`` that are published and pass every filter given."""

    user_id: str
    #: Primary keys of videos and of people, not the ids that users give.
    video_ids: tuple[str, ...] = ()
    persons: tuple[str, ...] = ()
    #: ``prefer`` filters nothing.
    persons_match: Literal["any", "all", "prefer"] = "any"
    #: Scenes that overlap [from_s, to_s) of their video.
    from_s: float | None = None
    to_s: float | None = None
    languages: tuple[str, ...] = ()
    indexed_from: datetime | None = None
    indexed_to: datetime | None = None
    #: A scene that is not wanted: the one others are compared with.
    without: UUID | None = None
    #: Of plug-ins.
    filters: tuple[Condition, ...] = ()

    @property
    def is_narrow(self) -> bool:
        """Whether a filter leaves out some of the user's scenes, more than one."""
        return len(self.conditions()) > (2 if self.without is None else 3)

    def conditions(self) -> list[str]:
        """What must hold of ``scenes s``; parameters as in ``values``."""
        found = ["s.user_id = :user_id", "s.live"]
        if self.without is not None:
            found.append("s.scene_id <> :without")
        if self.video_ids:
            found.append("s.video_id = ANY(:video_ids)")
        if self.persons and self.persons_match != "prefer":
            found.append(
                "s.scene_id IN (SELECT p.scene_id FROM scene_people p WHERE p.user_id = :user_id"
                " AND p.person_id = ANY(:persons) GROUP BY p.scene_id HAVING count(*) >= :persons_needed)"
            )
        if self.from_s is not None:
            found.append("s.end_s > :from_s")
        if self.to_s is not None:
            found.append("s.start_s < :to_s")
        if self.languages:
            found.append("s.language = ANY(:languages)")
        bounds = []
        if self.indexed_from is not None:
            bounds.append("v.indexed_at >= :indexed_from")
        if self.indexed_to is not None:
            bounds.append("v.indexed_at < :indexed_to")
        if bounds:
            found.append(
                "s.video_id IN (SELECT v.video_id FROM videos v WHERE v.user_id = :user_id AND "
                + " AND ".join(bounds)
                # Kept a query of its own: row-level security of one table holds back the indexes of all it is joined with.
                + " OFFSET 0)"
            )
        return found + [condition.sql for condition in self.filters]

    def sql(self) -> str:
        return " AND ".join(self.conditions())

    def values(self) -> dict[str, Any]:
        """Every parameter a query within this scope may name."""
        persons = sorted(set(self.persons))
        return {
            "user_id": self.user_id,
            "without": self.without,
            "video_ids": list(self.video_ids),
            "persons": persons,
            "persons_needed": len(persons) if self.persons_match == "all" else 1,
            "from_s": self.from_s,
            "to_s": self.to_s,
            "languages": list(self.languages),
            "indexed_from": self.indexed_from,
            "indexed_to": self.indexed_to,
            **{
                name: list(value) if isinstance(value, tuple) else value
                for condition in self.filters
                for name, value in condition.values
            },
        }
