"""``scenefleet usage``: device time by user and queue, as claims see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cli import screen

if TYPE_CHECKING:
    from db.ledger.usage import Usage


def run(limit: int, *, as_json: bool) -> None:
    """Show the users with the most recent device time."""
    from db.engine import reading
    from db.ledger.usage import read

    with reading() as session:
        rows = read(session, limit)
    screen.answer([asdict(row) for row in rows], lambda: _table(rows), as_json=as_json)


def _table(rows: Sequence[Usage]) -> Table:
    table = screen.make_table("queue", "~user", ">recent s", ">total s", ">queued", ">running")
    for row in rows:
        whose = escape(row.account) or "[dim]the fleet itself[/dim]"
        times = (f"{row.recent_s:.1f}", f"{row.total_s:.1f}")
        table.add_row(row.queue, whose, *times, str(row.queued), str(row.running))
    return table
