"""SQL expressions that several modules need: Postgres's clock, lists as one parameter, parsed statements."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, Double, Text, TextClause, Uuid, cast, func, literal, text
from sqlalchemy.dialects.postgresql import ARRAY

NOW = func.clock_timestamp()


def seconds(count: float) -> Any:
    """An interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


def seconds_from_now(count: float) -> Any:
    """A time by Postgres's clock."""
    return NOW + seconds(count)


def seconds_since(time: Any) -> Any:
    """How long ago a time was, at least 0."""
    return cast(func.greatest(func.extract("epoch", NOW - time), 0), Double)


def array(values: Collection[str]) -> BindParameter[Any]:
    """Texts for ``= any_(array(...))``: one parameter, however many."""
    return literal(list(values), ARRAY(Text))


def uuids(values: Collection[UUID]) -> BindParameter[Any]:
    """Ids for ``= any_(uuids(...))``: one parameter, however many."""
    return literal(list(values), ARRAY(Uuid))


@lru_cache(maxsize=1024)
def statement_of(sql: str) -> TextClause:
    """``text(sql)``, parsed once: for statements of every request. ``sql`` must hold no value of a caller."""
    return text(sql)
