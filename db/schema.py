"""Upgrades a database to this version's schema, and reads its revision."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from db.engine import make_engine, outages
from db.limits import migration_limits
from db.row_security import ALLOW
from shared.settings import get_settings


def migration_config(url: str | None = None) -> Config:
    """Alembic's configuration, from wherever this package is installed."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["url"] = url or get_settings().database_url
    return config


def upgrade(revision: str = "head", url: str | None = None) -> None:
    """Migrate to ``revision``, and grant the rights of the reader's role; safe to run from several machines at once.

    Raises:
        DatabaseBusy: a table is in use for too long; nothing is changed, try again.
        DatabaseUnavailable: Postgres is unavailable.
    """
    with outages():
        command.upgrade(migration_config(url), revision)
        # Also if there was nothing to migrate: a restored dump contains neither the role nor its rights.
        settings = get_settings()
        engine = make_engine(url or settings.database_url, pooled=False, limits=migration_limits(settings))
        with engine.begin() as connection:
            connection.execute(text(ALLOW))


def downgrade(revision: str, url: str | None = None) -> None:
    """Migrate back to ``revision`` (``base``: no tables left)."""
    with outages():
        command.downgrade(migration_config(url), revision)


def head_revision() -> str:
    """The revision of this version."""
    head = ScriptDirectory.from_config(migration_config("postgresql://")).get_current_head()
    assert head is not None
    return head


def current_revision(url: str | None = None) -> str | None:
    """The revision the database has; None before the first migration.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    with outages(), make_engine(url or get_settings().database_url, pooled=False).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()
