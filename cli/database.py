"""``scenefleet db``: the schema's revision."""

from __future__ import annotations

from cli import screen
from cli.confirmation import ask
from db import schema
from shared.errors import InvalidRequest


def upgrade(revision: str) -> None:
    """Migrate forward and say where the database stands now."""
    _migrate(schema.upgrade, revision)


def downgrade(revision: str, *, sure: bool) -> None:
    """Migrate back.

    Raises:
        InvalidRequest: not confirmed.
    """
    if not sure:
        ask(f"Take the schema back to {revision}? Data that it can't hold is lost.")
    _migrate(schema.downgrade, revision)


def _migrate(move: object, revision: str) -> None:
    from alembic.util.exc import CommandError

    assert callable(move)
    try:
        move(revision)
    except CommandError as error:
        raise InvalidRequest(
            f"revision {revision!r} is not known ({error}): name one of db/migrations"
        ) from None
    screen.make_console(stderr=True).print(f"database at {schema.current_revision() or 'base'}")


def current(*, as_json: bool) -> int:
    """Show the database's revision; returns 1 when it is not the newest."""
    have, want = schema.current_revision(), schema.head_revision()
    if as_json:
        screen.write_json({"current": have, "head": want, "up_to_date": have == want})
    elif have == want:
        print(have)
    else:
        print(f"{have or 'empty'}, this version wants {want}: run `scenefleet db upgrade`")
    return 0 if have == want else 1
