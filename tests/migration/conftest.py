"""A server whose roles tests make, rename and drop, and databases to migrate."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from db import row_security
from tests.support.services import PostgresServer, start_or_give_up

_names = itertools.count(1)


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"migration_{os.getpid()}_{next(_names)}"
    postgres.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of its own, as an administrator elsewhere has it: without what every server of ours gets at its start."""
    server = PostgresServer(tmp_path_factory.mktemp("roles"))
    start_or_give_up(server)
    server.execute("DROP DATABASE scenefleet")
    server.execute(f"DROP ROLE scenefleet, {row_security.ROLE}")
    yield server
    server.stop()
