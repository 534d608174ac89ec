"""Bring a database to this version's schema and to that of its plug-ins, and say which one it has.

A plug-in has an Alembic history of its own, with a version table of its own (``alembic_version_<plug-in>``): what is left of one
that has been uninstalled has no effect.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from db.engine import make_engine, outages
from db.limits import migration_limits
from db.row_security import ALLOW
from shared import graph
from shared.errors import Conflict, InvalidRequest
from shared.plugins import Plugin, find_path
from shared.settings import get_settings

_VERSIONS = "alembic_version"


def migration_config(url: str | None = None, plugin: Plugin | None = None) -> Config:
    """Alembic's configuration, from wherever this package is installed; ``plugin``: that of its history."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["url"] = url or get_settings().database_url
    if plugin is not None:
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", str(find_path(plugin.migrations)).replace("%", "%%"))
        config.attributes["version_table"] = f"{_VERSIONS}_{plugin.name}"
    return config


def _with_tables() -> list[Plugin]:
    return [plugin for plugin in graph.PLUGINS.plugins if plugin.migrations]


def _find(revision: str) -> tuple[Plugin | None, str]:
    """The plug-in and the revision that ``[PLUGIN@]REVISION`` names.

    Raises:
        InvalidRequest: no such plug-in is installed.
    """
    name, separator, rest = revision.rpartition("@")
    if not separator:
        return None, revision
    for plugin in _with_tables():
        if plugin.name == name:
            return plugin, rest
    known = ", ".join(plugin.name for plugin in _with_tables()) or "none is installed"
    raise InvalidRequest(
        f"{revision!r} names no installed plug-in with tables ({known}): install its package"
    )


def upgrade(revision: str = "head", url: str | None = None) -> None:
    """Migrate to ``revision``, and grant the rights of the reader's role; safe to run from several machines at once.

    Args:
        revision: ``head``: the newest, of plug-ins too; ``PLUGIN@REVISION``: of that plug-in.

    Raises:
        DatabaseBusy: a table is in use for too long; nothing is changed, try again.
        DatabaseUnavailable: Postgres is away.
        InvalidRequest: a plug-in can't be used, or is not installed.
    """
    graph.PLUGINS.require_all()
    plugin, target = _find(revision)
    with outages():
        command.upgrade(migration_config(url, plugin), target)
        for other in _with_tables() if revision == "head" else ():
            command.upgrade(migration_config(url, other), "head")
        # Again, also when there was nothing to migrate: a restored dump brings neither the role nor what it may read.
        settings = get_settings()
        engine = make_engine(url or settings.database_url, pooled=False, limits=migration_limits(settings))
        with engine.begin() as connection:
            connection.execute(text(ALLOW))


def downgrade(revision: str, url: str | None = None) -> None:
    """Migrate back to ``revision`` (``base``: nothing of ours left; ``PLUGIN@base``: nothing of the plug-in's).

    Raises:
        Conflict: an uninstalled plug-in has tables that refer to ours.
    """
    plugin, target = _find(revision)
    with outages():
        if revision == "base":
            for other in _with_tables():
                command.downgrade(migration_config(url, other), "base")
            _refuse_leftovers(url)
        command.downgrade(migration_config(url, plugin), target)


def _refuse_leftovers(url: str | None) -> None:
    with make_engine(url or get_settings().database_url, pooled=False).connect() as connection:
        tables = connection.scalars(
            text("SELECT relname FROM pg_class WHERE relkind = 'r' AND starts_with(relname, :prefix)"),
            {"prefix": f"{_VERSIONS}_"},
        ).all()
        for table in tables:
            if connection.execute(text(f'SELECT FROM "{table}"')).first() is not None:
                name = table.removeprefix(f"{_VERSIONS}_")
                raise Conflict(
                    f"plug-in {name} has tables in this database: install it and run `scenefleet db downgrade {name}@base`"
                )


def head_revision() -> str:
    """The revision this code and its plug-ins want."""
    heads = [
        (plugin, ScriptDirectory.from_config(migration_config("postgresql://", plugin)).get_current_head())
        for plugin in (None, *_with_tables())
    ]
    return _join(heads)


def current_revision(url: str | None = None) -> str | None:
    """The revision the database has, as ``head_revision`` says it; None before the first migration.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    with outages(), make_engine(url or get_settings().database_url, pooled=False).connect() as connection:
        have = [(plugin, _current(connection, plugin)) for plugin in (None, *_with_tables())]
    return _join(have) if have[0][1] is not None else None


def _current(connection: Connection, plugin: Plugin | None) -> str | None:
    table = _VERSIONS if plugin is None else f"{_VERSIONS}_{plugin.name}"
    return MigrationContext.configure(connection, opts={"version_table": table}).get_current_revision()


def _join(revisions: list[tuple[Plugin | None, str | None]]) -> str:
    return ", ".join(
        str(revision) if plugin is None else f"{plugin.name}@{revision or 'base'}"
        for plugin, revision in revisions
    )
