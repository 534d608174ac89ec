"""``up`` and ``down``: run a fleet until a signal comes, in this process or in the background, and stop it in order.

The caller shows the progress, by a ``Display``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Protocol

from local import orphans
from local.fleet import Fleet, NodeView
from local.home import Home, configured_settings
from shared import permissions
from shared.errors import Outage, ScenefleetError
from shared.exit_status import ExitStatus
from shared.settings import child_environment, get_settings

DETACH_LIMIT_S = 600.0
DOWN_LIMIT_S = 240.0
SETTLE_S = 0.3
WATCH_S = 2.0
STARTING = ("starting", "loading")


class Interrupted(BaseException):
    """A signal asked this process to stop; carries its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns the first signal into ``Interrupted`` and lets a second one only hurry the stop."""

    def __init__(self) -> None:
        self.hurry = threading.Event()
        self._stopping = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self.hurry.set()
            return
        self._stopping = True
        raise Interrupted(number)

    def begin_stop(self) -> None:
        """From now on a signal no longer raises."""
        self._stopping = True


class Display(Protocol):
    """Shows people what ``run`` does."""

    def say(self, line: str) -> None:
        """Show a step."""

    def watch_start(self) -> AbstractContextManager[Callable[[list[NodeView]], None]]:
        """Show the nodes, again and again, while they start."""

    def started(self, fleet: Fleet, views: list[NodeView]) -> None:
        """Show that every node is ready, or which ones can't become so."""

    def node_changed(self, view: NodeView, *, replaced: bool) -> None:
        """Show a node's new state, or that another process has replaced its process."""

    def service_changed(self, name: str, *, runs: bool) -> None:
        """Show that an embedded server went or came back."""


def run(display: Display) -> int:
    """Run the fleet of this home folder until a signal comes; returns the exit status.

    Raises:
        ScenefleetError: as ``Fleet.start``, or the process runner ended; everything is stopped by then.
    """
    permissions.keep_private()
    fleet = Fleet(configured_settings())
    signals = Signals()
    status = 0
    problem: ScenefleetError | None = None
    try:
        fleet.start(display.say)
        views = wait_for_nodes(fleet, display)
        display.started(fleet, views)
        settled = "ready" if all(view.state == "ready" for view in views) else "partly"
        fleet.home.write_run({**fleet.home.read_run(), "settled": settled})
        _watch(fleet, views, display)
    except Interrupted as stop:
        status = ExitStatus.INTERRUPTED if stop.number == signal.SIGINT else 0
    except ScenefleetError as error:
        problem = error
    signals.begin_stop()
    if fleet.home.owned:
        display.say("stopping nodes, then services (Ctrl-C again: at once)")
        _stop(fleet, signals)
        display.say("stopped, nothing left running")
    if problem is not None:
        raise problem
    return status


def wait_for_nodes(fleet: Fleet, display: Display) -> list[NodeView]:
    """Show the nodes until each is ready or can't become so; returns them."""
    with display.watch_start() as show:
        while True:
            views, _ = fleet.view()
            show(views)
            if all(view.settled for view in views):
                return views
            time.sleep(SETTLE_S)


def _stop(fleet: Fleet, signals: Signals) -> None:
    """Stop in order; a second signal meanwhile makes it short."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        stopped = pool.submit(fleet.stop)
        while not stopped.done():
            wait([stopped], timeout=0.2)
            if signals.hurry.is_set():
                signals.hurry.clear()
                fleet.hurry()
        stopped.result()


def _watch(fleet: Fleet, views: list[NodeView], display: Display) -> None:
    """Report nodes and services that go or come back, until a signal comes."""
    states = {view.name: view.state for view in views}
    pids = {view.name: view.pid for view in views}
    running = dict.fromkeys(fleet.view()[1], True)
    while True:
        time.sleep(WATCH_S)
        views, services = fleet.view()
        for view in views:
            starting = view.state in STARTING
            replaced = bool(view.pid and pids[view.name] and view.pid != pids[view.name])
            if (replaced and starting) or (view.state != states[view.name] and not starting):
                display.node_changed(view, replaced=replaced and starting)
            states[view.name] = view.state
            pids[view.name] = view.pid or pids[view.name]
        for name, runs in services.items():
            if runs != running[name]:
                display.service_changed(name, runs=runs)
        running = services


def start_behind() -> tuple[int, Path, bool]:
    """Start ``up`` in the background and wait until its nodes are ready or can't become so.

    Returns: its pid, its log, and whether every node is ready.
    Raises:
        Outage: it ended, or takes too long; nothing half-started stays behind.
    """
    permissions.keep_private()
    home = Home(get_settings())
    home.acquire()
    home.release()
    log = home.logs / "up.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up"],
            env=child_environment(SCENEFLEET_HOME=str(home.root)),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    deadline = time.monotonic() + DETACH_LIMIT_S
    try:
        while not (settled := _settled(home, process.pid)):
            if process.poll() is not None:
                raise Outage(f"`up` ended: {_last_line(log)} (log: {log})")
            if time.monotonic() > deadline:
                raise Outage(f"the nodes are not ready after {DETACH_LIMIT_S:g} s: read {log}")
            time.sleep(0.2)
    except BaseException:
        if process.poll() is None:
            process.terminate()
            process.wait()
        raise
    return process.pid, log, settled == "ready"


def _settled(home: Home, pid: int) -> str | None:
    """How the start of that process ended; None while it has not. A killed `up` may have left another's answer."""
    run = home.read_run()
    return run.get("settled") if run.get("pid") == pid else None


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("scenefleet: ") if lines else "it wrote nothing"


def down(home: Home) -> int | None:
    """Stop the ``up`` of a home folder.

    Returns: None once it has stopped; where none runs, how many processes of a killed one were stopped.
    Raises:
        Outage: it did not stop in ``DOWN_LIMIT_S``.
    """
    pid = home.owner_pid()
    if not home.is_locked() or pid is None:
        left = orphans.stop(home) if home.root.is_dir() else 0
        home.remove_run()
        return left
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_LIMIT_S
    while home.is_locked():
        if time.monotonic() > deadline:
            raise Outage(
                f"process {pid} did not stop in {DOWN_LIMIT_S:g} s: read {home.logs / 'supervisor.log'}"
            )
        time.sleep(0.2)
    return None
