"""``scenefleet usage``: device time by user and queue, as claims see it."""

from __future__ import annotations

from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from cli import screen


def run(limit: int, *, as_json: bool) -> None:
    """Show who has used the queues' devices most lately.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    from db.engine import reading
    from db.ledger.usage import read

    with reading() as session:
        rows = read(session, limit)
    if as_json:
        screen.write_json([asdict(row) for row in rows])
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("queue", no_wrap=True)
    table.add_column("user", overflow="fold")
    for name in ("recent s", "total s", "queued", "running"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.queue,
            escape(row.account) or "[dim]the fleet itself[/dim]",
            f"{row.recent_s:.1f}",
            f"{row.total_s:.1f}",
            str(row.queued),
            str(row.running),
        )
    screen.make_console().print(table)
