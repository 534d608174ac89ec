"""The benchmarks of models and memory run: quick, with tiny models; what they measure is not looked at."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.memory import estimate_full
from bench.models import judge, ratios
from tests.acceptance.commands import run_command


def run(module: str, *arguments: str, out: Path) -> Any:
    command = [sys.executable, "-m", module, "--quick", *arguments, "--out", str(out)]
    run_command(command, os.environ, timeout_s=500)
    return json.loads(out.read_text())


@pytest.mark.timeout(600)
def test_a_lite_and_a_full_model_go_through_engine_model_and_stage(tmp_path: Path) -> None:
    names = ["minilm", "bge-reranker"]
    chosen = [argument for name in names for argument in ("--only", name)]
    report = run("bench.models", *chosen, out=tmp_path / "models.json")
    found = {result["name"]: result for result in report["results"]}
    assert set(found) == set(names)
    for name, result in found.items():
        steps = {"bare", "model"} | ({"reading", "stage", "job"} if name != "bge-reranker" else set())
        assert {step for step, seconds in result["took_s"].items() if seconds} == steps
        assert all(value > 0 for seconds in result["took_s"].values() for value in seconds)
    assert len(report["targets"]) == 3


@pytest.mark.timeout(600)
def test_the_memory_of_two_fleets(tmp_path: Path) -> None:
    report = run("bench.memory", out=tmp_path / "memory.json")
    assert set(report["fleet_bytes"]) == set(report["naive_bytes"]) == {"search"}
    # It holds no model in our fleet, and all of them in the other.
    assert report["naive_bytes"]["search"] > report["fleet_bytes"]["search"] + 300e6


def test_ratios_are_medians_of_rounds() -> None:
    took = {"bare": [1.0, 2.0, 4.0], "model": [1.0, 4.0, 4.0]}
    took |= {"stage": [1.1, 2.2, 8.0], "job": [2.0, 4.0, 8.0]}
    used = {"bare": [1.0] * 3, "model": [2.0] * 3, "stage": [3.0] * 3}
    assert ratios(took, used) == {
        "stage_ratio": pytest.approx(1.1),
        "job_ratio": 2.0,
        "throughput_ratio": 1.0,
        "model_cpu_ratio": 2.0,
        "job_cpu_ratio": 3.0,
    }
    without = ratios({"bare": [1.0], "model": [1.25], "job": []}, {"bare": [1.0], "model": [1.0]})
    assert without["stage_ratio"] is None and without["job_ratio"] is None
    rows = judge([{"name": "a", **ratios(took, used)}, {"name": "b", **without}])
    found = [(row["target"].split(":")[0], row["met"]) for row in rows]
    assert found == [("a", False), ("a", True), ("b", False)]


def test_the_estimate_is_the_catalogues() -> None:
    estimate = estimate_full()
    assert estimate["fleet_mb"] == sum(estimate["models_mb"].values()) > 10_000
    assert estimate["naive_mb"] == estimate["processes"] * estimate["fleet_mb"]
