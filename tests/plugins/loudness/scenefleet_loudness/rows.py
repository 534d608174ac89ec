"""What the stage has written: its table, its part of the sidecar, its filter of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import InvalidRequest

LOUDNESS = sa.Table(
    "scene_loudness",
    sa.MetaData(),
    sa.Column("scene_id", sa.Uuid, primary_key=True),
    sa.Column("run", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Text),
    sa.Column("dbfs", sa.Double),
)


def write_levels(
    session: Session, run: int, user_id: str, scenes: Sequence[UUID], levels: Mapping[UUID, float]
) -> None:
    """Replace what this run says of these scenes, so that a job may run twice."""
    session.execute(sa.delete(LOUDNESS).where(LOUDNESS.c.run == run, LOUDNESS.c.scene_id.in_(scenes)))
    shared = {"run": run, "user_id": user_id}
    if rows := [{"scene_id": scene, "dbfs": dbfs, **shared} for scene, dbfs in levels.items()]:
        session.execute(sa.insert(LOUDNESS), rows)


def describe(session: Session, stage_runs: Mapping[str, int], scenes: Sequence[UUID]) -> dict[UUID, Any]:
    """Scene -> its level, for the sidecar."""
    own = (LOUDNESS.c.run == stage_runs["loudness"], LOUDNESS.c.scene_id.in_(scenes))
    return {row.scene_id: {"dbfs": row.dbfs} for row in session.execute(sa.select(LOUDNESS).where(*own))}


def at_least(value: Any) -> tuple[str, dict[str, Any]]:
    """Scenes at least as loud as ``value`` dBFS.

    Raises:
        InvalidRequest: not a level.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -120 <= value <= 0:
        raise InvalidRequest(f"filters.loudness={value!r} is no level: send dBFS, a number from -120 to 0")
    return "t.dbfs >= :loudness_least", {"loudness_least": float(value)}
