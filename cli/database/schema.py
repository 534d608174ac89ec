"""``scenefleet db``: the schema's revision."""

from __future__ import annotations

from collections.abc import Callable

from cli import screen
from db import schema
from shared.errors import InvalidRequest
from shared.settings import get_settings


def bootstrap(admin_url: str, rename_admin: str) -> None:
    """Create what needs an administrator: role, database, extension."""
    from db import bootstrap as administration

    settings = get_settings()
    admin_url = admin_url or settings.postgres_admin_url.get_secret_value()
    if not admin_url:
        raise InvalidRequest(
            "no administrator is named: set POSTGRES_ADMIN_URL to postgresql://user:password@host:5432/postgres, "
            "a superuser of the server of POSTGRES_URL"
        )
    application = administration.Application.from_url(settings.require("postgres_url"))
    if rename_admin:
        admin_url = administration.rename_role(admin_url, rename_admin)
    administration.bootstrap(admin_url, application)
    belongs = f"belongs to role {application.role}, which owns nothing else"
    screen.tell(f"database {application.database} {belongs}")


def upgrade(revision: str) -> None:
    """Migrate forward and show the revision."""
    _migrate(schema.upgrade, revision)


def downgrade(revision: str, *, sure: bool) -> None:
    """Migrate back, after asking."""
    if not sure:
        screen.ask(f"Take the schema back to {revision}? Data that it can't hold is lost.")
    _migrate(schema.downgrade, revision)


def _migrate(move: Callable[[str], None], revision: str) -> None:
    from alembic.util.exc import CommandError

    try:
        move(revision)
    except CommandError as error:
        reason = f"revision {revision!r} is not known ({error})"
        raise InvalidRequest(f"{reason}: name one of db/migrations") from None
    screen.tell(f"database at {schema.current_revision() or 'base'}")


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
