"""What statements cost, by Postgres's own count: buffers and rows, which do not depend on the machine or its load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from db.engine import get_engine


@dataclass(frozen=True)
class Cost:
    """One statement as it was executed."""

    sql: str
    #: Pages of 8 KiB that it touched, in memory or not.
    buffers: int
    #: Nodes of its plan that read a table from end to end: the tables.
    scanned: tuple[str, ...]
    plan: Any
    took_ms: float

    def nodes(self) -> Iterator[Any]:
        """The nodes of its plan."""
        return _nodes(self.plan)


def costs_of(work: Callable[[Session], object]) -> list[Cost]:
    """Do ``work`` in a transaction that is rolled back; explain each statement just before it is executed."""
    found: list[Cost] = []
    with Session(get_engine()) as session:
        connection = session.connection()

        @event.listens_for(connection, "before_cursor_execute")
        def explain(_: Any, cursor: Any, sql: str, values: Any, *rest: Any) -> None:
            with cursor.connection.cursor() as own:
                if not sql.lstrip().upper().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
                    return
                own.execute("SAVEPOINT explained")
                own.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", values)
                (explained,) = own.fetchone()[0]
                own.execute("ROLLBACK TO SAVEPOINT explained")
            plan = explained["Plan"]
            buffers = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            scanned = tuple(
                node["Relation Name"] for node in _nodes(plan) if node["Node Type"].endswith("Seq Scan")
            )
            found.append(Cost(sql, buffers, scanned, plan, explained["Execution Time"]))

        try:
            work(session)
        finally:
            session.rollback()
    return found


def _nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def plans(session: Session, ask: Callable[[], object]) -> str:
    """How Postgres would run the statements of a search, without their costs counted."""
    told: list[str] = []
    connection = session.connection()

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, __: Any, ___: bool) -> None:
        if statement.lstrip().startswith("SELECT") and "set_config" not in statement:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            told.extend(row[0] for row in cursor.fetchall())

    event.listen(connection, "before_cursor_execute", explain)
    ask()
    return "\n".join(told)
