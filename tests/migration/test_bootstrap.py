"""The role that nodes use: made by an administrator, it owns its tables and can do nothing else."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from urllib.parse import quote

import psycopg
import pytest

from db import schema
from db.bootstrap import Application, bootstrap, find_rights, rename_role, with_database
from db.row_security import ROLE as READER
from shared.errors import Conflict, DatabaseUnavailable, InvalidRequest
from tests.support.fleet import run_to_end
from tests.support.services import PostgresServer

_names = itertools.count(1)
NewApplication = Callable[..., Application]


@pytest.fixture
def new_application(server: PostgresServer) -> Iterator[NewApplication]:
    made = []

    def new(role: str | None = None) -> Application:
        role = role or f"application{next(_names)}"
        made.append(role)
        return Application(role=role, password="pass:word/ with@signs", database=role)

    yield new
    for name in made:
        server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        server.execute(f"DROP ROLE IF EXISTS {name}")


@pytest.fixture
def application(new_application: NewApplication) -> Application:
    return new_application()


def connect(server: PostgresServer, application: Application) -> psycopg.Connection:
    return psycopg.connect(url_of(server, application), autocommit=True)


def url_of(server: PostgresServer, application: Application) -> str:
    password = quote(application.password, safe="")
    return f"postgresql://{application.role}:{password}@127.0.0.1:{server.port}/{application.database}"


def migrate(url: str) -> None:
    schema.upgrade(url=url.replace("postgresql://", "postgresql+psycopg://"))


def assert_owns_all_and_no_more(connection: psycopg.Connection, role: str) -> None:
    """The role has no rights of the server, and owns all relations and routines outside extensions."""
    assert find_rights(connection) == []
    foreign = connection.execute(
        """
        SELECT c.relname, pg_get_userbyid(c.relowner) FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND pg_get_userbyid(c.relowner) <> %(role)s
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
        UNION ALL SELECT p.proname, pg_get_userbyid(p.proowner) FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND pg_get_userbyid(p.proowner) <> %(role)s
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        """,
        {"role": role},
    )
    assert foreign.fetchall() == []


def test_the_migrations_run_as_the_role_and_again(server: PostgresServer, application: Application) -> None:
    for _ in range(2):
        bootstrap(server.url(), application)
        migrate(url_of(server, application))
    with connect(server, application) as connection:
        assert_owns_all_and_no_more(connection, application.role)
        connection.execute("SELECT count(*) FROM videos")
        connection.execute(f"SET ROLE {READER}")
        assert connection.execute("SELECT count(*) FROM videos").fetchone() == (0,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM videos")


REFUSED = {
    "run a program": "COPY (SELECT 1) TO PROGRAM 'true'",
    "run a program for its output": "CREATE TEMP TABLE t (x text); COPY t FROM PROGRAM 'id'",
    "read a file": "SELECT pg_read_file('/etc/passwd')",
    "read the server's own file": "SELECT pg_read_file('postgresql.conf')",
    "list a folder": "SELECT pg_ls_dir('/')",
    "copy a file": "CREATE TEMP TABLE t (x text); COPY t FROM '/etc/passwd'",
    "write a file": "COPY (SELECT 1) TO '/tmp/scenefleet-must-not-be-written'",
    "import a file": "SELECT lo_import('/etc/passwd')",
    "make a role": "CREATE ROLE intruder SUPERUSER",
    "become a superuser": "ALTER ROLE CURRENT_USER SUPERUSER",
    "make a database": "CREATE DATABASE intruder",
    "read the passwords": "SELECT rolpassword FROM pg_authid",
    "change the server": "ALTER SYSTEM SET log_min_messages = 'panic'",
    "load a library": "LOAD '/tmp/x.so'",
    "act as the administrator": "SET ROLE postgres",
    "write functions in C": "CREATE FUNCTION f() RETURNS int AS '/lib/x86_64-linux-gnu/libc.so.6', 'getpid' LANGUAGE c",
}


def test_the_role_can_do_nothing_else(server: PostgresServer, application: Application) -> None:
    bootstrap(server.url(), application)
    allowed = []
    for what, statement in REFUSED.items():
        with connect(server, application) as connection:
            try:
                connection.execute(statement)
            except psycopg.errors.InsufficientPrivilege:
                continue
            allowed.append(what)
    assert allowed == []


def test_the_role_reads_nothing_of_another_one(
    server: PostgresServer, new_application: NewApplication
) -> None:
    application, other = new_application(), new_application()
    for one in (application, other):
        bootstrap(server.url(), one)
    server.execute("CREATE TABLE kept (secret text)", application.database)
    with connect(server, application) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM kept")
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(connection.info.dsn, dbname=other.database, password=application.password)


def test_what_a_superuser_made_is_taken_over(server: PostgresServer, application: Application) -> None:
    server.execute(f"CREATE DATABASE {application.database}")
    server.execute(
        f"CREATE ROLE {application.role} SUPERUSER CREATEDB CREATEROLE BYPASSRLS REPLICATION LOGIN"
    )
    server.execute(f"GRANT pg_read_server_files TO {application.role}")
    migrate(with_database(server.url(), application.database))
    for statement in (
        "INSERT INTO videos (video_id, user_id, external_id, storage_key) VALUES ('v', 'u', 'v', 'uploads/u/v/a')",
        'CREATE SEQUENCE "Odd name"',
        "CREATE FUNCTION odd(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE mood AS ENUM ('good')",
    ):
        server.execute(statement, application.database)
    bootstrap(server.url(), application)
    with connect(server, application) as connection:
        assert_owns_all_and_no_more(connection, application.role)
        assert connection.execute("SELECT video_id FROM videos").fetchall() == [("v",)]
        memberships = connection.execute(
            "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = current_user::regrole"
        ).fetchall()
        assert memberships == [(READER,)]
    url = url_of(server, application)
    schema.downgrade("base", url=url.replace("postgresql://", "postgresql+psycopg://"))
    migrate(url)


def test_an_administrator_of_the_applications_name_is_renamed(
    server: PostgresServer, new_application: NewApplication
) -> None:
    application = new_application("chief")
    new_application("boss")
    server.execute("CREATE ROLE chief SUPERUSER LOGIN PASSWORD 'chief'")
    chief = f"postgresql://chief:chief@127.0.0.1:{server.port}/postgres"
    with pytest.raises(InvalidRequest, match="--rename-admin"):
        bootstrap(chief, application)
    # A role that every server has.
    with pytest.raises(Conflict, match="choose another name"):
        rename_role(chief, "pg_read_all_data")
    renamed = rename_role(chief, "boss")
    assert renamed == chief.replace("chief:", "boss:", 1)
    bootstrap(renamed, application)
    with connect(server, application) as connection:
        assert find_rights(connection) == []


def test_the_command_says_in_a_sentence_what_is_wrong(
    server: PostgresServer, application: Application
) -> None:
    def run(**names: str) -> tuple[int, str]:
        environment = {"PATH": os.environ["PATH"], "SCENEFLEET_HOME": "/nonexistent", **names}
        done = run_to_end([sys.executable, "-m", "cli", "db", "bootstrap"], environment, timeout_s=60)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr.replace("\n", " ")

    url = url_of(server, application)
    status, says = run(POSTGRES_URL=url)
    assert status and "POSTGRES_ADMIN_URL" in says
    status, says = run(POSTGRES_URL="postgresql://h/x", POSTGRES_ADMIN_URL=server.url())
    assert status and "does not name a user, a password and a database" in says
    status, says = run(POSTGRES_URL=url, POSTGRES_ADMIN_URL=server.url())
    assert status == 0, says
    connect(server, application).close()
    wrong = server.url().replace(server.password, "wrong")
    with pytest.raises(DatabaseUnavailable, match="password"):
        bootstrap(wrong, application)
