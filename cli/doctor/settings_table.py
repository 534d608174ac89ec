"""``scenefleet settings``: every setting with the value it has here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from cli import screen
from shared.settings import Settings, get_settings, hide_password


def run(*, as_json: bool) -> None:
    """Show the settings; passwords are never shown."""
    settings = get_settings()
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "" if value is None else str(value)
        rows.append(
            {
                "variable": (field.alias or name).upper(),
                "value": hide_password(shown) if name.endswith("_url") else shown,
                "default": value == field.default,
                "description": field.description or "",
            }
        )
    screen.answer({"settings": rows}, lambda: _table(rows), as_json=as_json)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = screen.make_table(
        "variable",
        Column("value", overflow="fold", ratio=2),
        Column("what it does", overflow="fold", ratio=3),
    )
    for row in rows:
        value = escape(row["value"])
        shown = value if row["default"] else f"[bold]{value}[/bold]"
        table.add_row(row["variable"], shown, escape(row["description"]))
    return table
