"""The process runner: its configuration, and a real supervisord that keeps small programs alive."""

from __future__ import annotations

import configparser
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import orphans, process_runner
from local.home import Home
from local.process_runner import Program, ProgramState, Supervisor
from shared.errors import Outage
from shared.exit_status import ExitStatus
from shared.settings import Settings, child_environment
from tests.support.fleet import eventually

pytestmark = pytest.mark.slow


def program(name: str, code: str, cwd: Path) -> Program:
    values: dict[str, Any] = {"priority": 100, "stop_wait_s": 10, "group": "nodes", "autostart": False}
    return Program(name=name, command=(sys.executable, "-c", code), cwd=cwd, **values)


def test_names_with_percent_and_spaces_survive(tmp_path: Path) -> None:
    folder = tmp_path / "100% mine"
    text = process_runner.render_config(folder / "s.sock", [program("media", "print('%s')", folder)])
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    assert parser["program:media"]["directory"] == str(folder).replace("%", "%%")
    assert "%%s" in parser["program:media"]["command"]
    assert parser["group:nodes"]["programs"] == "media"


def test_a_deep_home_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    short = process_runner.socket_path(deep, process_runner.SOCKET)
    try:
        assert len(str(short)) <= process_runner.MAX_SOCKET_PATH
        assert short.parent.stat().st_mode & 0o077 == 0
    finally:
        short.parent.rmdir()


class Running:
    """A supervisord in a home folder of its own."""

    def __init__(self, home: Home, programs: list[Program]) -> None:
        self.home = home
        home.acquire()
        socket = process_runner.socket_path(home.root, process_runner.SOCKET)
        home.supervisor_config.write_text(process_runner.render_config(socket, programs))
        environment = child_environment(**{orphans.MARK: str(home.root)})
        self.process = process_runner.start(home.supervisor_config, environment)
        self.supervisor = Supervisor(socket)
        self.supervisor.wait(self.process, home.logs / "supervisor.err")
        self.supervisor.start_group("nodes")

    def wait(self, name: str, state: str = "RUNNING") -> ProgramState:
        """A program, once it is in a state."""

        def reached() -> list[ProgramState]:
            return [found for found in [self.supervisor.states()[name]] if found.state == state]

        (found,) = eventually(reached, within_s=30, what=f"{name} is {state}")
        return found


STAYS = "import time; time.sleep(3600)"
#: Longer than START_S, so that the exit counts.
LEAVES_WITH_78 = "import sys, time; time.sleep(1.6); sys.exit(78)"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    home = Home(Settings(SCENEFLEET_HOME=tmp_path / "a 100% home"))
    home.root.mkdir(mode=0o700)
    programs = [program("stays", STAYS, tmp_path), program("hopeless", LEAVES_WITH_78, tmp_path)]
    found = Running(home, programs)
    yield found
    found.process.kill()
    found.process.wait()
    orphans.stop(home, 5.0)
    home.release()


def test_a_killed_program_is_started_again(running: Running) -> None:
    first = running.wait("stays").pid
    psutil.Process(first).kill()
    eventually(lambda: running.wait("stays").pid != first, within_s=30, what="another process runs")


def test_a_program_that_left_with_78_stays_away(running: Running) -> None:
    left = running.wait("hopeless", "EXITED")
    assert left.exit_status == ExitStatus.CONFIG
    running.wait("stays")
    assert running.supervisor.states()["hopeless"] == left


def test_term_stops_everything(running: Running) -> None:
    pid = running.wait("stays").pid
    running.process.terminate()
    running.process.wait(timeout=30)
    assert not psutil.pid_exists(pid)
    with pytest.raises(Outage, match="does not answer"):
        running.supervisor.states()


def test_what_a_killed_runner_leaves_is_found_and_stopped(running: Running) -> None:
    pid = running.wait("stays").pid
    running.process.kill()
    running.process.wait()
    assert pid in [process.pid for process in orphans.find(running.home)]
    other = Home(Settings(SCENEFLEET_HOME=running.home.root.parent))
    assert orphans.find(other) == [], "processes of another home folder are not ours"
    assert orphans.stop(running.home, 5.0) >= 1
    eventually(lambda: not psutil.pid_exists(pid), within_s=10, what="it is gone")
    assert orphans.find(running.home) == []


def test_a_runner_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    home = Home(Settings(SCENEFLEET_HOME=tmp_path / "home"))
    home.acquire()
    home.supervisor_config.write_text("[supervisord]\nnodaemon=perhaps\n")
    process = process_runner.start(home.supervisor_config, child_environment())
    with pytest.raises(Outage, match=r"supervisor\.err"):
        Supervisor(home.root / "s.sock").wait(process, home.logs / "supervisor.err")
    assert "perhaps" in (home.logs / "supervisor.err").read_text()
    home.release()
