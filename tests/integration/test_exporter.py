"""The exporter over real servers, and a real Prometheus that scrapes it and a node, and answers every query of the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import yaml
from kombu import Connection
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update

from api.metrics import Metrics, serve
from cli.doctor.service_checks import check_broker
from db.expressions import seconds_from_now
from db.tables import Video
from local.servers.ports import find_free_port
from shared import admission, api_processes, nodes, queue_lengths
from shared.errors import BadMedia, BrokerUnavailable, Overloaded
from shared.http_pages import HttpServer
from shared.settings import Settings
from tests.integration.conftest import Configure
from tests.support.assets import give_up
from tests.support.fleet import eventually
from tests.support.ledger import accept, execute, fail, finish, must_claim, split
from tests.support.rabbitmq import RabbitMQServer
from tests.support.services import RedisServer
from tests.unit.test_monitoring import FOLDER, alerts, panels
from worker.telemetry import exporter, metrics
from worker.telemetry.node import Telemetry
from worker.telemetry.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("database")

MODEL = {"name": "minilm", "loaded": True, "memory_bytes": 5 << 20}
STATE = {
    "node": "text@box", "family": "text", "state": "ready", "error": "", "pid": 1, "loads": {"minilm": 1}, "evictions": 2,
    "slots": [{"slot": 0, "pid": 1, "state": "ready", "models": [MODEL], "budget_mb": 10}],
}  # fmt: skip


@pytest.fixture
def settings(database: str, redis_server: RedisServer, configure: Configure) -> Settings:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return configure(REDIS_URL=redis_server.url, METRICS_PORT="0", METRICS_USERS="1").settings


@pytest.fixture
def served(settings: Settings) -> Iterator[HttpServer]:
    found = exporter.serve(settings)
    yield found
    found.server_close()


@pytest.fixture
def node(settings: Settings) -> Telemetry:
    """A node that serves its metrics, and has published where."""
    watchdog = Watchdog(lambda: False)
    watchdog.resume()
    watchdog.pause()
    found = Telemetry(settings, "text", lambda: STATE, watchdog)
    found.serve()
    publish(settings, found)
    return found


def publish(settings: Settings, node: Telemetry) -> None:
    with redis.Redis.from_url(settings.redis_url) as client:
        nodes.publish(client, {**STATE, "telemetry": node.record()})


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body = answer.read().decode()
        return json.loads(body) if "json" in answer.headers["Content-Type"] else body


def scrape(server: HttpServer) -> dict[str, dict[tuple[str, ...], float]]:
    """Metric -> labels' values -> value."""
    body = get(f"http://127.0.0.1:{server.port}/metrics")
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(body)
    }


def fill_ledger() -> None:
    """Jobs in every state, videos, and device time of two users."""
    for number in range(4):
        accept(f"v{number}", f"u{number % 2}")
    split(must_claim())
    fail(must_claim(), BadMedia("no video"))
    must_claim()
    finish(must_claim("asr"))
    execute(update(Video).where(Video.external_id == "v0").values(state="indexed", duration_s=1800, indexed_at=seconds_from_now(-60)))  # fmt: skip
    execute(
        text(
            "UPDATE queue_usage SET total_s = CASE account WHEN 'u0' THEN 90 ELSE 7 END WHERE queue = 'media'"
        )
    )


def test_the_exporter_shows_ledger_and_queues(
    settings: Settings, served: HttpServer, node: Telemetry
) -> None:
    fill_ledger()
    with redis.Redis.from_url(settings.redis_url) as client:
        client.lpush("text.online", "b", "a")
        client.hset(admission.REFUSED, "text.online user", 3)
        place = admission.Reservation(queue="search", user_id="u0", items=7, tokens=0, hold_s=600)
        held = admission.admitted(client, place)
        held.__enter__()
    found = scrape(served)
    assert found["scenefleet_database_up"] == found["scenefleet_redis_up"] == {(): 1}
    waiting = found["scenefleet_queue_waiting"]
    assert (waiting["media",], waiting["asr",], waiting["text.online",], waiting["search",]) == (1, 1, 2, 0)
    assert found["scenefleet_reserved_items"]["search",] == 7
    assert found["scenefleet_admission_rejected"]["text.online", "user"] == 3
    assert "scenefleet_broker_up" not in {name for name, samples in found.items() if samples}
    assert found["scenefleet_queue_running"]["media",] == found["scenefleet_queue_failed"]["media",] == 1
    assert found["scenefleet_queue_backlog_seconds"]["asr",] == 600
    assert found["scenefleet_jobs"]["split", "failed"] == found["scenefleet_jobs"]["split", "running"] == 1
    assert found["scenefleet_videos"]["indexed",] == 1 and found["scenefleet_video_hours"]["indexed",] == 0.5
    assert found["scenefleet_indexed_hour_videos"][()] == 1 and found["scenefleet_realtime_factor"][()] == 0.5
    assert found["scenefleet_device_seconds"]["media",] == 97
    # One user is shown by name; the other is among the others.
    assert found["scenefleet_user_device_seconds"]["media", "u0"] == 90
    assert found["scenefleet_user_device_seconds"]["media", ""] == 7
    assert found["scenefleet_nodes"] == {("text", "ready"): 1}
    assert found["scenefleet_scale_advice"]["text",] == 0 and found["scenefleet_scale_advice"]["media",] == 2
    assert get(f"http://127.0.0.1:{served.port}/readyz") == {"database": True, "redis": True}


