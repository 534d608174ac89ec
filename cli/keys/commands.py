"""``scenefleet keys``: its commands, options and help; what a command does is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Json, User

keys_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""
    Keys for callers of the HTTP API, each of one user; the API asks for one where API_KEYS=true is set.

      [bold]scenefleet keys add --user ann --name laptop[/bold]
      [bold]scenefleet keys list[/bold]
      [bold]scenefleet keys end 3f2a9c01b7de[/bold]
    """,
)


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    operator: Annotated[
        bool, typer.Option("--operator", help="May see and change models, nodes, queues.")
    ] = False,
    json_: Json = False,
    user: User = None,
) -> None:
    """Make a key and print it; it can't be shown again.

    [bold]scenefleet keys add --user ann --name laptop[/bold]
    [bold]scenefleet keys add --user ops --operator[/bold]
    """
    from cli.keys import keys

    keys.add(name, operator=operator, as_json=json_, user=user)


@keys_app.command("list")
def keys_list(
    json_: Json = False,
    user: Annotated[str | None, typer.Option("--user", help="Only this user's keys.")] = None,
) -> None:
    """List the keys and whose they are, also those that have ended."""
    from cli.keys import keys

    keys.show_list(as_json=json_, user=user)


@keys_app.command("end")
def keys_end(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")],
    json_: Json = False,
) -> None:
    """End a key: within 30 seconds no API accepts it."""
    from cli.keys import keys

    keys.end(key_id, as_json=json_)
