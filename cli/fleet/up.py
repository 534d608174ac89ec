"""``scenefleet up`` and ``down``: what they show of the fleet while `local.up` runs it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from cli import screen
from local import up
from local.fleet import Fleet, NodeView
from local.home import Home
from shared.errors import Outage
from shared.settings import Settings, get_settings


class ConsoleDisplay:
    """Shows `local.up.run` on a console: a live table of nodes on a terminal, a line per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        self._console.print(f"[dim]{escape(line)}[/dim]")

    @contextmanager
    def watch_start(self) -> Iterator[Callable[[list[NodeView]], None]]:
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=8) as live:
                yield lambda views: live.update(node_table(views))
            return
        told: dict[str, str] = {}

        def tell(views: list[NodeView]) -> None:
            for view in views:
                if told.get(view.name) != view.state:
                    told[view.name] = view.state
                    self._console.print(_line(view))

        yield tell

    def started(self, fleet: Fleet, views: list[NodeView]) -> None:
        down = ", ".join(view.name for view in views if view.state != "ready")
        home = escape(str(fleet.home.root))
        state = f"[green]ready[/green], {len(views)} nodes; data and logs in {home}"
        if down:
            state = f"[red]{down} can't work[/red]: the lines above say why, logs are in {home}/logs"
        default_home = Path(Settings.model_fields["home"].default).expanduser().absolute()
        lines = [
            state,
            *(["", f"open [bold]{escape(fleet.api_url)}[/bold]  the page and the HTTP API"] if fleet.api_url else []),
            "",
            "in another terminal:",
            *([f"  export SCENEFLEET_HOME={escape(shlex.quote(str(fleet.home.root)))}"]
              if fleet.settings.home != default_home else []),
            "  scenefleet index VIDEO.mp4       index a video and watch it",
            '  scenefleet search "some words"   find the scenes in which they are spoken',
            "  scenefleet doctor                if something is wrong",
            "",
            "Ctrl-C stops everything; what is in work continues at the next `up`",
        ]  # fmt: skip
        self._console.print(Panel("\n".join(lines), expand=False, border_style="red" if down else "green"))

    def node_changed(self, view: NodeView, *, replaced: bool) -> None:
        self._console.print(f"{view.name} [yellow]died, started again[/yellow]" if replaced else _line(view))

    def service_changed(self, name: str, *, runs: bool) -> None:
        self._console.print(f"{name} {'[green]runs again[/green]' if runs else '[red]is down[/red]'}")


def _line(view: NodeView) -> str:
    detail = f": {escape(view.detail)}" if view.detail and view.state not in up.STARTING else ""
    return f"{view.name} {screen.styled(view.state)}{detail}"


def node_table(views: list[NodeView]) -> Table:
    """The nodes as a table."""
    shows_gpus = any(view.devices for view in views)
    table = screen.make_table("node", "state", *(["~GPU"] if shows_gpus else []), "~model", "~")
    for view in views:
        gpus = [", ".join(view.devices)] if shows_gpus else []
        models, detail = ", ".join(view.models), escape(view.detail)
        table.add_row(view.name, screen.styled(view.state), *gpus, models, detail)
    return table


def run_foreground() -> int:
    """Run until a signal comes or the process runner ends; returns the exit status."""
    return up.run(ConsoleDisplay(screen.make_console(stderr=True)))


def run_detached() -> int:
    """Start ``up`` behind this terminal and return when its nodes are ready."""
    with screen.make_console(stderr=True).status("starting"):
        pid, log, ready = up.start_behind()
    screen.tell(f"running, process {pid}; log {log}; stop it with `scenefleet down`")
    if address := Home(get_settings()).read_run().get("api_url"):
        screen.tell(f"open {address}")
    if not ready:
        raise Outage(f"not every node is ready: read {log}")
    return 0


def run_down() -> int:
    """Stop the ``up`` of this home folder, or what a killed one left; returns the exit status."""
    home = Home(get_settings())
    with screen.make_console(stderr=True).status("stopping nodes, then services"):
        left = up.down(home)
    leftover = f"stopped {left} processes that a killed `up` had left" if left else "nothing runs"
    screen.tell("stopped, nothing left running" if left is None else f"{leftover} in {home.root}")
    return 0
