"""Sessions on Postgres: one small pool per process, never shared across a fork."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
from sqlalchemy import (
    Connection,
    Engine,
    ExceptionContext,
    Executable,
    TextClause,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import NullPool

from db import row_security
from db.limits import Limits, configured_limits
from shared.errors import DatabaseBusy, DatabaseUnavailable, StatementTimeout
from shared.settings import get_settings, hide_password

log = logging.getLogger(__name__)

T = TypeVar("T")

#: (pid, engine): a forked child must not use its parent's sockets.
_engine: tuple[int, Engine] | None = None
#: Limit of each statement in transactions begun from here on, seconds; None: the engine's.
_statement_s: ContextVar[float | None] = ContextVar("statement_s", default=None)

_CONFLICTS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_MAX_CONFLICTS = 10
_LOCK_TIMEOUT, _CANCELLED = "55P03", "57014"
#: The server has ended the session: idle in a transaction for too long, or a transaction that took too long.
_ENDED = ("25P03", "25P04")
#: The server lets no transaction write: it is a standby by now, or an operator has stopped writes.
_READ_ONLY = "25006"
#: Beginnings of the states of a server that stops, starts, or has lost the connection.
_AWAY = ("08", "57P0")


def make_engine(url: str, *, pooled: bool = True, limits: Limits | None = None) -> Engine:
    """Create an engine that detects a dead server within seconds, and whose sessions release their locks when this process ends.

    ``limits``: by default those of the settings; see db/limits.py.
    """
    limits = limits or configured_limits(get_settings())
    own = make_url(url).query.get("options", "")
    arguments = limits.arguments(own if isinstance(own, str) else " ".join(own))
    arguments["application_name"] = "scenefleet"
    pool: dict[str, Any] = {"pool_size": 2, "max_overflow": 3, "pool_pre_ping": True}
    if not pooled:
        pool = {"poolclass": NullPool}
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, **pool)
    event.listen(engine, "handle_error", _leave_server)
    return engine


def _leave_server(context: ExceptionContext) -> None:
    """Empty the pool when a server hands over to another one: its other connections lead to the same server.

    A server that has become a standby goes on answering: its connections live, and every transaction that writes is refused.
    """
    state = getattr(context.original_exception, "sqlstate", None) or ""
    if state == _READ_ONLY:
        # Of a transaction that we have declared to be read-only it is our own error.
        options = {} if context.connection is None else context.connection.get_execution_options()
        context.is_disconnect = not options.get("postgresql_readonly", False)
    elif state.startswith(_AWAY):
        context.is_disconnect = True


def get_engine() -> Engine:
    """This process's engine, made at first use (again after a fork)."""
    global _engine
    if _engine is None or _engine[0] != os.getpid():
        if _engine is not None:
            _engine[1].dispose(close=False)
        _engine = (os.getpid(), make_engine(get_settings().database_url))
    return _engine[1]


def set_engine(engine: Engine | None) -> None:
    """Use this engine in this process (tests, embedded servers)."""
    global _engine
    _engine = None if engine is None else (os.getpid(), engine)


def is_outage(error: BaseException) -> bool:
    """Whether an error means that Postgres is unavailable, or has handed over to another server, not that it refused a statement."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    cause = error.orig
    if isinstance(cause, _CONFLICTS):
        return False
    state = getattr(cause, "sqlstate", None)
    # 08 connection, 53 resources (disk full, connections), 57 shutdown in progress; None: never reached a server.
    return state is None or (state != _CANCELLED and state[:2] in ("08", "53", "57", "58"))


@contextmanager
def outages() -> Iterator[None]:
    """Raise a driver's connection errors as ``DatabaseUnavailable``, and exceeded limits as its subclasses."""
    try:
        yield
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state == _LOCK_TIMEOUT:
            message = "another transaction has locked the rows for too long: try again in a minute"
            raise DatabaseBusy(message) from error
        if state == _CANCELLED:
            raise StatementTimeout(
                "Postgres ended a statement that took too long: try again when the server has less to do, "
                "or raise DATABASE_STATEMENT_S (DATABASE_JOB_STATEMENT_S for a job)"
            ) from error
        if is_outage(error) or state in _ENDED:
            first = str(error.orig).strip().split("\n")[0]
            url = hide_password(get_settings().postgres_url)
            if state == _READ_ONLY:
                message = f"Postgres at {url} takes no changes ({first}): is it a standby?"
            else:
                message = f"Postgres at {url} does not answer ({first}): is it running?"
            raise DatabaseUnavailable(message) from error
        raise


@contextmanager
def reading() -> Iterator[Session]:
    """A read-only session.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    with outages(), _session(get_engine()) as session:
        yield session


@contextmanager
def one_connection() -> Iterator[Session]:
    """A session that keeps its connection after a rollback, where the engine has no pool.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    with outages(), get_engine().connect() as connection, Session(connection) as session:
        yield session


