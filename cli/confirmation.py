"""Ask before something is lost."""

from __future__ import annotations

import sys

from shared.errors import InvalidRequest


def ask(question: str) -> None:
    """Have the user confirm.

    Raises:
        InvalidRequest: they did not, or there is nobody to ask.
    """
    import typer

    if not sys.stdin.isatty():
        raise InvalidRequest("nobody is there to confirm: pass --yes")
    try:
        sure = typer.confirm(question, err=True)
    except typer.Abort:
        # Ctrl-C, or the end of the input.
        sys.stderr.write("\n")
        sure = False
    if not sure:
        raise InvalidRequest("not confirmed, nothing was changed")
