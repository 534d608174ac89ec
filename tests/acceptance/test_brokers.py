"""Redis and RabbitMQ as the broker: the same fleet works, loses nothing and survives hostile messages over both."""

from __future__ import annotations

import json
import os
import re
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection, Queue

from shared import queue_lengths
from shared.broker import broker_config
from shared.errors import NotFound
from tests.support.clips import Shot, make_clip
from tests.support.fleet import Fleet, eventually, fleet_over
from tests.support.injection import Injection
from tests.support.rabbitmq import RabbitMQServer
from tests.support.services import PostgresServer, RedisServer

#: Without these, two nodes make a whole video of pictures only.
OFF = {"FEATURE_SEMANTIC_SEARCH": "false", "FEATURE_FACE": "false", "FEATURE_OCR": "false"}
STATUS = "tasks.video.status"


@pytest.fixture(scope="module")
def injection(tmp_path_factory: pytest.TempPathFactory) -> Injection:
    return Injection(tmp_path_factory.mktemp("injection"))


@pytest.fixture(scope="module", params=["rabbitmq", "redis"])
def fleet(
    request: pytest.FixtureRequest,
    postgres: PostgresServer,
    redis_server: RedisServer,
    injection: Injection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp(request.param)
    server = RabbitMQServer(folder / "rabbitmq")
    broker = {}
    try:
        if request.param == "rabbitmq":
            server.start()
            broker = {"BROKER_URL": server.url}
        environment = {**OFF, **injection.environment(), **broker, "RECONCILE_S": "1", "METRICS_PORT": "0"}
        with fleet_over(postgres, redis_server, folder / "home", **environment) as made:
            made.start("search", "media")
            made.wait_ready()
            yield made
    finally:
        server.stop()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "film.mp4"
    make_clip(path, [Shot(seed=6, frames=20), Shot(seed=7, frames=20)])
    return path


@pytest.fixture
def broker(fleet: Fleet) -> Iterator[Connection]:
    """As somebody connects who has nothing of ours."""
    with Connection(fleet.environment.get("BROKER_URL") or fleet.redis_url) as connection:
        yield connection


def waiting(broker: Connection, queue: str) -> int:
    return queue_lengths.waiting(broker, [queue])[queue]


def test_a_video_is_indexed_and_requests_are_answered(fleet: Fleet, clip: Path) -> None:
    fleet.index(clip, "plain")
    assert len(fleet.client.scenes("plain", "u1").scenes) == 2
    with pytest.raises(NotFound):
        fleet.client.status("unheard-of", "u1")
    assert fleet.rows("SELECT * FROM jobs WHERE failures + outages > 0") == []
    # How long they waited is known with either broker.
    address = json.loads(fleet.node_states()["search"]["telemetry"])["metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        waits = re.search(
            r'scenefleet_wait_seconds_count\{queue="search"\} ([0-9.]+)', answer.read().decode()
        )
    assert waits is not None and float(waits[1]) >= 2


def test_a_process_that_is_killed_in_the_middle_of_a_job_loses_nothing(
    fleet: Fleet, injection: Injection, clip: Path, broker: Connection
) -> None:
    held = injection.hold("split", "hurt", deaf=True, times=1)
    fleet.process(clip, "hurt")
    os.kill(held.wait_met()["pid"], 9)
    fleet.wait_for("hurt")
    held.lift()
    (split,) = fleet.of_video("jobs", "hurt", "stage = 'split'")
    assert (split["state"], split["attempt"], split["deaths"]) == ("done", 2, 1)
    eventually(lambda: waiting(broker, "media") == 0, within_s=30, what="no message is left")


def test_messages_that_are_lost_are_sent_again(fleet: Fleet, clip: Path, broker: Connection) -> None:
    fleet.stop("media")
    fleet.process(clip, "lost")
    eventually(lambda: waiting(broker, "media") == 1, within_s=30, what="the wake-up message is there")
    Queue("media")(broker.default_channel).purge()
    eventually(lambda: waiting(broker, "media") == 1, within_s=30, what="it was sent again")
    fleet.start("media")
    fleet.wait_ready("media")
    fleet.wait_for("lost")


def test_hostile_messages_are_dropped_and_the_node_lives(fleet: Fleet, broker: Connection) -> None:
    node = fleet.nodes["search"]
    before = {node.process.pid, *(child.pid for child in node.children)}
    good = {"task": STATUS, "id": str(uuid.uuid4())}
    arguments = json.dumps([[], {"video_id": "v", "user_id": "u1"}, None])
    hostile = [
        ("garbage", good),
        (b"\xff\xfe", good),
        (arguments, {"task": 5, "id": "x"}),
        (arguments, {}),
        (arguments, {**good, "eta": "yesterday"}),
        (arguments, {**good, "task": "os.system"}),
        ("[" * 100_000, good),
    ]
    with broker.Producer() as producer:
        for body, headers in hostile:
            producer.publish(
                body,
                routing_key="search",
                exchange="",
                headers=headers,
                content_type="application/json",
                content_encoding="utf-8",
            )
    with pytest.raises(NotFound):
        fleet.client.status("unheard-of", "u1")
    eventually(
        lambda: fleet.log("search").count("message dropped") >= len(hostile),
        within_s=30,
        what="all are dropped",
    )
    assert {node.process.pid, *(child.pid for child in node.children)} == before
    assert waiting(broker, "search") == 0


def test_remote_control_reaches_the_nodes(fleet: Fleet) -> None:
    app = Celery("outside", set_as_current=False)
    app.conf.update(broker_config(fleet.redis_url, broker_url=fleet.environment.get("BROKER_URL", "")))
    names = {name.partition("@")[0] for name in app.control.inspect(timeout=20, limit=2).ping() or {}}
    assert names == {"search", "media"}
