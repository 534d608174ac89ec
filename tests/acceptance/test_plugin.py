"""A package with a stage, a family and a model: installed by pip, indexed by its node, in the sidecar, a filter, uninstalled."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import venv
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.errors import InvalidRequest
from shared.nodes import node_name, read_nodes
from tests.acceptance.commands import run_command
from tests.acceptance.conftest import MakeFleet
from tests.support.excerpt import write_excerpt
from tests.support.fleet import ROOT, Fleet

USER, PACKAGE = "u1", "scenefleet-loudness"
NODES = ("media", "asr", "housekeeping", "search")
OFF = dict.fromkeys(("FEATURE_SEMANTIC_SEARCH", "FEATURE_OCR", "FEATURE_FACE_DETECTION"), "false")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages_of(folder / "bin" / "python") / "seen.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def packages_of(python: Path) -> Path:
    """Where pip installs for this interpreter."""
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


@pytest.fixture(scope="module")
def fleet(make_fleet: MakeFleet, python: Path) -> Fleet:
    """Nodes and commands of this interpreter that see the fresh environment's packages, too."""
    return make_fleet(**OFF, PYTHONPATH=str(packages_of(python)))


def pip(python: Path, *arguments: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(python.parents[1]), "PIP_NO_INDEX": "1"}
    line = [python, "-m", "pip", *arguments, "--disable-pip-version-check"]
    run_command(line, environment)


def command(fleet: Fleet, *arguments: str, status: int = 0) -> str:
    done = fleet.command(*arguments, SCENEFLEET_USER=USER, COLUMNS="200")
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout + done.stderr


def restart(fleet: Fleet, *more: str) -> None:
    fleet.stop(*fleet.nodes)
    fleet.start(*NODES, *more)
    fleet.wait_ready()


def index(fleet: Fleet, clip: Path, video_id: str) -> dict[str, str]:
    fleet.process(clip, video_id)
    return ended(fleet, video_id)


def ended(fleet: Fleet, video_id: str) -> dict[str, str]:
    return {stage.stage: stage.state for stage in fleet.wait_for(video_id).stages}


def sidecars(fleet: Fleet, video_id: str) -> list[dict[str, Any]]:
    schema = json.loads((ROOT / "docs" / "sidecar.schema.json").read_text())
    documents = []
    for scene in fleet.client.scenes(video_id, USER).scenes:
        assert scene.sidecar_key is not None
        document = json.loads(fleet.storage.get_bytes("sidecars", scene.sidecar_key))
        jsonschema.validate(document, schema)
        documents.append(document)
    return documents


def words(fleet: Fleet) -> str:
    rows = fleet.rows("SELECT array_agg(transcript) AS said FROM scenes WHERE live GROUP BY video_id LIMIT 1")
    return " or ".join(max(said.split(), key=len) for said in rows[0]["said"])


def found(fleet: Fleet, user_id: str = USER, **options: Any) -> list[tuple[str, int]]:
    """Scenes found by the longest words of any video (all say the same), by video and place."""
    answer = fleet.client.search(user_id, words(fleet), mode="keyword", **options)
    assert answer.coverage.scenes == len(answer.hits)
    return sorted((hit.video_id, hit.idx) for hit in answer.hits)


def test_a_package_brings_a_stage_and_takes_it_away(
    fleet: Fleet, python: Path, sample: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "excerpt.mp4"
    write_excerpt(sample, clip)
    before = command(fleet, "db", "upgrade")
    restart(fleet)
    assert "loudness" not in index(fleet, clip, "before")
    with pytest.raises(InvalidRequest, match=r"filters\.loudness is no filter of this fleet"):
        found(fleet, filters={"loudness": -30})

    # pip builds in the folder: a copy.
    source = shutil.copytree(ROOT / "tests" / "plugins" / "loudness", tmp_path / "loudness")
    pip(python, "install", "--no-deps", "--no-build-isolation", str(source))
    assert "loudness@base" in command(fleet, "db", "current", status=1)
    assert "loudness@0001" in command(fleet, "db", "upgrade")
    assert f"loudness ({PACKAGE} 1.0): loudness" in command(fleet, "doctor", status=1)
    restart(fleet, "loudness")

    assert index(fleet, clip, "after")["loudness"] == "done"
    assert read_nodes(fleet.redis_url)[node_name("loudness")].models == ("rms-meter",)
    assert [document["plugins"] for document in sidecars(fleet, "before")] == [{}, {}]
    levels = [document["plugins"]["loudness"]["dbfs"] for document in sidecars(fleet, "after")]
    assert len(levels) == 2 and all(-60 < level < 0 for level in levels), levels
    quiet, loud = sorted((level, ("after", idx)) for idx, level in enumerate(levels))
    assert found(fleet, filters={"loudness": -120}) == [("after", 0), ("after", 1)]
    assert found(fleet, filters={"loudness": (quiet[0] + loud[0]) / 2}) == [loud[1]]
    assert found(fleet, filters={"loudness": 0}) == found(fleet, "u2", filters={"loudness": -120}) == []
    with pytest.raises(InvalidRequest, match=r"filters\.loudness='loud' is no level"):
        found(fleet, filters={"loudness": "loud"})
    shown = command(fleet, "search", words(fleet), "-m", "keyword", "--filter", "loudness=-120", "--json")
    assert len(json.loads(shown)["hits"]) == 2

    # A video from before the stage gets it, without its sound being read by the fleet's other stages again.
    fleet.client.rerun("before", USER, missing=True)
    states = ended(fleet, "before")
    assert (states["audio"], states["loudness"], states["asr"]) == ("done", "done", "reused")
    assert [document["plugins"] for document in sidecars(fleet, "before")] == [
        {"loudness": {"dbfs": level}} for level in levels
    ]
    fleet.client.rerun("after", USER, stages=["loudness"])
    ended(fleet, "after")
    for video_id in ("before", "after"):
        fleet.wait_swept(video_id, USER)
    runs = fleet.rows(
        "SELECT external_id, l.run FROM scene_loudness l JOIN scenes USING (scene_id) JOIN videos USING (video_id)"
    )
    found_runs = sorted((row["external_id"], row["run"]) for row in runs)
    assert found_runs == [("after", 2)] * 2 + [("before", 2)] * 2

    fleet.client.delete("before", USER)
    pip(python, "uninstall", "--yes", PACKAGE)
    assert command(fleet, "db", "upgrade") == command(fleet, "db", "upgrade") == before
    restart(fleet)
    assert "loudness" not in index(fleet, clip, "later")
    fleet.client.rerun("after", USER)
    assert "loudness" not in ended(fleet, "after")
    assert [document["plugins"] for document in sidecars(fleet, "after")] == [{}, {}]
    assert found(fleet) == [(video, idx) for video in ("after", "later") for idx in (0, 1)]

    fleet.stop(*fleet.nodes)
    says = command(fleet, "db", "downgrade", "base", "--yes", status=1)
    assert "plug-in loudness has tables in this database" in says
    pip(python, "install", "--no-deps", "--no-build-isolation", str(source))
    command(fleet, "db", "downgrade", "loudness@base", "--yes")
    assert fleet.rows("SELECT to_regclass('scene_loudness') AS gone")[0]["gone"] is None
    command(fleet, "db", "upgrade")
    command(fleet, "db", "downgrade", "base", "--yes")
    assert fleet.rows("SELECT to_regclass('scenes') AS gone")[0]["gone"] is None
