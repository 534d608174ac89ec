"""One fleet of profile lite for every module of this folder.

A module has users or videos of its own, and leaves every node up as it found it. All of the folder runs in one worker
of pytest-xdist (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from tests.support.excerpt import write_excerpt
from tests.support.fleet import FAMILIES, Fleet, fleet_over
from tests.support.injection import Injection
from tests.support.services import PostgresServer, RedisServer

#: Families with two children: a new run can overtake an old attempt, and each slot loads its own model.
CONCURRENCY = {"media": 2, "text": 2}
#: Whose video "sample" is.
VIEWER = "viewer"


@pytest.fixture(scope="package")
def fleet(
    postgres: PostgresServer,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    injection: Injection,
) -> Iterator[Fleet]:
    """All nodes, ready."""
    home = tmp_path_factory.mktemp("lite")
    with fleet_over(postgres, redis_server, home, **injection.environment()) as found:
        for family in FAMILIES:
            found.start(family, concurrency=CONCURRENCY.get(family, 1))
        found.wait_ready()
        yield found


@pytest.fixture(scope="package")
def indexed(fleet: Fleet, sample: Path) -> Fleet:
    """The fleet after it has indexed the sample for VIEWER."""
    fleet.process(sample, "sample", VIEWER)
    status = fleet.wait_ended(["sample"], within_s=300, user_id=VIEWER)["sample"]
    assert status.state == "indexed", status
    return fleet


@pytest.fixture(scope="package")
def spoken(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """Four seconds of the sample: two scenes with words, one with a face."""
    path = tmp_path_factory.mktemp("clips") / "spoken.mp4"
    write_excerpt(sample, path)
    return path


@pytest.fixture(scope="package")
def outside(fleet: Fleet) -> Celery:
    """A program that has Celery and nothing of ours."""
    return Celery("outside", broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False)
