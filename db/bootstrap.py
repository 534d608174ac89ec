"""Creates what needs an administrator of Postgres: the nodes' role, its database, the extension ``vector``.

Nodes, the command and the migrations use a role that owns the tables and can do nothing else: it reads no files, runs no
programs, makes no roles and no databases, and does not pass row-level security of others. ``bootstrap`` makes it with an
administrator's connection and takes over what an earlier version made as a superuser. Running it again changes nothing
but the role's password, which is then the given one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from db.locks import AdvisoryLock
from db.row_security import ROLE as READER
from shared.errors import Conflict, DatabaseUnavailable, InvalidRequest
from shared.settings import hide_password

EXTENSION = "vector"
CONNECT_LIMIT_S = 5
#: Maximum wait for the users of a table that is taken over.
LOCK_LIMIT = "30s"
#: What the application's role must not have, by its column in pg_roles and its word in CREATE ROLE.
FORBIDDEN = {
    "rolsuper": "SUPERUSER",
    "rolcreatedb": "CREATEDB",
    "rolcreaterole": "CREATEROLE",
    "rolreplication": "REPLICATION",
    "rolbypassrls": "BYPASSRLS",
}


@dataclass(frozen=True, kw_only=True)
class Application:
    """The role and database that nodes use, as POSTGRES_URL names them."""

    role: str
    password: str
    database: str

    @classmethod
    def from_url(cls, url: str) -> Application:
        """Read them from a URL.

        Raises:
            InvalidRequest: the URL does not name all three.
        """
        parts = urlsplit(url)
        database = unquote(parts.path.removeprefix("/"))
        if not parts.username or not parts.password or not database:
            raise InvalidRequest(
                f"POSTGRES_URL={hide_password(url)!r} does not name a user, a password and a database: "
                "write it as postgresql://user:password@host:5432/name"
            )
        return cls(role=unquote(parts.username), password=unquote(parts.password), database=database)


def bootstrap(admin_url: str, application: Application) -> None:
    """Create or correct the application's role, its database and the extension.

    Args:
        admin_url: a URL of the server for a superuser, or for a role that may make roles, databases and the extension.
        application: what to make.

    Raises:
        InvalidRequest: the administrator is the application's own role.
        DatabaseUnavailable: no connection.
        Conflict: the administrator may not do it, or a table is in use for longer than LOCK_LIMIT.
    """
    try:
        with _connect(admin_url) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (AdvisoryLock.BOOTSTRAP.value,))
            _refuse_itself(connection, application)
            _make_role(connection, application)
            _make_reader(connection, application)
            _make_database(connection, application)
        with _connect(with_database(admin_url, application.database)) as connection, connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_LIMIT}'")
            _take_over(connection, application)
    except psycopg.errors.InsufficientPrivilege as error:
        raise Conflict(
            f"{hide_password(admin_url)} may not set up the database ({_first_line(error)}): name a superuser"
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise Conflict(
            f"a table of database {application.database!r} is in use: stop the nodes, then try again"
        ) from None


def rename_role(admin_url: str, name: str) -> str:
    """Rename the role of a URL, and return the URL with the new name.

    The first superuser of a server can't lose its rights. Where the application has been that user (as it was in
    the first versions), it is renamed and the application gets a new role of the old name.

    Raises:
        DatabaseUnavailable: no connection.
        Conflict: there is a role of the new name.
    """
    old = unquote(urlsplit(admin_url).username or "")
    helper, password = f"{old}_rename", secrets.token_urlsafe(24)
    login = sql.Identifier(helper)
    # If this process crashes here, the remaining role can't log in.
    until = (datetime.now(UTC) + timedelta(minutes=10)).isoformat()
    with _connect(admin_url) as connection:
        if _rights(connection, name) is not None:
            raise Conflict(f"there is a role {name!r} already: choose another name for the administrator")
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(login))
        statement = sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {} VALID UNTIL {}")
        connection.execute(statement.format(login, _verifier(connection, helper, password), until))
    # A session can't rename its own role.
    with _connect(_with_user(admin_url, helper, password)) as connection:
        statement = sql.SQL("ALTER ROLE {} RENAME TO {}")
        connection.execute(statement.format(sql.Identifier(old), sql.Identifier(name)))
    renamed = _with_user(admin_url, name)
    with _connect(renamed) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(login))
    return renamed


def find_rights(connection: Connection[TupleRow]) -> list[str]:
    """Rights of the connection's role that the application does not need, as words of CREATE ROLE."""
    return _rights(connection, sql.SQL("current_user")) or []


def with_database(url: str, database: str) -> str:
    """The URL of another database of the same server for the same user."""
    return urlunsplit(urlsplit(url)._replace(path="/" + quote(database, safe="")))


def _with_user(url: str, user: str, password: str | None = None) -> str:
    parts = urlsplit(url)
    secret = parts.password if password is None else quote(password, safe="")
    host = parts.netloc.rpartition("@")[2]
    login = quote(user, safe="") + (f":{secret}" if secret else "")
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))


