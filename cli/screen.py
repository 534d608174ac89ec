"""The terminal: answers on stdout, messages and questions on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table

from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.progress import BarColumn

#: A pipe has no width: tables then get this many columns.
PIPE_COLUMNS = 120
#: No table is wider.
WIDEST_COLUMNS = 10_000

_STATES = {
    "green": "indexed, done, ready, ok, reused, fetched, pulled, supplied, in package, in place",
    "yellow": "partial, warn, restarting, missing, no checksum",
    "cyan": "processing, running, loading",
    "red": "failed, stopped, fail, wrong, lost, refused",
    "magenta": "cancelled",
}
STATE_STYLES = {state: style for style, states in _STATES.items() for state in states.split(", ")}


def make_bar(console: Console) -> BarColumn:
    """The bar of a progress display, shorter on a narrow terminal."""
    from rich.progress import BarColumn

    width = 24 if console.width >= 100 else 12
    column = Column(min_width=width)
    return BarColumn(width, complete_style="cyan", finished_style="green", table_column=column)


def make_console(*, stderr: bool = False) -> Console:
    """A console for answers (stdout) or for messages (stderr)."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def print_whole(console: Console, table: Table) -> None:
    """Print a table; no cell is cut unless a terminal sets the width."""
    if not console.file.isatty():
        wide = console.options.update(max_width=WIDEST_COLUMNS)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def make_table(*columns: str | Column, title: str | None = None) -> Table:
    """An empty table without lines.

    A column that begins with ``>`` is aligned right; one that begins with ``~`` is folded where the terminal is too
    narrow; the others are never wrapped.
    """
    headers = [_column(column) if isinstance(column, str) else column for column in columns]
    return Table(*headers, title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")


def _column(mark: str) -> Column:
    if mark.startswith("~"):
        return Column(mark[1:], overflow="fold")
    return Column(mark.removeprefix(">"), justify="right" if mark.startswith(">") else "left", no_wrap=True)


def answer(
    document: BaseModel | dict[str, Any] | list[Any], render: Callable[[], RenderableType], *, as_json: bool
) -> None:
    """Write a command's answer to stdout: the document as JSON, or what ``render`` makes of it for people."""
    if as_json:
        write_json(document)
    else:
        make_console().print(render())


def tell(message: RenderableType, *, style: str | None = None) -> None:
    """Write a message to stderr; to a pipe as one line."""
    make_console(stderr=True).print(message, style=style, soft_wrap=True)


def ask(question: str) -> None:
    """Ask the user to confirm.

    Raises:
        InvalidRequest: they did not, or stdin is not a terminal.
    """
    import typer

    if not sys.stdin.isatty():
        raise InvalidRequest("stdin is not a terminal, so this can't be confirmed: pass --yes")
    try:
        sure = typer.confirm(question, err=True)
    except typer.Abort:
        # Ctrl-C, or the end of the input.
        sys.stderr.write("\n")
        sure = False
    if not sure:
        raise InvalidRequest("not confirmed, nothing was changed")


def write_json(value: BaseModel | dict[str, Any] | list[Any]) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def styled(state: str) -> str:
    """A state in its colour, as Rich markup."""
    style = STATE_STYLES.get(state)
    return f"[{style}]{state}[/{style}]" if style else state


def clock(time_s: float) -> str:
    """Seconds as ``m:ss.s`` or ``h:mm:ss.s``; rounded once, so that 59.97 s is 1:00.0."""
    minutes, tenths = divmod(round(time_s * 10), 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{tenths / 10:04.1f}"
    return f"{hours}:{minutes:02d}:{seconds}" if hours else f"{minutes}:{seconds}"


def minute(time: datetime) -> str:
    """A time of the ledger (UTC) to the minute."""
    return f"{time:%Y-%m-%d %H:%M}"
