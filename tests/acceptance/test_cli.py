"""The command as people use it: `up` on a machine of its own, a video, searches, a killed node, a killed `up`, `down`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from db.bootstrap import find_rights
from local import orphans
from local.home import Home
from shared import nodes
from shared.contracts import Receipt, ScenePage, SearchAnswer, VideoStatus
from shared.settings import Settings
from tests.acceptance.commands import run_command
from tests.support.excerpt import write_excerpt
from tests.support.fleet import FAMILIES, ROOT, eventually, kept_environment

START_LIMIT_S = 240


class Machine:
    """A home folder and the command that runs in it, as a user's shell would."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(Settings(SCENEFLEET_HOME=folder))
        #: What `up --detach` told.
        self.said = ""
        self.environment = {
            **kept_environment(),
            "SCENEFLEET_HOME": str(folder),
            "SCENEFLEET_MODEL_THREADS": "1",
            "SOFT_SHUTDOWN_S": "2",
            # Other fleets of this machine have the usual one.
            "API_PORT": "0",
        }

    def run(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *arguments]
        return run_command(
            command, {**self.environment, **environment}, status=status, timeout_s=START_LIMIT_S
        )

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
        found.said = found.run("up", "--detach").stderr
        yield found
    finally:
        found.clean()


@pytest.fixture(scope="module")
def excerpt(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    path = tmp_path_factory.mktemp("clips") / "excerpt.mp4"
    write_excerpt(sample, path)
    return path


@pytest.fixture(scope="module")
def video_id(machine: Machine, excerpt: Path) -> str:
    """Two scenes of the sample, indexed by the command."""
    document = machine.json("index", str(excerpt))
    (row,) = document["videos"]
    assert row["accepted"] and row["error"] is None and row["file"] == str(excerpt)
    status = VideoStatus.model_validate_json(json.dumps(row["status"]))
    assert status.state == "indexed"
    assert {stage.stage: stage.state for stage in status.stages}["vision"] == "skipped"
    return str(row["video_id"])


def test_doctor_finds_everything_well(machine: Machine) -> None:
    document = machine.json("doctor")
    assert document["healthy"] is True
    states = {check["check"]: check["state"] for check in document["checks"]}
    assert states.keys() >= {*(f"node {family}" for family in FAMILIES), "schema", "storage"}
    assert set(states.values()) <= {"ok", "warn"}


def test_up_serves_the_api_where_it_says(machine: Machine) -> None:
    url = machine.home.read_run()["api_url"]
    assert url in (machine.home.logs / "up.log").read_text()
    assert machine.said.splitlines()[-1] == f"open {url}"
    eventually(lambda: _health(url) == "ok", within_s=60, what="the API answers")
    port = url.rpartition(":")[2]
    taken = machine.run("api", status=1, API_PORT=port)
    assert f"port {port} on 127.0.0.1 is taken" in taken.stderr and "API_PORT" in taken.stderr
    refused = machine.run("api", status=1, API_HOST="0.0.0.0")
    assert "API_HOST=0.0.0.0 can be reached from other machines" in refused.stderr


def _health(url: str) -> str | None:
    try:
        return str(httpx.get(f"{url}/api/v1/health", timeout=10).json()["status"])
    except httpx.TransportError:
        return None


def test_scenes_and_searches_are_those_of_the_video(machine: Machine, video_id: str) -> None:
    """That they are right is told by tests/acceptance/lite/test_pipeline.py."""
    page = ScenePage.model_validate_json(json.dumps(machine.json("scenes", video_id)))
    assert len(page.scenes) == 2 and page.next_after_idx is None
    assert "rocket" in machine.run("scenes", video_id).stdout
    for query, mode in (("rocket", "keyword"), ("a space ship", "semantic")):
        answer = SearchAnswer.model_validate_json(json.dumps(machine.json("search", query, "--mode", mode)))
        assert answer.hits[0].idx == 0, query
    nothing = machine.run("search", "xyzzy", "--mode", "keyword")
    assert "nothing found" in nothing.stdout and "looked at 2 scenes" in nothing.stderr


def test_status_of_one_and_of_all(machine: Machine, video_id: str) -> None:
    assert machine.json("status", video_id)["state"] == "indexed"
    assert video_id in [video["video_id"] for video in machine.json("status")["videos"]]
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


def test_rerun_then_delete(machine: Machine, excerpt: Path) -> None:
    accepted = machine.json("index", str(excerpt), "--id", "short-lived")
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
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "inspect", "active", "--json", "-t", "5"]
    told = json.loads(run_command(command, machine.environment, timeout_s=60).stdout)
    assert {name.partition("@")[0] for name in told} == set(FAMILIES)


def test_what_a_running_fleet_keeps_is_for_its_user_alone(machine: Machine, video_id: str) -> None:
    root = machine.home.root
    modes = {path: path.lstat().st_mode for path in (root, *root.rglob("*"))}
    assert (root / "storage").is_dir() and modes.keys() >= {root / "logs/media.log", machine.home.run_file}
    assert {str(path): f"{mode:o}" for path, mode in modes.items() if mode & 0o077} == {}


def test_nodes_are_not_the_database_s_superuser_and_redis_has_no_port(machine: Machine) -> None:
    run = machine.home.read_run()
    assert run["redis_url"].startswith("unix://")
    with psycopg.connect(run["postgres_url"]) as connection:
        assert find_rights(connection) == []
    ports = []
    for process in orphans.find(machine.home):
        with contextlib.suppress(psutil.NoSuchProcess):  # Postgres starts and ends its workers as it likes.
            if process.name().startswith(("redis", "valkey")):
                ports.append(process.net_connections(kind="inet"))
    assert ports and not any(ports)


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
    assert "face died, started again" in (machine.home.logs / "up.log").read_text()


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
    # Enough to see that all is there.
    machine.run("up", "--detach", SCENEFLEET_NODES="search")
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
        environment = {"SCENEFLEET_NODES": "face,search", "SCENEFLEET_MODELS_FILE": str(catalogue)}
        assert "not every node is ready" in machine.run("up", "--detach", status=1, **environment).stderr
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
