"""``scenefleet db``: its commands, options and help; what a command does is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Json, Sure

db_app = typer.Typer(no_args_is_help=True, help="The database's schema: upgrade it, see where it stands.")


@db_app.command("bootstrap")
def db_bootstrap(
    admin_url: Annotated[
        str,
        typer.Option(
            help="The Postgres of POSTGRES_URL for an administrator; default POSTGRES_ADMIN_URL, which no process list shows."
        ),
    ] = "",
    rename_admin: Annotated[
        str,
        typer.Option(
            help="First give the administrator this name: for a server whose first superuser is the role of POSTGRES_URL."
        ),
    ] = "",
) -> None:
    """Create the role and the database of POSTGRES_URL and the extension vector; safe to repeat."""
    from cli.database import schema

    schema.bootstrap(admin_url, rename_admin)


@db_app.command("upgrade")
def db_upgrade(
    revision: Annotated[
        str, typer.Argument(help="Revision to go to; `PLUGIN@REV`: of that plug-in alone.")
    ] = "head",
) -> None:
    """Bring the database to this version's schema; safe to repeat, from several machines at once."""
    from cli.database import schema

    schema.upgrade(revision)


@db_app.command("downgrade")
def db_downgrade(
    revision: Annotated[
        str,
        typer.Argument(
            help="Revision to go back to; `base`: drop everything; `PLUGIN@base`: what that plug-in has."
        ),
    ],
    yes: Sure = False,
) -> None:
    """Take the schema back to an older revision; data that it can't hold is lost."""
    from cli.database import schema

    schema.downgrade(revision, sure=yes)


@db_app.command("current")
def db_current(json_: Json = False) -> int:
    """Show the database's revision; exit 1 if it is not this version's."""
    from cli.database import schema

    return schema.current(as_json=json_)


@db_app.command("purge")
def db_purge(
    every_table: Annotated[
        bool,
        typer.Option("--all", help="Every table, not only those about people: vectors' indexes take long."),
    ] = False,
    yes: Sure = False,
    json_: Json = False,
) -> int:
    """Remove what was erased from the servers' files, too: rewrite tables and Redis' append-only file.

    Example: scenefleet db purge --yes
    """
    from cli.database import purge

    return purge.run(every_table=every_table, sure=yes, as_json=json_)
