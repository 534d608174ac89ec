"""``scenefleet scale``: which families need more nodes, and why."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from cli import screen
from cli.connection import connect
from shared.contracts.fleet import FamilyView
from shared.scaling import VERDICTS

_STYLES = ("green", "yellow", "red")


def run(*, as_json: bool) -> None:
    """Print the advice for every family that has a node or a waiting job.

    Raises:
        BrokerUnavailable, RequestTimeout: the fleet does not answer.
    """
    client, _ = connect()
    families = client.fleet().families
    screen.answer(list(families), lambda: _table(families), as_json=as_json)


def _table(families: tuple[FamilyView, ...]) -> Table:
    table = screen.make_table(
        "family", ">nodes", ">concurrent", ">mean ms", ">p95 ms", ">queue", ">jobs", "advice", "~reason"
    )
    for view in families:
        table.add_row(
            view.family,
            f"{view.ready}/{view.nodes}",
            f"{view.concurrent:g}",
            *((f"{view.mean_ms:.0f}", f"{view.p95_ms:.0f}") if view.requests else ("", "")),
            f"{view.waiting:g}",
            str(view.jobs_waiting),
            f"[{_STYLES[view.level]}]{VERDICTS[view.level]}[/]",
            escape(view.reason),
        )
    return table
