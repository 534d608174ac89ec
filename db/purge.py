"""Rewrite tables, so that deleted rows leave the database's files: Postgres keeps them there until it needs the space."""

from __future__ import annotations

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db.engine import make_engine, outages
from db.tables import Base
from shared.errors import Conflict, DatabaseBusy
from shared.settings import get_settings

#: Tables about people; their indexes are small enough to be rebuilt.
PERSONAL: tuple[str, ...] = (
    "people", "people_events", "person_photos", "person_profiles", "face_decisions", "face_tracks", "faces",
    "scene_people", "jobs", "webhook_deliveries",
)  # fmt: skip
#: Maximum wait for a table.
_LOCK_S = 10


def every_table() -> tuple[str, ...]:
    """All tables of this version's schema."""
    return tuple(sorted(Base.metadata.tables))


def rewrite(table: str) -> None:
    """Rewrite one table and its indexes without deleted rows. Other sessions that use the table wait.

    Needs free disk for a copy of the table.

    Raises:
        Conflict: others kept the table busy for ``_LOCK_S`` seconds.
        DatabaseUnavailable: Postgres is unavailable.
    """
    if table not in Base.metadata.tables:
        raise ValueError(f"{table!r} is not a table of this schema")
    _run(f"SET lock_timeout = '{_LOCK_S}s'", f'VACUUM (FULL, ANALYZE) "{table}"')


def checkpoint() -> bool:
    """Make a checkpoint, so that older write-ahead log can be recycled.

    Returns False if the database's user may not (`GRANT pg_checkpoint TO ...` allows it).
    """
    try:
        _run("CHECKPOINT")
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            return False
        raise
    return True


def _run(*statements: str) -> None:
    engine = make_engine(get_settings().database_url, pooled=False)
    try:
        with outages(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in ("SET statement_timeout = 0", *statements):
                connection.execute(text(statement))
    except DatabaseBusy:
        raise Conflict(
            f"a table was in use for {_LOCK_S} s ({statements[-1]}): run it again when the database is less busy"
        ) from None
