"""What the commands of ``scenefleet keys`` do."""

from __future__ import annotations

import sys

from rich.markup import escape
from rich.table import Table

from cli import screen
from cli.connection import connect
from shared.contracts import KeyList, KeyView


def add(name: str, *, operator: bool, as_json: bool, user: str | None) -> None:
    """Make a key; only its text goes to stdout, so that a script can keep it."""
    client, owner = connect(user)
    text, stored = client.create_key(owner, operator=operator, name=name)
    if as_json:
        screen.write_json({"key": text, **stored.model_dump(mode="json")})
        return
    screen.tell(
        f"key {stored.key_id} of user {owner}{' (operator)' if operator else ''}; it can't be shown again:"
    )
    sys.stdout.write(text + "\n")


def show_list(*, as_json: bool, user: str | None) -> None:
    """List the keys of one user or of all."""
    client, _ = connect(user)
    found = client.keys(user)
    nothing = "there are no keys yet: `scenefleet keys add --user USER`"
    screen.answer(found, lambda: key_table(found) if found.keys else nothing, as_json=as_json)


def end(key_id: str, *, as_json: bool) -> None:
    """End a key."""
    client, _ = connect()
    ended = client.end_key(key_id)
    screen.answer(ended, lambda: f"key {ended.key_id} of user {ended.user_id} has ended", as_json=as_json)


def key_table(found: KeyList) -> Table:
    """Keys as a table."""
    table = screen.make_table("key", "user", "rights", "created", "ended", "~name")
    for key in found.keys:
        table.add_row(key.key_id, key.user_id, _rights(key), *_times(key), escape(key.name))
    return table


def _rights(key: KeyView) -> str:
    return "operator" if key.operator else "user"


def _times(key: KeyView) -> tuple[str, str]:
    return screen.minute(key.created_at), screen.minute(key.ended_at) if key.ended_at else ""
