"""The rules of Prometheus and the dashboard: valid, and of metrics that exist. tests/integration/test_exporter.py asks them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.assets import give_up
from worker.telemetry.metrics import NAMED

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "scenefleet.json").read_text())


def alerts() -> dict[str, str]:
    """Alert -> query."""
    return {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}


def panels() -> dict[str, list[str]]:
    """Panel -> queries."""
    return {
        panel["title"]: [target["expr"] for target in panel["targets"]]
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
    }


@pytest.mark.parametrize(
    "command", ["check rules rules.yml", "test rules rules.test.yml", "check config prometheus.yml"]
)
def test_promtool_has_nothing_to_complain_of(command: str) -> None:
    if shutil.which("promtool") is None:
        give_up("promtool is not installed: install Debian's package prometheus")
    done = subprocess.run(
        ["promtool", *command.split()], cwd=FOLDER, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((FOLDER / "rules.test.yml").read_text())["tests"]
    fired = {
        case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")
    }
    # RedisDown and MemoryLow are the same as their neighbours; the test shows that they stay silent.
    assert alerts().keys() - fired == {"RedisDown", "MemoryLow"}


def test_queries_name_metrics_that_exist_and_the_dashboard_shows_all() -> None:
    queries = [*alerts().values(), *(query for found in panels().values() for query in found)]
    named = {name for query in queries for name in re.findall(r"\b(?:scenefleet|model_service)_\w+", query)}
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert bare <= NAMED.keys(), bare - NAMED.keys()
    # Who a node is, and users, whose ids are personal, are not on the dashboard.
    assert NAMED.keys() - bare == {
        "scenefleet_node_info",
        "scenefleet_node_ready",
        "scenefleet_user_device_seconds",
    }


def test_no_dashboard_is_two_panels_of_one_name_or_place() -> None:
    shown = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len(panels()) == len(shown)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in shown]
    assert len(set(places)) == len(places) and all(
        x + panel["gridPos"]["w"] <= 24 for panel, (x, _) in zip(shown, places, strict=True)
    )
