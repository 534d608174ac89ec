"""The servers of a benchmark: a Postgres and a Redis of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.services import PostgresServer, RedisServer

#: A migrated database, from which those of fleets are made.
DATABASE = "template_scenefleet"


@contextmanager
def servers() -> Iterator[tuple[PostgresServer, RedisServer, Path]]:
    """Start both in a folder, the third value, which is removed afterwards."""
    from db import schema

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scenefleet-bench-")))
        postgres, redis = PostgresServer(folder / "postgres"), RedisServer(folder / "redis")
        for server in (postgres, redis):
            stack.callback(server.stop)
            server.start()
        postgres.execute(f"CREATE DATABASE {DATABASE}")
        schema.upgrade(url=postgres.url(DATABASE).replace("postgresql://", "postgresql+psycopg://"))
        yield postgres, redis, folder
