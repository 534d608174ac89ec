"""The command as people use it: `up` on a machine of its own, a video, searches, a killed node, a killed `up`, `down`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from db.bootstrap import find_rights
from local import orphans
from local.home import Home
from shared import nodes
from shared.contracts import Receipt, ScenePage, SearchAnswer, VideoStatus
from shared.settings import Settings
from tests.support.excerpt import write_excerpt
from tests.support.fleet import eventually, kept_environment

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 240


class Machine:
    """A home folder and the command that runs in it, as a user's shell would."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(Settings(SCENEFLEET_HOME=folder))
        self.environment = {
            **kept_environment(),
            "SCENEFLEET_HOME": str(folder),
            "SCENEFLEET_MODEL_THREADS": "1",
            "SOFT_SHUTDOWN_S": "2",
        }

    def run(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the test fails when its exit status is another one."""
        result = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
        )
        assert result.returncode == status, (
            f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        )
        return result

    def json(self, *arguments: str, status: int = 0) -> Any:
        """The one document on stdout of a command with ``--json``."""
        return json.loads(self.run(*arguments, "--json", status=status).stdout)

    def clean(self) -> None:
        """Whatever the test left."""
        owner = self.home.owner_pid()
        if self.home.is_locked() and owner is not None:
            os.kill(owner, signal.SIGKILL)
        if self.home.root.is_dir():
            orphans.stop(self.home, 5.0)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A fleet that runs behind, in a folder with a space and a percent sign in its name."""
    found = Machine(tmp_path_factory.mktemp("cli") / "my 100% home")
    try:
        found.run("up", "--detach")
        yield found
    finally:
        found.clean()


@pytest.fixture(scope="module")
def video_id(machine: Machine, sample: Path) -> str:
    """The sample, indexed by the command."""
    document = machine.json("index", str(sample))
    (row,) = document["videos"]
    assert row["accepted"] and row["error"] is None and row["file"] == str(sample)
    status = VideoStatus.model_validate_json(json.dumps(row["status"]))
    assert status.state == "indexed"
    assert {stage.stage: stage.state for stage in status.stages}["vision"] == "skipped"
    found: str = row["video_id"]
    return found


def truth() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "samples" / "truth.json").read_text())
    return found


def test_the_run_file_is_private(machine: Machine) -> None:
    assert machine.home.run_file.stat().st_mode & 0o077 == 0


def test_doctor_finds_everything_well(machine: Machine) -> None:
    document = machine.json("doctor")
    assert document["healthy"] is True
    states = {check["check"]: check["state"] for check in document["checks"]}
    assert {"node media", "node asr", "node text", "node face", "node search", "schema", "storage"} <= set(
        states
    )
    assert set(states.values()) <= {"ok", "warn"}


def test_scenes_are_those_of_the_sample(machine: Machine, video_id: str) -> None:
    page = ScenePage.model_validate_json(json.dumps(machine.json("scenes", video_id)))
    assert len(page.scenes) == len(truth()["scenes"])
    assert page.next_after_idx is None
    shown = machine.run("scenes", video_id).stdout
    assert "rocket" in shown


def test_searches_find_the_right_scene_first(machine: Machine, video_id: str) -> None:
    for known in truth()["searches"]:
        document = machine.json("search", known["query"], "--mode", known["mode"])
        answer = SearchAnswer.model_validate_json(json.dumps(document))
        assert answer.hits[0].idx == known["scene"], known
    nothing = machine.run("search", "xyzzy", "--mode", "keyword")
    assert "nothing found" in nothing.stdout
    assert "looked at 8 scenes" in nothing.stderr


def test_status_of_one_and_of_all(machine: Machine, video_id: str) -> None:
    assert machine.json("status", video_id)["state"] == "indexed"
    listed = [video["video_id"] for video in machine.json("status")["videos"]]
    assert video_id in listed
    assert machine.json("status", "--user", "somebody")["videos"] == []
    refused = machine.run("status", video_id, "--user", "somebody", status=1)
    assert refused.stderr.startswith("scenefleet: no video")


def test_a_file_that_is_no_video_fails_with_its_reason(machine: Machine, tmp_path: Path) -> None:
    letter = tmp_path / "letter.mp4"
    letter.write_text("Dear Sir or Madam")
    result = machine.run("index", str(letter), status=1)
    assert "failed" in result.stdout
    assert "scenefleet: letter.mp4: split:" in result.stderr
    assert "Traceback" not in result.stderr


def test_rerun_then_delete(machine: Machine, sample: Path, tmp_path: Path) -> None:
    write_excerpt(sample, tmp_path / "excerpt.mp4")
    accepted = machine.json("index", str(tmp_path / "excerpt.mp4"), "--id", "short-lived")
    assert accepted["videos"][0]["status"]["state"] == "indexed"
    receipt = Receipt.model_validate_json(json.dumps(machine.json("rerun", "short-lived", "--stage", "face")))
    assert receipt.run == 2
    eventually(
        lambda: machine.json("status", "short-lived")["published_run"] == 2, within_s=120, what="run 2 is out"
    )
    asked = machine.run("delete", "short-lived", status=1)
    assert "--yes" in asked.stderr
    machine.run("delete", "short-lived", "--yes")
    assert "no video" in machine.run("status", "short-lived", status=1).stderr


