"""One fleet of profile lite for every module of this folder.

A module has users or videos of its own, and leaves every node up as it found it. With pytest-xdist, the modules of the
page run in one worker and all others in another one, each with a fleet of its own (tests/conftest.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from playwright.sync_api import Browser, Page

from shared.routing import REQUESTS, TASK_QUEUE
from tests.support.api import Api
from tests.support.browser import Watched, open_browser
from tests.support.clips import Shot, make_clip
from tests.support.collector import Collector
from tests.support.excerpt import write_excerpt
from tests.support.fleet import FAMILIES, ROOT, Fleet, fleet_over
from tests.support.injection import Injection
from tests.support.services import PostgresServer, RedisServer

#: Families with two children: a new run can overtake an old attempt, and each slot loads its own model.
CONCURRENCY = {"media": 2, "text": 2}
#: Whose video "sample" is.
VIEWER = "viewer"
#: Whom the fixture `api` serves.
API_USER = "local"
#: Sends a task by its name and returns the answer; raises the error that is answered.
Ask = Callable[..., Any]


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    """Where the fleet's traces go."""
    with Collector() as found:
        yield found


@pytest.fixture(scope="package")
def fleet(
    postgres: PostgresServer,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    injection: Injection,
    collector: Collector,
) -> Iterator[Fleet]:
    """All nodes, ready. Its webhooks may lead to this machine, and its traces come to ``collector``."""
    home = tmp_path_factory.mktemp("lite")
    told = {
        "WEBHOOK_ALLOW_HTTP": "true",
        "WEBHOOK_ALLOW_PRIVATE": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "METRICS_PORT": "0",
    }
    with fleet_over(postgres, redis_server, home, **injection.environment(), **told) as found:
        for family in FAMILIES:
            found.start(family, concurrency=CONCURRENCY.get(family, 1))
        found.wait_ready()
        yield found


@pytest.fixture(scope="package")
def indexed(fleet: Fleet, sample: Path) -> Fleet:
    """The fleet after it has indexed the sample for VIEWER."""
    fleet.index(sample, "sample", VIEWER)
    return fleet


@pytest.fixture(scope="package")
def api(fleet: Fleet) -> Iterator[Api]:
    """The HTTP API of the fleet, which everyone here asks as user "local"; a test that kills it restarts it."""
    found = Api(fleet)
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="package")
def film(fleet: Fleet, sample: Path) -> str:
    """The sample as a video of the API's user; returns its id."""
    fleet.index(sample, "film", API_USER)
    return "film"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module: while it is open, a test of the same process can't run an event loop of its own."""
    with open_browser() as found:
        yield found


@pytest.fixture
def watched(browser: Browser, api: Api) -> Iterator[Watched]:
    """A page that has nothing to complain of when its test ends."""
    found = Watched(browser, api.url)
    yield found
    complaints = found.complaints
    found.context.close()
    assert complaints == []


@pytest.fixture
def page(watched: Watched) -> Page:
    """The page of the API, not opened yet."""
    return watched.page


@pytest.fixture(scope="package")
def truth() -> dict[str, Any]:
    """What is true of the sample."""
    found: dict[str, Any] = json.loads((ROOT / "samples" / "truth.json").read_text())
    return found


@pytest.fixture(scope="package")
def spoken(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """Four seconds of the sample: two scenes with words, one with a face."""
    path = tmp_path_factory.mktemp("clips") / "spoken.mp4"
    write_excerpt(sample, path)
    return path


@pytest.fixture(scope="package")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, no sound: indexed in a second."""
    path = tmp_path_factory.mktemp("clips") / "silent.mp4"
    make_clip(path, [Shot(seed=1, frames=20), Shot(seed=2, frames=20)])
    return path


@pytest.fixture(scope="package")
def outside(fleet: Fleet) -> Celery:
    """A program that has Celery and nothing of ours."""
    return Celery("outside", broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False)


@pytest.fixture(scope="package")
def ask(outside: Celery) -> Ask:
    """A bare ``send_task`` that waits for its answer: ``ask(task, *args, **kwargs)``."""

    def send(task: str, /, *args: Any, **kwargs: Any) -> Any:
        return answer_of(outside.send_task(task, args, kwargs, queue=TASK_QUEUE.get(task, REQUESTS)))

    return send


def answer_of(sent: AsyncResult[Any], timeout_s: float = 60) -> Any:
    try:
        return sent.get(timeout=timeout_s)
    finally:
        # An error's traceback holds the handle until Redis has gone, which its end would ask to unsubscribe.
        sent.backend.remove_pending_result(sent)
        sent.backend = None