def _connect(url: str) -> Connection[TupleRow]:
    try:
        return psycopg.connect(
            url.replace("postgresql+psycopg://", "postgresql://", 1),
            autocommit=True,
            connect_timeout=CONNECT_LIMIT_S,
            application_name="scenefleet bootstrap",
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(
            f"Postgres at {hide_password(url)} refuses the administrator ({_first_line(error)}): "
            "is it running, and are user and password right?"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _rights(connection: Connection[TupleRow], role: str | sql.SQL) -> list[str] | None:
    """Those of ``FORBIDDEN`` that a role has, as words of CREATE ROLE; None: there is no such role."""
    columns = sql.SQL(", ").join(map(sql.Identifier, FORBIDDEN))
    query = sql.SQL("SELECT {} FROM pg_roles WHERE rolname = {}").format(columns, role)
    row = connection.execute(query).fetchone()
    return None if row is None else [word for word, has in zip(FORBIDDEN.values(), row, strict=True) if has]


def _verifier(connection: Connection[TupleRow], role: str, password: str) -> sql.Literal:
    """What the server keeps instead of the password, so that its log never shows that."""
    encrypt = connection.pgconn.encrypt_password
    return sql.Literal(encrypt(password.encode(), role.encode(), b"scram-sha-256").decode())


def _refuse_itself(connection: Connection[TupleRow], application: Application) -> None:
    if connection.execute("SELECT session_user::text").fetchone() == (application.role,):
        raise InvalidRequest(
            f"the administrator and the application are both the role {application.role!r}: name another "
            "administrator, or give this one another name with --rename-admin"
        )


def _make_role(connection: Connection[TupleRow], application: Application) -> None:
    role = sql.Identifier(application.role)
    password = _verifier(connection, application.role, application.password)
    rights = _rights(connection, application.role)
    verb = sql.SQL("CREATE" if rights is None else "ALTER")
    connection.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, password))
    # Only what differs: to say NOSUPERUSER takes a superuser, whatever it changes. A new role has none of them.
    for right in rights or ():
        connection.execute(sql.SQL("ALTER ROLE {} {}").format(role, sql.SQL("NO" + right)))
    others = connection.execute(
        "SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles r ON r.oid = m.member"
        " WHERE r.rolname = %s AND g.rolname <> %s",
        (application.role, READER),
    ).fetchall()
    for (other,) in others:
        connection.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(other), role))


def _make_reader(connection: Connection[TupleRow], application: Application) -> None:
    if _rights(connection, READER) is None:
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(READER)))
    grant = sql.SQL("GRANT {} TO {}")
    connection.execute(grant.format(sql.Identifier(READER), sql.Identifier(application.role)))


def _make_database(connection: Connection[TupleRow], application: Application) -> None:
    database, role = sql.Identifier(application.database), sql.Identifier(application.role)
    owner = connection.execute(
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", (application.database,)
    ).fetchone()
    if owner == (application.role,):
        return
    if "SUPERUSER" not in find_rights(connection):
        # Only a member may make something that belongs to the role.
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
    if owner is None:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
    else:
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))


def _take_over(connection: Connection[TupleRow], application: Application) -> None:
    """Make the extension, and give the role what superusers own in the schema ``public``."""
    role = sql.Identifier(application.role)
    connection.execute(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION} SCHEMA public")
    connection.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}").format(role))
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(sql.Identifier(READER)))
    for kind, name in connection.execute(_OF_SUPERUSERS).fetchall():
        # The server has quoted the name; the kind is one of the query's own.
        connection.execute(sql.SQL("ALTER {} {} OWNER TO {}").format(sql.SQL(kind), sql.SQL(name), role))


#: Kind and quoted name of everything in ``public`` that a superuser owns. Left out is what follows its owner by itself
#: (indexes, types of rows and of arrays, sequences of columns) and what belongs to an extension.
_OF_SUPERUSERS = """
WITH superusers AS (SELECT oid FROM pg_roles WHERE rolsuper),
    of_extensions AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')
SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
    c.oid::regclass::text
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
    AND c.relowner IN (TABLE superusers)
    AND NOT EXISTS (SELECT FROM of_extensions e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
        AND c.relkind = 'S' AND d.deptype IN ('a', 'i'))
UNION ALL
SELECT 'ROUTINE', p.oid::regprocedure::text
FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.proowner IN (TABLE superusers)
    AND NOT EXISTS (SELECT FROM of_extensions e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid)
UNION ALL
SELECT 'TYPE', t.oid::regtype::text
FROM pg_type t
WHERE t.typnamespace = 'public'::regnamespace AND t.typowner IN (TABLE superusers) AND t.typtype IN ('e', 'd')
    AND NOT EXISTS (SELECT FROM of_extensions e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid)
"""
