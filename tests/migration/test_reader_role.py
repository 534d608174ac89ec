"""Who may make the role that requests are read as: a server whose administrator is somebody else, as managed ones are."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from alembic import command
from sqlalchemy import insert, text

from cli.doctor import service_checks
from cli.doctor.findings import Finding
from db import row_security, schema
from db.engine import get_engine, make_engine, reading, reading_as, set_engine
from db.tables import Video
from shared.settings import get_settings
from tests.support.fleet import run_to_end
from tests.support.services import PostgresServer
from tests.support.threads import at_once

_names = itertools.count(1)
ROLE = row_security.ROLE
HandOut = Callable[..., str]
Use = Callable[[str], None]


@pytest.fixture
def hand_out(server: PostgresServer) -> Iterator[HandOut]:
    """Make a database with an owner of the same name who is no superuser; gives its URL. The role is not there yet."""
    made: list[str] = []

    def make(may: str = "", *, owner: str | None = None) -> str:
        name = f"managed{next(_names)}"
        if owner is None:
            server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'owner' {may}")
        server.execute(f"CREATE DATABASE {name} OWNER {owner or name}")
        server.execute("CREATE EXTENSION vector", name)
        made.append(name)
        return f"postgresql+psycopg://{owner or name}:owner@127.0.0.1:{server.port}/{name}"

    server.execute(f"DROP ROLE IF EXISTS {ROLE}")
    yield make
    for name in made:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    server.execute(f"DROP ROLE IF EXISTS {ROLE}")
    for name in made:
        server.execute(f"DROP ROLE IF EXISTS {name}")


@pytest.fixture
def use(hand_out: HandOut, monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Let this process's sessions and settings be those of a database."""
    engines = []

    def use(url: str) -> None:
        monkeypatch.setenv("POSTGRES_URL", url.replace("+psycopg", ""))
        get_settings.cache_clear()
        engines.append(make_engine(url))
        set_engine(engines[-1])

    yield use
    set_engine(None)
    get_settings.cache_clear()
    for engine in engines:
        engine.dispose()


def name_in(url: str) -> str:
    """The database, and its owner."""
    return url.rpartition("/")[2]


def tenancy() -> Finding:
    found = service_checks.check_postgres(get_settings())
    return next(finding for finding in found if finding.check == "tenancy")


def fill() -> None:
    users = [
        {"video_id": user, "user_id": user, "external_id": user, "storage_key": "k"} for user in ("u", "u1")
    ]
    with get_engine().begin() as connection:
        connection.execute(insert(Video), users)


def filled(use: Use, url: str) -> str:
    """Migrate a database, use it and fill it; gives its URL."""
    schema.upgrade(url=url)
    use(url)
    fill()
    return url


def seen(user: str) -> set[str]:
    with reading_as(user) as session:
        return set(session.execute(text("SELECT user_id FROM videos")).scalars())


def test_an_owner_who_may_make_roles_needs_nobody(hand_out: HandOut, use: Use) -> None:
    url = filled(use, hand_out("CREATEROLE"))
    assert seen("u") == {"u"} and seen("u1") == {"u1"} and seen("u2") == set()
    found = tenancy()
    assert found.state == "ok" and f"requests are read as {ROLE}" in found.detail
    schema.downgrade("base", url=url)
    schema.upgrade(url=url)
    fill()
    assert seen("u") == {"u"}


def test_alembic_alone_lets_requests_read_the_newest_tables(hand_out: HandOut, use: Use) -> None:
    url = hand_out("CREATEROLE")
    command.upgrade(schema.migration_config(url), "head")
    use(url)
    assert tenancy().state == "ok", tenancy().detail


def test_an_owner_who_may_not_goes_on_without_it_and_is_told(
    server: PostgresServer, hand_out: HandOut, use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    url = filled(use, hand_out())
    found = tenancy()
    assert found.state == "warn" and f"the server has no role {ROLE}" in found.detail
    assert seen("u") == seen("u") == {"u", "u1"}, "the owner's eyes: only the queries keep users apart"
    assert caplog.text.count("requests are read as the owner of the tables") == 1
    with reading_as("u") as session:
        assert session.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
    # What doctor advises, as it says it.
    server.execute(f"CREATE ROLE {ROLE} NOLOGIN")
    found = tenancy()
    assert found.state == "fail" and "requests may not read videos" in found.detail
    schema.upgrade(url=url)
    found = tenancy()
    assert found.state == "warn" and f"{name_in(url)} may not act as {ROLE}" in found.detail
    grant = f'GRANT {ROLE} TO "{name_in(url)}"'
    assert grant in found.advice
    server.execute(grant)
    schema.upgrade(url=url)
    assert tenancy().state == "ok"
    use(url)
    assert seen("u") == {"u"}


def test_a_role_that_goes_away_while_in_use_is_an_error_and_not_an_open_door(
    server: PostgresServer, hand_out: HandOut, use: Use
) -> None:
    url = filled(use, hand_out("CREATEROLE"))
    assert seen("u") == {"u"}
    server.execute(f"DROP OWNED BY {ROLE}", name_in(url))
    with pytest.raises(Exception, match="permission denied for table videos"):
        seen("u")
    assert tenancy().state == "fail" and tenancy().advice == "scenefleet db upgrade"
    server.execute(f"DROP ROLE {ROLE}")
    with pytest.raises(Exception, match=f'role "{ROLE}" does not exist'):
        seen("u")
    schema.upgrade(url=url)
    assert seen("u") == {"u"}, "as after a dump was restored on another server"


def test_a_user_who_does_not_own_the_tables_is_told(
    server: PostgresServer, hand_out: HandOut, use: Use
) -> None:
    url, other = hand_out("CREATEROLE"), hand_out()
    filled(use, url)
    owner, stranger = name_in(url), name_in(other)
    server.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {stranger}", owner)
    use(f"{other.rpartition('/')[0]}/{owner}")
    with reading() as session:
        assert session.execute(text("SELECT count(*) FROM videos")).scalar_one() == 0
    found = tenancy()
    assert found.state == "fail" and f"{stranger} does not own the tables" in found.detail
    server.execute(f"DROP OWNED BY {stranger}", owner)


def test_databases_of_one_server_may_be_migrated_at_once_by_several_machines(hand_out: HandOut) -> None:
    """Roles are the server's, and locks are not: both the first time, and when there is nothing to migrate."""
    first = hand_out("CREATEROLE")
    urls = [first, hand_out(owner=name_in(first))]
    code = "import sys; from db import schema; schema.upgrade(url=sys.argv[1])"
    for _ in range(2):
        upgrades = [partial(run_to_end, [sys.executable, "-c", code, url], timeout_s=120) for url in urls * 2]
        ended = at_once(upgrades)
        assert [done.returncode for done in ended] == [0] * 4, ended
        for url in urls:
            assert schema.current_revision(url) == schema.head_revision()
            with make_engine(url, pooled=False).connect() as connection:
                gaps = row_security.find_gaps(connection)
            assert not (gaps.role or gaps.open or gaps.shut or gaps.hidden), gaps