def test_answers_are_kept_and_a_head_that_stays_grows_older(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = exporter.Exporter(settings)
    with redis.Redis.from_url(settings.redis_url) as client:
        client.lpush("text.online", "request")

        def oldest() -> float:
            (family,) = [
                family for family in looks.collect() if family.name == "scenefleet_queue_oldest_seconds"
            ]
            return next(sample.value for sample in family.samples if sample.labels["queue"] == "text.online")

        assert oldest() == 0
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 9)
        monkeypatch.setattr(exporter, "time", clock)
        assert oldest() == 0
        clock.monotonic = lambda: time.monotonic() + 31
        assert oldest() == pytest.approx(31, abs=5)
        client.delete("text.online")
        client.set("text.online", "no list")
        clock.monotonic = lambda: time.monotonic() + 60
        with pytest.raises(StopIteration):
            oldest()


def test_servers_that_are_away_are_zero(configure: Configure, database: str) -> None:
    nobody = "postgresql://x:y@127.0.0.1:9/z"
    settings = configure(POSTGRES_URL=nobody).settings
    from db.engine import set_engine

    set_engine(None)
    found = {family.name: family.samples for family in exporter.Exporter(settings).collect()}
    assert found["scenefleet_database_up"][0].value == found["scenefleet_redis_up"][0].value == 0
    assert found["scenefleet_queue_waiting"] == []


def test_the_exporter_cannot_write(settings: Settings) -> None:
    from sqlalchemy.exc import InternalError

    with pytest.raises(InternalError, match="read-only"):
        exporter.Exporter(settings)._read(lambda session: session.execute(text("DELETE FROM queue_usage")))


def count_all() -> None:
    metrics.observe_request("tasks.text.embed", "text", 0.05, "ok", "minilm")
    metrics.observe_batch("text", 4, 90, "minilm")
    metrics.observe_wait("asr", 1.0)
    metrics.count_rejected("text.online", "full")
    metrics.count_cache("vectors", True)
    metrics.observe_job("asr", "done", 2.0)
    metrics.count_failure("asr", "BadMedia")
    metrics.count_lost_lease("child")


def test_prometheus_answers_every_query(
    settings: Settings, served: HttpServer, node: Telemetry, tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        give_up("prometheus is not installed: install Debian's package prometheus")
    fill_ledger()
    count_all()
    counted = Metrics()
    api = serve(settings, counted)
    # The file of the repository, with the exporter's place and less patience.
    config: dict[str, Any] = yaml.safe_load(
        (FOLDER / "prometheus.yml").read_text().replace("exporter:9464", f"127.0.0.1:{served.port}")
    )
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "rules.yml")]
    config["scrape_configs"][1]["http_sd_configs"][0]["refresh_interval"] = "1s"
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{find_free_port()}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
               f"--web.listen-address={url.removeprefix('http://')}"]  # fmt: skip

    def ask(query: str) -> list[Any]:
        found: list[Any] = get(f"{url}/api/v1/query?query={urllib.parse.quote(query)}")["data"]["result"]
        return found

    def answered() -> bool:
        count_all()
        publish(settings, node)
        counted.observe({"method": "GET", "path": "/"}, 503, 0.1)
        counted.count_refusal(Overloaded("full"), 429)
        with redis.Redis.from_url(settings.redis_url) as client:
            client.hincrby(admission.REFUSED, "text.online user")
            client.zadd(api_processes.KEY, {api: time.time()})
        try:
            return len(ask("scenefleet_jobs_total")) > 0 and all(
                ask(query) for queries in panels().values() for query in queries
            )
        except OSError:
            return False

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        try:
            eventually(answered, within_s=60, what="every panel shows something")
        except AssertionError as error:
            empty = {title: queries for title, queries in panels().items() if not all(map(ask, queries))}
            raise AssertionError(f"{empty}\n{(tmp_path / 'log').read_text()[-2000:]}") from error
        for query in alerts().values():
            ask(query)
        assert {sample["metric"]["node"] for sample in ask('up{job="scenefleet-nodes"} == 1')} == {"text@box"}
        assert {sample["metric"]["instance"] for sample in ask('up{job="scenefleet-api"} == 1')} == {api}
        firing = {sample["metric"]["alertname"] for sample in ask("ALERTS")}
        assert {"NoReadyNode", "ScaleOut"} <= firing
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_lengths_of_rabbitmqs_queues_are_shown(
    configure: Configure, redis_server: RedisServer, database: str, tmp_path: Path
) -> None:
    broker = RabbitMQServer(tmp_path / "rabbitmq")
    try:
        broker.start()
        configured = configure(REDIS_URL=redis_server.url, BROKER_URL=broker.url, METRICS_PORT="0").settings
        with Connection(broker.url) as connection, connection.Producer() as producer:
            queue_lengths.waiting(connection, ["text.online"])
            for _ in range(3):
                producer.publish({}, exchange="", routing_key="text.online")
        (finding,) = check_broker(configured)
        assert (
            finding.state == "ok"
            and re.match(r"RabbitMQ [34]\.", finding.detail)
            and ":***@" in finding.detail
        )
        server = exporter.serve(configured)
        try:
            found = scrape(server)
            assert found["scenefleet_queue_waiting"]["text.online",] == 3
            assert found["scenefleet_queue_waiting"]["search",] == 0
            assert found["scenefleet_broker_up"] == {(): 1}
        finally:
            server.server_close()
    finally:
        broker.stop()
    with pytest.raises(BrokerUnavailable, match="is BROKER_URL right"):
        list(check_broker(configured))
    gone = exporter.Exporter(configured)
    shown = {family.name: family.samples for family in gone.collect()}
    assert shown["scenefleet_broker_up"][0].value == 0 and shown["scenefleet_redis_up"][0].value == 1
    # What stands in the ledger is shown all the same.
    assert shown["scenefleet_queue_running"]
