"""Options that many commands have."""

from __future__ import annotations

from typing import Annotated

import typer

User = Annotated[
    str | None, typer.Option("--user", help="Act for this user. Default: SCENEFLEET_USER, or `local`.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; fields: docs/cli.md.")]
Sure = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