def test_celery_s_own_tools_know_the_fleet(machine: Machine) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", "inspect", "active", "--json", "-t", "5"],
        cwd=ROOT,
        env=machine.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert {name.partition("@")[0] for name in json.loads(result.stdout)} == {
        "media", "asr", "text", "face", "ocr", "housekeeping", "search",
    }  # fmt: skip


def test_what_a_running_fleet_keeps_is_for_its_user_alone(machine: Machine, video_id: str) -> None:
    root = machine.home.root
    others = [
        f"{path} {stat.S_IMODE(path.lstat().st_mode):o}"
        for path in (root, *root.rglob("*"))
        if path.lstat().st_mode & 0o077
    ]
    assert (root / "storage").is_dir() and (root / "logs" / "media.log").is_file()
    assert others == []


def test_nodes_are_not_the_database_s_superuser_and_redis_has_no_port(machine: Machine) -> None:
    run = machine.home.read_run()
    assert run["redis_url"].startswith("unix://")
    with psycopg.connect(run["postgres_url"]) as connection:
        assert find_rights(connection) == []
    servers = []
    for process in orphans.find(machine.home):
        with contextlib.suppress(psutil.NoSuchProcess):  # Postgres starts and ends its workers as it likes.
            if process.name().startswith(("redis", "valkey")):
                servers.append(process)
    assert servers
    for server in servers:
        assert server.net_connections(kind="inet") == []


def test_a_second_up_is_refused_and_changes_nothing(machine: Machine) -> None:
    before = machine.home.read_run()
    for arguments in (("up",), ("up", "--detach")):
        result = machine.run(*arguments, status=1)
        assert "already runs" in result.stderr and str(before["pid"]) in result.stderr
    assert machine.home.read_run() == before


def test_a_killed_node_is_started_again(machine: Machine) -> None:
    url = machine.home.read_run()["redis_url"]
    name = nodes.node_name("face")
    first = nodes.read_nodes(url)[name].pid
    psutil.Process(first).kill()

    def ready_again() -> bool:
        record = nodes.read_nodes(url).get(name)
        return record is not None and record.pid != first and record.state == "ready"

    eventually(ready_again, within_s=120, what="another face node is ready")
    machine.run("node-health", "face")
    said = (machine.home.logs / "up.log").read_text()
    assert "face died, started again" in said


def test_after_a_kill_of_everything_the_next_up_takes_over(machine: Machine, video_id: str) -> None:
    run = machine.home.read_run()
    runner = int(machine.home.supervisor_pid.read_text())
    # The runner first: Linux would have it stop everything in order once `up` is dead.
    os.kill(runner, signal.SIGSTOP)
    os.kill(run["pid"], signal.SIGKILL)
    os.kill(runner, signal.SIGKILL)
    eventually(lambda: not machine.home.is_locked(), within_s=10, what="up is dead")
    left = {process.pid for process in orphans.find(machine.home)}
    assert left, "nodes and servers are still there"
    checks = {check["check"]: check for check in machine.json("doctor", status=1)["checks"]}
    assert "killed" in checks["up"]["detail"]
    machine.run("up", "--detach")
    assert not left & {process.pid for process in orphans.find(machine.home)}
    assert machine.home.read_run()["pid"] != run["pid"]
    assert machine.json("status", video_id)["state"] == "indexed"
    assert machine.json("search", "rocket", "--mode", "keyword")["hits"][0]["video_id"] == video_id


def test_down_leaves_nothing_running(machine: Machine) -> None:
    machine.run("down")
    assert orphans.find(machine.home) == []
    assert not machine.home.is_locked()
    assert not machine.home.run_file.exists()
    assert not (machine.home.root / "supervisor.sock").exists()
    assert "nothing runs" in machine.run("down").stderr


def test_a_node_without_its_model_is_shown_and_left_alone(tmp_path: Path) -> None:
    catalogue = tmp_path / "models.yaml"
    text = (ROOT / "models.yaml").read_text()
    catalogue.write_text(text.replace("package:face_recognition_models", f"path:{tmp_path}/nowhere"))
    machine = Machine(tmp_path / "home")
    try:
        result = machine.run(
            "up",
            "--detach",
            status=1,
            SCENEFLEET_NODES="face,search",
            SCENEFLEET_MODELS_FILE=str(catalogue),
        )
        assert "not every node is ready" in result.stderr
        said = (machine.home.logs / "up.log").read_text()
        assert "face failed" in said and "nowhere" in said
        machine.run("node-health", "search")
        assert "no face node" in machine.run("node-health", "face", status=1).stderr
        machine.run("down")
        assert orphans.find(machine.home) == []
    finally:
        machine.clean()


def test_ctrl_c_stops_up_in_order(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    log = tmp_path / "up.log"
    try:
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "cli", "up"],
                cwd=ROOT,
                env={**machine.environment, "SCENEFLEET_NODES": "search"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        eventually(lambda: "search ready" in log.read_text(), within_s=START_LIMIT_S, what="search is ready")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130
        assert "nothing left running" in log.read_text()
        assert orphans.find(machine.home) == []
        stopped = [
            line.split("stopped: ")[1].split()[0]
            for line in (machine.home.logs / "supervisor.log").read_text().splitlines()
            if "stopped: " in line
        ]
        assert stopped == ["search", "redis", "postgres"]
    finally:
        machine.clean()
