"""``scenefleet up`` and ``down``: run the fleet in the foreground or behind, show its nodes, stop it in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from cli import screen
from local import orphans
from local.fleet import Fleet, NodeView
from local.home import Home, configured_settings
from shared import permissions
from shared.errors import Outage, ScenefleetError
from shared.exit_status import ExitStatus
from shared.settings import child_environment, get_settings

DETACH_LIMIT_S = 600.0
DOWN_LIMIT_S = 240.0
WATCH_S = 1.0


class Interrupted(BaseException):
    """A signal asked us to stop; carries its number."""

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


def run_foreground() -> int:
    """Run until a signal comes or the process runner ends; returns the exit status."""
    console = screen.make_console(stderr=True)
    permissions.keep_private()
    fleet = Fleet(configured_settings())
    signals = Signals()
    status = 0
    problem: ScenefleetError | None = None
    try:
        fleet.start(lambda line: console.print(f"[dim]{escape(line)}[/dim]"))
        views = show_start(console, fleet)
        _show_ready(console, fleet, views)
        _watch(console, fleet, views)
    except Interrupted as stop:
        status = ExitStatus.INTERRUPTED if stop.number == signal.SIGINT else 0
    except ScenefleetError as error:
        problem = error
    signals.begin_stop()
    if fleet.home.owned:
        console.print("[dim]stopping nodes, then services (Ctrl-C again: at once)[/dim]")
        _stop(fleet, signals)
        console.print("[dim]stopped, nothing left running[/dim]")
    if problem is not None:
        raise problem
    return status


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


def node_table(views: list[NodeView]) -> Table:
    """The nodes as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("node", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if any(view.devices for view in views):
        table.add_column("GPU", overflow="fold")
    table.add_column("model", overflow="fold")
    table.add_column("", overflow="fold")
    for view in views:
        gpus = [", ".join(view.devices)] if len(table.columns) == 5 else []
        table.add_row(
            view.name, screen.styled(view.state), *gpus, ", ".join(view.models), escape(view.detail)
        )
    return table


def show_start(console: Console, fleet: Fleet) -> list[NodeView]:
    """Show the nodes until each is ready or can't become so."""
    if not console.is_terminal:
        told: dict[str, str] = {}

        def tell(views: list[NodeView]) -> None:
            for view in views:
                if told.get(view.name) != view.state:
                    told[view.name] = view.state
                    console.print(_line(view))

        return fleet.wait_until_settled(tell, time.sleep)
    with Live(console=console, refresh_per_second=8) as live:
        return fleet.wait_until_settled(lambda views: live.update(node_table(views)), time.sleep)


def _line(view: NodeView) -> str:
    detail = f": {escape(view.detail)}" if view.detail and view.state not in ("starting", "loading") else ""
    return f"{view.name} {screen.styled(view.state)}{detail}"


def _show_ready(console: Console, fleet: Fleet, views: list[NodeView]) -> None:
    down = [view.name for view in views if view.state != "ready"]
    home = fleet.home.root
    lines = []
    if down:
        lines.append(
            f"[red]{', '.join(down)} can't work[/red]: the lines above say why, logs are in {escape(str(home))}/logs"
        )
    else:
        lines.append(f"[green]ready[/green], {len(views)} nodes; data and logs in {escape(str(home))}")
    lines += [
        "",
        "in another terminal:",
        "  scenefleet index VIDEO.mp4       index a video and watch it",
        '  scenefleet search "some words"   find the scenes in which they are spoken',
        "  scenefleet doctor                if something is wrong",
        "",
        "Ctrl-C stops everything; what is in work continues at the next `up`",
    ]
    if fleet.settings.home != load_default_home():
        lines.insert(3, f"  export SCENEFLEET_HOME={escape(_quoted(str(home)))}")
    console.print(Panel("\n".join(lines), expand=False, border_style="green" if not down else "red"))
    fleet.home.write_run({**fleet.home.read_run(), "settled": "partly" if down else "ready"})


def load_default_home() -> object:
    """The home folder a shell without SCENEFLEET_HOME would use."""
    from pathlib import Path

    from shared.settings import Settings

    return Path(Settings.model_fields["home"].default).expanduser().absolute()


def _quoted(value: str) -> str:
    import shlex

    return shlex.quote(value)


def _watch(console: Console, fleet: Fleet, views: list[NodeView]) -> None:
    """Stay, and say when a node goes or comes back."""
    states = {view.name: view.state for view in views}
    pids = {view.name: view.pid for view in views}
    services = dict(fleet.services())
    while True:
        time.sleep(WATCH_S)
        for view in fleet.view():
            replaced = view.pid and pids[view.name] and view.pid != pids[view.name]
            if replaced and view.state in ("starting", "loading"):
                console.print(f"{view.name} [yellow]died, started again[/yellow]")
            elif view.state != states[view.name] and view.state not in ("starting", "loading"):
                console.print(_line(view))
            states[view.name] = view.state
            pids[view.name] = view.pid or pids[view.name]
        for name, runs in fleet.services():
            if runs != services[name]:
                services[name] = runs
                console.print(f"{name} {'[green]runs again[/green]' if runs else '[red]is down[/red]'}")


def run_detached() -> int:
    """Start ``up`` behind this terminal and return when its nodes are ready; 1 when some can't be."""
    permissions.keep_private()
    settings = get_settings()
    home = Home(settings)
    console = screen.make_console(stderr=True)
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
        with console.status("starting"):
            while not (settled := _settled(home, process.pid)):
                if process.poll() is not None:
                    raise Outage(f"`up` ended: {_last_line(log)} (log: {log})")
                if time.monotonic() > deadline:
                    raise Outage(f"the nodes are not ready after {DETACH_LIMIT_S:g} s: read {log}")
                time.sleep(0.2)
    except BaseException:
        # Nothing half-started stays behind.
        if process.poll() is None:
            process.terminate()
            process.wait()
        raise
    console.print(
        f"running, process {process.pid}; log {log}; stop it with `scenefleet down`", soft_wrap=True
    )
    if settled != "ready":
        raise Outage(f"not every node is ready: read {log}")
    return 0


def _settled(home: Home, pid: int) -> str | None:
    """How the start of that process ended; None while it has not. A killed `up` may have left another's answer."""
    run = home.read_run()
    return run.get("settled") if run.get("pid") == pid else None


def _last_line(path: os.PathLike[str]) -> str:
    from pathlib import Path

    lines = Path(path).read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("scenefleet: ") if lines else "it wrote nothing"


def run_down() -> int:
    """Stop the ``up`` of this home folder, or what a killed one left; returns the exit status."""
    home = Home(get_settings())
    console = screen.make_console(stderr=True)
    pid = home.owner_pid()
    if not home.is_locked() or pid is None:
        if home.root.is_dir() and (left := orphans.stop(home)):
            home.remove_run()
            console.print(
                f"stopped {left} processes that a killed `up` had left in {home.root}", soft_wrap=True
            )
            return 0
        home.remove_run()
        console.print(f"nothing runs in {home.root}", soft_wrap=True)
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_LIMIT_S
    with console.status("stopping nodes, then services"):
        while home.is_locked():
            if time.monotonic() > deadline:
                raise Outage(
                    f"process {pid} did not stop in {DOWN_LIMIT_S:g} s: read {home.logs / 'supervisor.log'}"
                )
            time.sleep(0.2)
    console.print("stopped, nothing left running")
    return 0