@contextmanager
def reading_only() -> Iterator[Session]:
    """A session of transactions that Postgres lets write nothing.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    with outages(), _session(get_engine().execution_options(postgresql_readonly=True)) as session:
        yield session


@contextmanager
def statements_may_take(seconds: float) -> Iterator[None]:
    """Set the statement limit of the transactions that this thread begins in the block."""
    token = _statement_s.set(seconds)
    try:
        yield
    finally:
        _statement_s.reset(token)


def _session(engine: Engine, *first: Executable) -> Session:
    """A session whose every transaction begins with these statements."""
    session = Session(engine, expire_on_commit=False)
    limit_s = _statement_s.get()
    if limit_s is not None:
        first = (text(f"SET LOCAL statement_timeout = {round(limit_s * 1000)}"), *first)

    def begun(_: Session, transaction: SessionTransaction, connection: Connection) -> None:
        # A savepoint is within a transaction that has them.
        for statement in () if transaction.nested else first:
            connection.execute(statement)

    if first:
        event.listen(session, "after_begin", begun)
    return session


@contextmanager
def reading_as(user_id: str, *, snapshot: bool = False) -> Iterator[Session]:
    """A read-only session that sees the rows of one user only; see db/row_security.py.

    Role and user end with the transaction, so nothing of them is left on the pool's connection; a session that is
    rolled back takes them again with its next statement. ``snapshot``: all statements see the same state.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    options: dict[str, Any] = {"postgresql_readonly": True}
    if snapshot:
        options["isolation_level"] = "REPEATABLE READ"
    with outages():
        engine = get_engine()
        become = row_security.BECOME_READER if _may_be_reader(engine) else row_security.NAME_USER
        with _session(engine.execution_options(**options), become.bindparams(user_id=user_id)) as session:
            yield session


def read_one_as(user_id: str, statement: TextClause) -> Any:
    """The one value that a statement with the parameter ``user_id`` reads, as ``reading_as`` does, in one round trip.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    engine = get_engine()
    become = row_security.BECOME_READER if _may_be_reader(engine) else row_security.NAME_USER
    with outages(), engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        values = {"user_id": user_id}
        try:
            with driver.pipeline():
                driver.execute(_driver_sql(engine, become), values)
                cursor = driver.execute(_driver_sql(engine, statement), values)
                # Role and user end with the transaction, which psycopg begins by itself.
                driver.execute("ROLLBACK")
                return cursor.fetchone()[0]
        except psycopg.Error:
            # Once more the usual way, which knows what each error means.
            connection.invalidate()
    with reading_as(user_id) as session:
        return session.execute(statement, values).scalar_one()


@lru_cache(maxsize=8)
def _driver_sql(engine: Engine, statement: TextClause) -> bytes:
    """A statement as the driver takes it."""
    return str(statement.compile(dialect=engine.dialect)).encode()


@lru_cache(maxsize=1)
def _may_be_reader(engine: Engine) -> bool:
    """Whether this engine's database user may act as the reader; asked once."""
    try:
        with engine.connect() as connection:
            connection.execute(row_security.BECOME_READER, {"user_id": ""})
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in row_security.NO_READER:
            raise
        reason = str(error.orig).split("\n")[0]
        log.warning(
            "requests are read as the owner of the tables (%s): `scenefleet doctor` shows what to do", reason
        )
        return False
    return True


def transact(work: Callable[[Session], T]) -> T:
    """Run ``work`` in one READ COMMITTED transaction; repeat it after a deadlock or a serialisation failure.

    ``work`` must be repeatable: it may run several times, only the last run is committed.

    Raises:
        DatabaseBusy: another transaction held a lock for too long; nothing is changed.
        StatementTimeout: a statement took too long; nothing is changed.
        DatabaseUnavailable: Postgres is unavailable. Whether the commit arrived is then unknown, so callers are idempotent.
    """
    for attempt in range(1, _MAX_CONFLICTS + 1):
        try:
            with outages(), _session(get_engine()) as session, session.begin():
                return work(session)
        except DBAPIError as error:
            if not isinstance(error.orig, _CONFLICTS) or attempt == _MAX_CONFLICTS:
                raise
            time.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise AssertionError("unreachable")


def with_database_retry(work: Callable[[Session], T], wait_s: float, *, locked_s: float = 0.0) -> T:
    """``transact``, waiting up to ``wait_s`` for a Postgres that is away, and up to ``locked_s`` for locks of others.

    Raises:
        StatementTimeout: at once; it would take as long again.
        DatabaseBusy: a lock was held for longer.
        DatabaseUnavailable: it stayed away.
    """
    began = time.monotonic()
    pause_s = 0.2
    while True:
        try:
            return transact(work)
        except DatabaseUnavailable as error:
            limit_s = locked_s if isinstance(error, DatabaseBusy) else wait_s
            if isinstance(error, StatementTimeout) or time.monotonic() + pause_s > began + limit_s:
                raise
            time.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)
