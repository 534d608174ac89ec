"""The ``scenefleet`` command, put together from its groups. What a command does is imported when it runs, so help is quick."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn

import typer

from cli.api.commands import api_app
from cli.database.commands import db_app
from cli.doctor.commands import doctor_app
from cli.fleet.commands import fleet_app
from cli.keys.commands import keys_app
from cli.models.commands import models_app
from cli.people.commands import people_app
from cli.search.commands import search_app
from cli.videos.commands import videos_app
from cli.webhooks.commands import webhooks_app
from shared.exit_status import ExitStatus

app = typer.Typer(
    name="scenefleet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
    Turn videos into searchable scenes.

    Start a fleet on this machine, index a video, search it:

      [bold]scenefleet up[/bold]
      [bold]scenefleet index film.mp4[/bold]
      [bold]scenefleet search "a hot drink"[/bold]
    """,
)
#: Panel of the help -> its groups; one without a name adds its commands to the top level.
GROUPS: dict[str, list[tuple[typer.Typer, str | None]]] = {
    "Run": [
        (fleet_app, None),
        (api_app, None),
        (doctor_app, None),
        (db_app, "db"),
        (keys_app, "keys"),
        (models_app, "models"),
    ],
    "Videos": [
        (videos_app, None),
        (search_app, None),
        (people_app, "people"),
        (webhooks_app, "webhooks"),
    ],
}
for panel, groups in GROUPS.items():
    for group, name in groups:
        for command in group.registered_commands if name is None else ():
            command.rich_help_panel = panel
        app.add_typer(group, name=name, rich_help_panel=panel)


def main() -> NoReturn:
    """Run the command; every foreseen error is one sentence on stderr."""
    # The imports, most of a quick command's time, make objects that stay: the collector need not look at them again and again.
    gc.set_threshold(50_000, 20, 100)
    try:
        status = app(standalone_mode=False)
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence; each kind is told apart below
        status = _explain(error)
    # Nor when the process ends, which would take as long as a third of the imports.
    gc.freeze()
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: Exception) -> int:
    """Print what went wrong; returns the exit status."""
    from shared.errors import ScenefleetError

    if isinstance(error, ScenefleetError):
        return _fail(str(error), ExitStatus.FAILED)
    if isinstance(error, BrokenPipeError):
        # The reader of our output has closed the pipe (`scenefleet scenes x | head`).
        sys.stderr.close()
        return ExitStatus.BROKEN_PIPE
    # Typer's usage errors; their class moved between its versions.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _fail(format_message().rstrip(".") + hint, ExitStatus.USAGE)
    if isinstance(error, ModuleNotFoundError):
        return _fail(
            f'{error.name} is not installed: run `make install` in the checkout, or `pip install ".[lite,embedded]"`',
            ExitStatus.FAILED,
        )
    if isinstance(error, OSError):
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", ExitStatus.FAILED)
    from shared.settings import load_settings

    if load_settings().log_level == "DEBUG":
        raise error
    return _fail(
        f"internal error, {type(error).__name__}: {error}; SCENEFLEET_LOG_LEVEL=DEBUG shows where, please report it",
        ExitStatus.INTERNAL_ERROR,
    )


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"scenefleet: {message}\n")
    return status
