"""The metrics of real nodes move when they are provoked; probes, exporter, health and advice of a real fleet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.lite.conftest import Ask
from tests.support.api import Api
from tests.support.fleet import ROOT, Fleet, eventually
from tests.support.injection import Injection

Samples = dict[str, float]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body = answer.read().decode()
        return json.loads(body) if "json" in answer.headers["Content-Type"] else body


def telemetry(fleet: Fleet, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet.node_states()[name]["telemetry"])
    return found


def address(fleet: Fleet, name: str) -> str:
    return f"http://{telemetry(fleet, name)['metrics']}"


def scrape(url: str) -> Samples:
    """Name and its labels' values, in the order of their names -> value."""
    return {
        f"{sample.name}{[value for _, value in sorted(sample.labels.items())]}": sample.value
        for family in text_string_to_metric_families(get(f"{url}/metrics"))
        for sample in family.samples
    }


def moved(fleet: Fleet, name: str, before: Samples, *prefixes: str) -> None:
    """Wait until samples of these names, up to some labels, have grown at a node."""

    def grown(prefix: str) -> bool:
        now = scrape(address(fleet, name))
        return any(value > before.get(key, 0) for key, value in now.items() if key.startswith(prefix))

    for prefix in prefixes:
        eventually(partial(grown, prefix), within_s=20, what=f"{prefix} moves at {name}")


def test_requests_move_the_metrics_of_their_model(fleet: Fleet, ask: Ask) -> None:
    before = scrape(address(fleet, "text"))
    ask("tasks.text.embed", texts=["a hot drink"])
    with pytest.raises(Exception, match=r"texts\.0=7"):
        ask("tasks.text.embed", texts=[7])
    moved(
        fleet,
        "text",
        before,
        "scenefleet_requests_total['ok', 'tasks.text.embed']",
        "scenefleet_requests_total['failed', 'tasks.text.embed']",
        "scenefleet_request_seconds_sum['text']",
        "model_service_requests_total['all-minilm-l6-v2', 'ok']",
        "model_service_latency_seconds_count['all-minilm-l6-v2']",
    )
    now = scrape(address(fleet, "text"))
    assert now["scenefleet_node_ready[]"] == 1 and now["scenefleet_node_children['ready']"] == 2
    assert (
        now["model_service_memory_bytes['all-minilm-l6-v2']"] > 0 and now["scenefleet_models_loaded[]"] == 2
    )
    assert now["scenefleet_node_resident_bytes[]"] > 1e8 and now["scenefleet_node_loop_age_seconds[]"] < 5


def test_jobs_move_the_metrics_of_their_stage(fleet: Fleet, silent: Path, injection: Injection) -> None:
    before = scrape(address(fleet, "media"))
    broken = silent.with_name("broken.mp4")
    broken.write_bytes(b"no video")
    fleet.process(broken, "broken", "metrics")
    # A child that dies with a job: its lease is taken back, and the job runs again.
    rule = injection.hold("split", "killed")
    fleet.process(silent, "killed", "metrics")
    pid = rule.wait_met()["pid"]
    os.kill(pid, signal.SIGKILL)
    rule.wait_met(2)
    rule.lift()
    fleet.wait_for("killed", user_id="metrics")
    fleet.wait_for("broken", "failed", user_id="metrics")
    moved(
        fleet,
        "media",
        before,
        "scenefleet_jobs_total['done', 'split']",
        "scenefleet_jobs_total['failed', 'split']",
        "scenefleet_job_failures_total['BadMedia', 'split']",
        "scenefleet_job_seconds_sum['split']",
        "scenefleet_wait_seconds_count['media']",
        "scenefleet_leases_lost_total['child']",
        "scenefleet_node_cpu_seconds_total[]",
    )


def test_probes(fleet: Fleet) -> None:
    for name in fleet.nodes:
        assert get(f"{address(fleet, name)}/livez")["live"] is True
        assert get(f"{address(fleet, name)}/readyz")["state"] == "ready"


@pytest.fixture
def exporter(fleet: Fleet) -> Iterator[str]:
    """The address of `scenefleet exporter`; it ends well on SIGTERM."""
    command = [sys.executable, "-m", "cli", "exporter"]
    environment = fleet.process_environment(METRICS_PORT="0")
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removesuffix("/metrics")
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_the_exporter_shows_the_fleet_and_where_its_nodes_are(fleet: Fleet, api: Api, exporter: str) -> None:
    found = scrape(exporter)
    assert found["scenefleet_database_up[]"] == found["scenefleet_redis_up[]"] == 1
    assert {f"scenefleet_nodes['{name}', 'ready']" for name in fleet.nodes} <= found.keys()
    targets = get(f"{exporter}/targets")
    assert {f"http://{target['targets'][0]}" for target in targets if "node" in target["labels"]} == {
        address(fleet, name) for name in fleet.nodes
    }

    get(f"{api.url}/api/v1/health")

    def is_counted() -> bool:
        """By the API process that answers; one that was killed a moment ago may still be listed."""
        for target in get(f"{exporter}/targets"):
            if target["labels"].get("job") == "scenefleet-api":
                with suppress(OSError):
                    shown = scrape(f"http://{target['targets'][0]}")
                    return shown.get("scenefleet_api_requests_total['GET', '/api/v1/health', '200']", 0) > 0
        return False

    eventually(is_counted, within_s=60, what="the exporter knows where the API's metrics are")
    assert get(f"{exporter}/readyz") == {"database": True, "redis": True}


def test_advice_has_its_figures_and_its_reason(fleet: Fleet, ask: Ask) -> None:
    def measured() -> bool:
        ask("tasks.text.embed", texts=["a cup"])
        return telemetry(fleet, "text")["load"]["5m"]["count"] > 0

    eventually(measured, within_s=60, what="the load of the text node is known", every_s=1)
    answer = json.loads(fleet.command("scale", "--json").stdout)
    found = {row["family"]: row for row in answer}
    assert found.keys() == set(fleet.nodes)
    assert found["text"]["requests"] > 0 and found["text"]["mean_ms"] > 0 and found["text"]["reason"]
    shown = fleet.command("scale").stdout
    assert "text" in shown and "below every limit" in shown


def test_health_has_dependencies_and_resources(api: Api) -> None:
    health = get(f"{api.url}/api/v1/health")
    assert {name: found["ok"] for name, found in health["dependencies"].items()} == {
        "broker": True,
        "storage": True,
        "database": True,
    }
    assert health["dependencies"]["broker"]["ms"] > 0
    assert 0 < health["resources"]["memory_percent"] < 100 and 0 < health["resources"]["disk_percent"] < 100
    nodes = get(f"{api.url}/api/v1/fleet")["nodes"]
    assert all(node["uptime_s"] > 0 and node["resources"]["memory_total_bytes"] > 0 for node in nodes)
