"""``scenefleet doctor|usage|settings``: options and help; what a command does is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Json

doctor_app = typer.Typer()


@doctor_app.command()
def doctor(json_: Json = False) -> int:
    """Check everything the fleet depends on, with advice; exit 1 if something essential is broken."""
    from cli.doctor import run as command

    return command.run(as_json=json_)


@doctor_app.command()
def usage(
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Maximum number of rows, the largest first.")
    ] = 50,
    json_: Json = False,
) -> None:
    """Show the recent device time of users, by queue; it decides whose job is next."""
    from cli.doctor import usage as command

    command.run(limit, as_json=json_)


@doctor_app.command()
def settings(json_: Json = False) -> None:
    """Show every setting: its environment variable, its value here, what it does."""
    from cli.doctor import settings_table

    settings_table.run(as_json=json_)
