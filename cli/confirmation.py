"""Ask before data is lost."""

from __future__ import annotations

import sys

from shared.errors import InvalidRequest


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
