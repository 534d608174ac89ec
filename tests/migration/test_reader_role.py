"""Who may make the role that requests are read as: a server whose administrator is somebody else, as managed ones are."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cli.doctor import service_checks
from cli.doctor.findings import Finding
from db import row_security, schema
from db.engine import get_engine, make_engine, reading, reading_as, set_engine
from shared import settings as settings_module
from shared.errors import InvalidRequest
from tests.support.assets import give_up
from tests.support.fleet import ROOT
from tests.support.services import PostgresServer

_names = itertools.count(1)
PASSWORD = "owner"
Use = Callable[[str], None]


class Managed(PostgresServer):
    """A server of this module: roles belong to a whole server, and here the role comes and goes."""

    #: Databases handed out, and their owners of the same names.
    made: list[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    server = Managed(tmp_path_factory.mktemp("managed"))
    try:
        server.start()
    except InvalidRequest as error:
        give_up(str(error))
    # What every server of ours gets at its start, and an administrator elsewhere has not made yet.
    server.execute("DROP DATABASE scenefleet")
    server.execute(f"DROP ROLE scenefleet, {row_security.ROLE}")
    yield server
    server.stop()


@pytest.fixture
def bare(server: Managed) -> Iterator[Managed]:
    """Without the role and the databases of the test before."""
    made = server.made = []
    yield server
    set_engine(None)
    settings_module.get_settings.cache_clear()
    for name in made:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    server.execute(f"DROP ROLE IF EXISTS {row_security.ROLE}")
    for name in made:
        server.execute(f"DROP ROLE {name}")


def hand_out(server: Managed, may: str = "") -> str:
    """A database with an owner of its own who is no superuser; its URL."""
    name = f"managed{next(_names)}"
    server.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {may}")
    server.execute(f"CREATE DATABASE {name} OWNER {name}")
    server.execute("CREATE EXTENSION vector", name)
    server.made.append(name)
    return f"postgresql+psycopg://{name}:{PASSWORD}@127.0.0.1:{server.port}/{name}"


def roles(server: Managed) -> int:
    with make_engine(
        server.url().replace("postgresql://", "postgresql+psycopg://"), pooled=False
    ).connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": row_security.ROLE}).scalar_one())  # fmt: skip


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Let this process's sessions and settings be those of a database."""
    engines = []

    def use(url: str) -> None:
        monkeypatch.setenv("POSTGRES_URL", url.replace("+psycopg", ""))
        settings_module.get_settings.cache_clear()
        engines.append(make_engine(url))
        set_engine(engines[-1])

    yield use
    for engine in engines:
        engine.dispose()


def tenancy() -> Finding:
    (found,) = [
        finding
        for finding in service_checks.check_postgres(settings_module.get_settings())
        if finding.check == "tenancy"
    ]
    return found


def fill() -> None:
    with get_engine().begin() as connection:
        for user in ("u", "u1"):
            connection.execute(
                text(
                    "INSERT INTO videos (video_id, user_id, external_id, storage_key) VALUES (:user, :user, :user, 'k')"
                ),
                {"user": user},
            )


def seen(user: str) -> set[str]:
    with reading_as(user) as session:
        return set(session.execute(text("SELECT user_id FROM videos")).scalars())


def test_an_owner_who_may_make_roles_needs_nobody(bare: Managed, use: Use) -> None:
    url = hand_out(bare, "CREATEROLE")
    schema.upgrade(url=url)
    use(url)
    fill()
    assert roles(bare) == 1 and seen("u") == {"u"} and seen("u1") == {"u1"} and seen("u2") == set()
    found = tenancy()
    assert found.state == "ok" and f"requests are read as {row_security.ROLE}" in found.detail
    schema.downgrade("base", url=url)
    schema.upgrade(url=url)
    fill()
    assert seen("u") == {"u"}


