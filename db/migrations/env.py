"""Alembic's entry: runs migrations online, or prints their SQL with ``--sql``."""

from __future__ import annotations

from typing import Any

from alembic import context

from db.engine import make_engine
from db.tables import Base
from shared.settings import get_settings


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
    }
    if context.is_offline_mode():
        context.configure(url=url, literal_binds=True, **options)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = make_engine(url, pooled=False)
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            # Two upgrades at once (several nodes starting) wait for each other.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7305000)")
            context.run_migrations()


run()
