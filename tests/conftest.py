"""Servers and databases for tests. A test that needs what is not installed skips locally and fails in CI."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter

from db.engine import make_engine, set_engine
from shared import settings as settings_module
from tests.support.assets import find_assets
from tests.support.figures import record_figure, write_summary
from tests.support.fleet import Fleet, fleet_over
from tests.support.s3_servers import moto, swift
from tests.support.services import TEMPLATE, PostgresServer, RedisServer, start_or_give_up

__all__ = ["moto", "record_figure", "swift"]

# A shell ignores Ctrl-C for what it starts in the background, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
_names = itertools.count(1)
#: The modules whose names begin with one of these share a fleet.
SHARED = ("tests/acceptance/lite/test_page", "tests/acceptance/lite/", "tests/acceptance/full/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a server is no quick test."""
    servers = {"postgres", "redis_server"}
    for item in (item for item in items if servers & set(getattr(item, "fixturenames", ()))):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker runs all of a file, and all files that share a fleet."""
    from xdist.scheduler import LoadFileScheduling

    class FleetScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = (prefix for prefix in SHARED if nodeid.startswith(prefix))
            return next(shared, None) or super()._split_scope(nodeid)

    return FleetScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A run takes long: say at once which test has failed, and when."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = "" if crash is None else f": {crash.message[:500]}"
        print(
            f"\n{time.strftime('%H:%M:%S')} {report.nodeid} failed ({report.when}){why}",
            file=sys.__stdout__,
            flush=True,
        )


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    write_summary(terminalreporter)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A Postgres of this test run, with a migrated template database."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    start_or_give_up(server)
    server.create_template()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this test run."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    start_or_give_up(server)
    yield server
    # Handles of answers unsubscribe when they are collected: now, while there is a Redis to tell.
    gc.collect()
    server.stop()


@pytest.fixture
def database(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty, migrated database, which this process's sessions use."""
    name = f"test_{os.getpid()}_{next(_names)}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    url = postgres.url(name)
    monkeypatch.setenv("POSTGRES_URL", url)
    settings_module.get_settings.cache_clear()
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    set_engine(engine)
    yield url
    set_engine(None)
    engine.dispose()
    settings_module.get_settings.cache_clear()
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def fleet(
    request: pytest.FixtureRequest, postgres: PostgresServer, redis_server: RedisServer, tmp_path: Path
) -> Iterator[Fleet]:
    """A fleet over an empty database and an empty Redis; the test starts its nodes."""
    with fleet_over(postgres, redis_server, tmp_path / "home") as found:
        yield found


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real inputs named by SCENEFLEET_TEST_ASSETS; without it a test skips locally and fails in CI."""
    return find_assets()


@pytest.fixture(scope="session")
def sample() -> Path:
    return Path(__file__).parents[1] / "samples" / "demo.mp4"
