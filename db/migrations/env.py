"""Alembic's entry: runs migrations online, or prints their SQL with ``--sql``."""

from __future__ import annotations

import time
from typing import Any

from alembic import context
from sqlalchemy import Connection, text

from db.engine import make_engine
from db.limits import migration_limits
from db.row_security import ALLOW
from db.tables import Base
from shared.settings import get_settings

#: Taken by every migration until it ends; ``db.row_security.ALLOW`` takes it, too.
_LOCK = 7_305_000
_LOOK_S = 0.5


def include_object(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Leave the per-model HNSW indexes out of comparisons: they come and go with models."""
    return not (kind == "index" and name is not None and name.startswith("ix_embeddings_hnsw_"))


def run() -> None:
    url = context.config.attributes.get("url") or get_settings().database_url
    options: dict[str, Any] = {
        "target_metadata": Base.metadata,
        "include_object": include_object,
        "compare_type": True,
        "compare_server_default": False,
        "version_table": context.config.attributes.get("version_table", "alembic_version"),
    }
    if context.is_offline_mode():
        context.configure(url=url, literal_binds=True, **options)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = make_engine(url, pooled=False, limits=migration_limits(get_settings()))
    applied: list[object] = []
    options["on_version_apply"] = lambda **step: applied.append(step["step"])
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            _wait_for_turn(connection)
            context.run_migrations()
            if applied:
                # Requests read new tables, too.
                connection.execute(text(ALLOW))


def _wait_for_turn(connection: Connection) -> None:
    """Two upgrades at once (several nodes starting) wait for each other, for longer than for any table."""
    while not connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_LOCK})").scalar():
        time.sleep(_LOOK_S)


run()
