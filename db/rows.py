"""Rows of scenes: replaces what a run wrote about them, and groups what is read of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, delete, insert
from sqlalchemy.orm import Session

from db.tables import Base

R = TypeVar("R")
_BATCH = 500


def replace_rows(
    session: Session,
    table: type[Base],
    which: Iterable[ColumnElement[bool]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Delete the rows of a table that meet all conditions, and insert others."""
    session.execute(delete(table).where(*which))
    for first in range(0, len(rows), _BATCH):
        session.execute(insert(table), [dict(row) for row in rows[first : first + _BATCH]])


def by_scene(rows: Iterable[R]) -> dict[UUID, list[R]]:
    """Scene -> its rows; they come ordered by scene."""
    return {scene_id: list(found) for scene_id, found in groupby(rows, key=attrgetter("scene_id"))}
