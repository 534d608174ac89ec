"""A model that is missing on one machine: its work is done by others, and nothing fails for good that need not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from cli.doctor.service_checks import _lacking
from db.engine import transact
from db.vectors import ensure_model
from shared import nodes
from shared.errors import ModelUnavailable
from tasks import models
from tests.integration.conftest import Configure
from tests.support.ledger import accept, job
from tests.support.services import RedisServer
from worker import runner, stages
from worker.runtime import Runtime
from worker.stages import vectors
from worker.stages.vectors import Made

pytestmark = pytest.mark.usefixtures("database")
MODEL = "tiny"


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url, decode_responses=True) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def runtime(configure: Configure, redis: Redis, redis_server: RedisServer) -> Runtime:
    """A process of the node media@here."""
    found = configure(REDIS_URL=redis_server.url, SCENEFLEET_FAMILY="media")
    found.owner = "media@here:1.a:0:2"
    return found


def publish(redis: Redis, name: str, family: str = "media", state: str = "ready", **values: Any) -> None:
    described = {
        "node": name,
        "family": family,
        "state": state,
        "error": "",
        "pid": 1,
        "evictions": 0,
        "loads": {},
    }
    nodes.publish(redis, {**described, "slots": [{"models": []}], **values})


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage needs a model that this node can't load."""

    def run(context: Any) -> Any:
        error = ModelUnavailable(f"Model {MODEL} can't be loaded: no such file")
        error.model = MODEL
        raise error

    monkeypatch.setattr(stages, "import_module", lambda handler: SimpleNamespace(run=run))


def outcome(runtime: Runtime) -> tuple[str, int, int, str | None]:
    accept()
    found = job(runner.work("media", runtime)["job_id"])
    return found.state, found.failures, found.outages, found.error_class


@pytest.mark.usefixtures("lacking")
def test_a_job_whose_model_is_missing_is_left_to_a_node_that_has_it(runtime: Runtime, redis: Redis) -> None:
    publish(redis, "media@here", lacks={MODEL: "no such file"})
    publish(redis, "media@there")
    assert outcome(runtime) == ("queued", 0, 0, None)


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("failed", [False, True])
def test_it_fails_where_no_node_has_it(runtime: Runtime, redis: Redis, failed: bool) -> None:
    """Known by its files, or by an attempt to load it."""
    tried = [{"models": [{"name": MODEL, "kind": "text", "loaded": False, "error": "a wrong checksum"}]}]
    publish(redis, "media@here")
    publish(redis, "media@there", **({"slots": tried} if failed else {"lacks": {MODEL: "no such file"}}))
    publish(redis, "media@slow", state="loading")
    publish(redis, "text@there", family="text")
    assert outcome(runtime) == ("failed", 1, 0, "ModelUnavailable")


def test_a_model_that_is_not_active_is_left_to_the_switch() -> None:
    values = {"name": MODEL, "revision": "1", "family": "text", "dim": 3, "metric": "cosine"}
    row = transact(lambda session: ensure_model(session, **values))
    made = Made(row, lambda session, run, scenes: None)

    def missing() -> Made:
        raise ModelUnavailable(f"Model {MODEL} can't be loaded: no such file")

    assert vectors.made_if_here(lambda: made, MODEL) == [made]
    assert vectors.made_if_here(missing, MODEL) == []


def test_a_switch_asks_the_nodes_first(runtime: Runtime, redis: Redis) -> None:
    publish(redis, "text@a", family="text", lacks={"bge-m3": "expected /models/bge-m3, found no such file"})
    with pytest.raises(ModelUnavailable, match="no text node has model bge-m3, on text@a: expected /models"):
        models.switch(kind="text", to="bge-m3", dry_run=True)
    # One that has it will do the work of the others.
    publish(redis, "text@b", family="text")
    assert models.switch(kind="text", to="bge-m3", dry_run=True)["switch"] is None


def test_doctor_says_which_node_lacks_what_is_in_use(redis: Redis, redis_server: RedisServer) -> None:
    publish(redis, "text@a", family="text", lacks={"bge-m3": "no such file", "unused": "no such file"})
    publish(redis, "text@b", family="text")
    records = nodes.read_nodes(redis_server.url).values()
    assert _lacking(records, {"bge-m3", "siglip"}) == "text@a has no bge-m3 (no such file)"
    assert _lacking(records, {"siglip"}) == ""
