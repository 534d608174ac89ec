"""Plug-ins as they are read: what one may add, and how one that can't be used is named."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import graph, plugins
from shared.errors import InvalidRequest
from shared.plugins import Family, Filter, Plugin
from shared.stage import Stage

ROOT = Path(__file__).parents[2]
STAGE = Stage(
    name="loudness",
    queue="media",
    handler="x.stage",
    after=("split",),
    time_limit_s=60,
    parts="scenes",
    batch=8,
    tables=("scene_loudness",),
)
PLUGIN = Plugin(name="loudness", stages=(STAGE,))


@dataclass
class Entry:
    """An entry point of a package."""

    found: Any
    name: str = "loudness"
    value: str = "x:PLUGIN"

    @property
    def dist(self) -> Any:
        return SimpleNamespace(name="some-package", version="1.0")

    def load(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def read(*found: Any) -> plugins.Installed:
    entries = cast(Any, [Entry(one) for one in found])
    return plugins.read(entries, pipeline=(graph.SPLIT, graph.AUDIO), taken=("sidecar", "search"))


def test_a_plug_in_is_read_with_its_package() -> None:
    own = Family("sound", ("sound",))
    other = Plugin(name="other", stages=(replace(STAGE, name="hum", queue="sound"),), families=(own,))
    found = read(PLUGIN, other)
    assert found.broken == ()
    assert found.plugins == (
        replace(PLUGIN, package="some-package 1.0"),
        replace(other, package="some-package 1.0"),
    )
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
        (
            replace(PLUGIN, filters={"loud": Filter(stage="loudness", condition="")}),
            "filter loud does not begin",
        ),
        (
            replace(PLUGIN, filters={"loudness": Filter(stage="x", condition="")}),
            "filter loudness names stage 'x'",
        ),
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
    """Only where no family, retriever or event has the same name."""
    names = {name for name, stage in graph.STAGES.items() if stage.queue != name} - {
        "split",
        "audio",
        "match",
        "move",
        "discard",
    }
    core = [
        *ROOT.glob("db/**/*.py"),
        *ROOT.glob("worker/**/*.py"),
        *ROOT.glob("tasks/*.py"),
        *ROOT.glob("cli/**/*.py"),
    ]
    named = {
        (str(path.relative_to(ROOT)), node.value)
        for path in core
        if "versions" not in path.parts and path.parent.name != "stages"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert names >= {"sidecar", "sweep", "enroll", "rewrite_sidecars"} and not named


FAMILY = """
from shared.plugins import Family, Plugin
from shared.stage import Stage

PLUGIN = Plugin(
    name="sound",
    stages=(Stage(name="sounds", queue="sound", handler="sound_plugin.stage", after=("split", "audio"),
                  time_limit_s=600, parts="windows"),),
    families=(Family("sound", ("sound",), has_model=True),),
    providers={("sound", "beats"): "sound_plugin.provider:Beats"},
    models="sound_plugin:models.yaml",
)
"""
MODEL = """
models:
  - {name: beats, family: sound, provider: beats, source: "package:sound_plugin/weights", revision: "1", licence: MIT,
     memory_mb: 10, profiles: [PROFILE], sha256: {a.bin: SHA}}
"""


@pytest.mark.parametrize("profile", ["lite", "full"])
def test_a_family_brings_its_queues_its_node_and_its_models(tmp_path: Path, profile: str) -> None:
    package, metadata = tmp_path / "sound_plugin", tmp_path / "sound_plugin-1.0.dist-info"
    for folder in (package, metadata):
        folder.mkdir()
    (package / "__init__.py").write_text(FAMILY)
    (package / "models.yaml").write_text(MODEL.replace("PROFILE", profile).replace("SHA", "a" * 64))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sound-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[scenefleet.plugins]\nsound = sound_plugin:PLUGIN\n")
    code = """
import json
from shared import graph, routing
from shared.settings import Settings
from worker.models.cache import PROVIDERS, ModelCache
from worker.models.catalog import load_catalog
from worker.runtime import make_policy
import tasks.jobs
catalog, settings = load_catalog(), Settings()
cache = ModelCache(catalog, catalog.active(settings), ["sound"])
print(json.dumps({
    "broken": graph.PLUGINS.broken, "node": routing.NODES["sound"].queues, "model": "unavailable" not in cache.states()[0],
    "order": graph.PIPELINE_NAMES[-2:], "waits": "sounds" in graph.SIDECAR.after, "limit": routing.queue_limit_s("sound"),
    "task": "sound" in tasks.jobs.WORK, "provider": PROVIDERS["sound", "beats"],
    "skips": make_policy(settings, catalog).skips.get("sounds"), "alone": sorted(graph.with_stand_ins(["sounds"])),
}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reason = "unavailable: profile lite has no sound model"
    assert json.loads(done.stdout) == {
        "broken": [],
        "node": ["sound"],
        "model": profile == "lite",
        "order": ["sounds", "sidecar"],
        "waits": True,
        "limit": 600,
        "task": True,
        "provider": "sound_plugin.provider:Beats",
        "skips": None if profile == "lite" else reason,
        "alone": ["audio", "sounds"],
    }
