"""Plug-ins as they are read: what one may add, and how one that can't be used is named."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from shared import graph, plugins
from shared.errors import InvalidRequest
from shared.plugins import Family, Filter, Plugin
from shared.stage import Stage

ROOT = Path(__file__).parents[2]
STAGE = Stage(
    name="loudness", queue="media", handler="x.stage", after=("split",), time_limit_s=60, parts="scenes", batch=8,
    tables=("scene_loudness",),
)  # fmt: skip
PLUGIN = Plugin(name="loudness", stages=(STAGE,))


def entry(found: Any) -> Any:
    """An entry point of a package."""
    load = Mock(side_effect=found) if isinstance(found, Exception) else Mock(return_value=found)
    return SimpleNamespace(
        name="loudness", dist=SimpleNamespace(name="some-package", version="1.0"), load=load
    )


def read(*found: Any) -> plugins.Installed:
    entries = [entry(one) for one in found]
    return plugins.read(entries, pipeline=(graph.SPLIT, graph.AUDIO), taken=("sidecar", "search"))


def test_a_plug_in_is_read_with_its_package() -> None:
    own = Family("sound", ("sound",))
    other = Plugin(name="other", stages=(replace(STAGE, name="hum", queue="sound"),), families=(own,))
    found = read(PLUGIN, other)
    assert found.plugins == tuple(replace(plugin, package="some-package 1.0") for plugin in (PLUGIN, other))
    found.require_all()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (ModuleNotFoundError("No module named 'x'"), "No module named 'x'"),
        ("no plug-in", "AttributeError"),
        (replace(PLUGIN, name="Loud ness"), "'Loud ness' does not match"),
        (replace(PLUGIN, stages=(replace(STAGE, name="sidecar"),)), "sidecar is there already"),
        (replace(PLUGIN, families=(Family("search", ("search",)),)), "search is there already"),
        (replace(PLUGIN, stages=(replace(STAGE, after=()),)), "waits for ()"),
        (replace(PLUGIN, stages=(replace(STAGE, after=("later",)),)), "waits for ('later',)"),
        (replace(PLUGIN, stages=(replace(STAGE, queue="sound"),)), "queue 'sound', which no family consumes"),
        (replace(PLUGIN, stages=(replace(STAGE, flags=("feature_x",)),)), "flags=['feature_x']"),
        (replace(PLUGIN, stages=(replace(STAGE, batch=0),)), "batch=0"),
        (replace(PLUGIN, stages=(replace(STAGE, tables=("x; DROP",)),)), "'x; DROP' does not match"),
        (replace(PLUGIN, stages=(STAGE, STAGE)), "two stages loudness"),
        (replace(PLUGIN, filters={"loud": Filter(stage="loudness", condition="")}), "loud does not begin"),
        (replace(PLUGIN, filters={"loudness": Filter(stage="x", condition="")}), "loudness names stage 'x'"),
    ],
)
def test_one_that_cant_be_used_is_named_and_left_out(broken: Any, says: str) -> None:
    other = Plugin(name="other")
    found = read(other, broken)
    assert [plugin.name for plugin in found.plugins] == ["other"]
    (reason,) = found.broken
    assert says in reason and "package some-package 1.0" in reason
    with pytest.raises(InvalidRequest, match="some-package"):
        found.require_all()


def test_two_of_a_name_are_one_too_many() -> None:
    assert "has a plug-in loudness, too" in read(PLUGIN, PLUGIN).broken[0]


def test_stages_are_named_in_the_graph_alone() -> None:
    """Only where no family, retriever, event or file has the same name."""
    names = {name for name, stage in graph.STAGES.items() if stage.queue != name}
    names -= {"split", "audio", "match", "move", "discard", "rendition"}
    named = {
        (str(path.relative_to(ROOT)), node.value)
        for package in ("db", "worker", "tasks", "cli")
        for path in (ROOT / package).rglob("*.py")
        if "versions" not in path.parts and path.parent.name != "stages"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert names >= {"sidecar", "sweep", "enroll", "rewrite_sidecars"} and not named


READ = """
import json
from shared import graph, routing
from shared.settings import Settings
from worker.models.cache import PROVIDERS, ModelCache
from worker.models.catalog import load_catalog
from worker.runtime import make_policy
import tasks.jobs
catalog, settings = load_catalog(), Settings()
cache = ModelCache(catalog, catalog.active(settings), ["loudness"])
print(json.dumps({
    "broken": graph.PLUGINS.broken, "node": routing.NODES["loudness"].queues, "model": "unavailable" not in cache.states()[0],
    "order": graph.PIPELINE_NAMES[-3:], "waits": "loudness" in graph.SIDECAR.after, "limit": routing.queue_limit_s("loudness"),
    "task": "loudness" in tasks.jobs.WORK, "provider": PROVIDERS["loudness", "rms"],
    "skips": make_policy(settings, catalog).skips.get("loudness"), "alone": sorted(graph.with_stand_ins(["loudness"])),
}))
"""


@pytest.mark.parametrize("profile", ["lite", "full"])
def test_a_family_brings_its_queues_its_node_and_its_models(tmp_path: Path, profile: str) -> None:
    metadata = tmp_path / "scenefleet_loudness-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: scenefleet-loudness\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[scenefleet.plugins]\nloudness = scenefleet_loudness:PLUGIN\n"
    )
    path = f"{ROOT}:{ROOT}/tests/plugins/loudness:{tmp_path}"
    environment = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "SCENEFLEET_PROFILE": profile}
    read = subprocess.run(
        [sys.executable, "-c", READ], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout) == {
        "broken": [],
        "node": ["loudness"],
        "model": profile == "lite",
        "order": ["loudness", "sidecar", "rendition"],
        "waits": True,
        "limit": 600,
        "task": True,
        "provider": "scenefleet_loudness.stage:RmsMeter",
        "skips": None if profile == "lite" else "unavailable: profile full has no loudness model",
        "alone": ["audio", "loudness"],
    }
