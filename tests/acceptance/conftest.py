"""Fleets of modules, and the rules that their nodes may obey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, fleet_over, full_profile
from tests.support.injection import Injection
from tests.support.services import PostgresServer, RedisServer

MakeFleet = Callable[..., Fleet]


@pytest.fixture(scope="module")
def make_fleet(
    postgres: PostgresServer, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeFleet]:
    """Make the module's fleet, whose nodes the caller starts. ``models``: the catalogue of its profile `full`."""
    with ExitStack() as stack:

        def make(*, models: Path | None = None, **environment: str) -> Fleet:
            if models is not None:
                environment = {**full_profile(models), **environment}
            home = tmp_path_factory.mktemp("home")
            return stack.enter_context(fleet_over(postgres, redis_server, home, **environment))

        yield make


@pytest.fixture(scope="session")
def injection(tmp_path_factory: pytest.TempPathFactory) -> Injection:
    """The rules that nodes obey which are started with its environment."""
    return Injection(tmp_path_factory.mktemp("injection"))