def test_an_owner_who_may_not_goes_on_with_one_wall_and_is_told(
    bare: Managed, use: Use, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    url = hand_out(bare)
    schema.upgrade(url=url)
    use(url)
    fill()
    assert roles(bare) == 0
    found = tenancy()
    assert found.state == "warn" and f"the server has no role {row_security.ROLE}" in found.detail
    assert seen("u") == seen("u") == {"u", "u1"}, "the owner's eyes: only the queries keep users apart"
    assert caplog.text.count("requests are read as the owner of the tables") == 1
    with reading_as("u") as session:
        assert session.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
    # What doctor advises, as it says it.
    bare.execute(f"CREATE ROLE {row_security.ROLE} NOLOGIN")
    found = tenancy()
    user = url.split("//")[1].split(":")[0]
    assert found.state == "fail" and "requests may not read videos" in found.detail
    schema.upgrade(url=url)
    found = tenancy()
    assert found.state == "warn" and f"{user} may not act as {row_security.ROLE}" in found.detail
    assert f'GRANT {row_security.ROLE} TO "{user}"' in found.advice
    bare.execute(f'GRANT {row_security.ROLE} TO "{user}"')
    schema.upgrade(url=url)
    assert tenancy().state == "ok"
    use(url)
    assert seen("u") == {"u"}


def test_a_role_that_goes_away_while_in_use_is_an_error_and_not_an_open_door(
    bare: Managed, use: Use
) -> None:  # fmt: skip
    url = hand_out(bare, "CREATEROLE")
    schema.upgrade(url=url)
    use(url)
    fill()
    assert seen("u") == {"u"}
    user = url.split("//")[1].split(":")[0]
    bare.execute(f"DROP OWNED BY {row_security.ROLE}", user)
    with pytest.raises(Exception, match="permission denied for table videos"):
        seen("u")
    assert tenancy().state == "fail" and tenancy().advice == "scenefleet db upgrade"
    bare.execute(f"DROP ROLE {row_security.ROLE}")
    with pytest.raises(Exception, match=f'role "{row_security.ROLE}" does not exist'):
        seen("u")
    schema.upgrade(url=url)
    assert seen("u") == {"u"}, "as after a dump was restored on another server"


def test_a_user_who_does_not_own_the_tables_is_told(bare: Managed, use: Use) -> None:
    url = hand_out(bare, "CREATEROLE")
    schema.upgrade(url=url)
    use(url)
    fill()
    other = hand_out(bare)
    owner, stranger = (one.split("//")[1].split(":")[0] for one in (url, other))
    bare.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {stranger}", owner)
    use(f"{other.rpartition('/')[0]}/{owner}")
    with reading() as session:
        assert session.execute(text("SELECT count(*) FROM videos")).scalar_one() == 0
    found = tenancy()
    assert found.state == "fail" and f"{stranger} does not own the tables" in found.detail
    bare.execute(f"DROP OWNED BY {stranger}", owner)


def test_databases_of_one_server_may_be_migrated_at_once(bare: Managed) -> None:
    """Roles are the server's, and locks are not: both the first time, and when there is nothing to migrate."""
    url = hand_out(bare, "CREATEROLE")
    owner = url.rpartition("/")[2]
    urls = [url]
    for _ in range(2):
        name = f"{owner}_{next(_names)}"
        bare.execute(f"CREATE DATABASE {name} OWNER {owner}")
        bare.execute("CREATE EXTENSION vector", name)
        urls.append(f"{url.rpartition('/')[0]}/{name}")
    code = "import sys; from db import schema; schema.upgrade(url=sys.argv[1])"
    try:
        for _ in range(2):
            processes = [
                subprocess.Popen(
                    [sys.executable, "-c", code, one],
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for one in urls
                for _ in range(2)
            ]
            outputs = [process.communicate(timeout=120)[0] for process in processes]
            assert [process.returncode for process in processes] == [0] * len(processes), outputs
            for one in urls:
                with make_engine(one, pooled=False).connect() as connection:
                    gaps = row_security.find_gaps(connection)
                assert not (gaps.role or gaps.open or gaps.shut or gaps.hidden), gaps
    finally:
        for one in urls[1:]:
            bare.execute(f"DROP DATABASE {one.rpartition('/')[2]} WITH (FORCE)")


def test_the_statements_can_be_printed_for_somebody_else_to_run() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("alembic")), "upgrade", "head", "--sql"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "POSTGRES_URL": "postgresql://nobody@127.0.0.1:9/nothing"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"CREATE ROLE {row_security.ROLE} NOLOGIN" in done.stdout
    assert "%" not in done.stdout, "a driver's escape would be printed twice"
    assert "ALTER TABLE scenes ENABLE ROW LEVEL SECURITY" in done.stdout
