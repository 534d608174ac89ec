"""``scenefleet settings``: every setting with the value it has here."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from cli import screen
from shared.settings import Settings, get_settings, hide_password


def run(*, as_json: bool) -> None:
    """Show the settings; passwords are never shown."""
    settings = get_settings()
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = (
            hide_password(value)
            if name.endswith("_url") and value
            else str(value if value is not None else "")
        )
        rows.append(
            {
                "variable": (field.alias or name).upper(),
                "value": shown,
                "default": value == field.default,
                "description": field.description or "",
            }
        )
    if as_json:
        screen.write_json({"settings": rows})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold", ratio=2)
    table.add_column("what it does", overflow="fold", ratio=3)
    for row in rows:
        value = escape(str(row["value"]))
        table.add_row(
            str(row["variable"]),
            value if row["default"] else f"[bold]{value}[/bold]",
            escape(str(row["description"])),
        )
    screen.make_console().print(table)
