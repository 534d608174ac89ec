"""Who has used a queue's devices how much lately, and who waits there: what a claim chooses the next account by.

``queue_usage`` has one row per queue and account. Its ``level`` is ``ln(u) + t * ln(2) / half-life``, where ``u`` is
what was left at time ``t`` of the device seconds the account has had, each counting half as much after every half-life.
All accounts decay alike, so the order of levels is the order of usage at any later time: it can be indexed, and nothing
has to be counted down.

``waiting`` may be true without need, never false without: whoever makes a job claimable sets it, and holds the row
until its commit (FOR KEY SHARE, so that many may); only a claim that has found nothing takes it back, from rows that
are free (FOR UPDATE SKIP LOCKED), after another look. All changes of a transaction are written just before its commit,
in the order of the keys, as its last locks: so they are held for moments, and two transactions can't wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from shared.settings import get_settings

_PENDING = "queue usage"
#: Rows of accounts that have had nothing for so long are removed, seconds.
_KEEP_S = 90 * 24 * 3600.0

#: How far levels grow in a second, for a half-life; and a level that is as good as none, which ``exp`` still takes.
RATE = "(ln(2.0::float8) / {half_life})"
LEAST = "-700.0::float8"
_CLOCK = "extract(epoch FROM clock_timestamp())::float8"


@dataclass
class _Changes:
    """What a transaction has to write before it commits."""

    #: (queue, account) -> device seconds.
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    waiting: set[tuple[str, str]] = field(default_factory=set)


def add_seconds(session: Session, queue: str, account: str, seconds: float) -> None:
    """An attempt has ended that took so many seconds of the queue's devices."""
    changes = _changes(session)
    key = (queue, account)
    changes.seconds[key] = changes.seconds.get(key, 0.0) + max(0.0, float(seconds))


def add_waiting(session: Session, queue: str, account: str) -> None:
    """A job of this account waits, to be run now or later."""
    _changes(session).waiting.add((queue, account))


def _changes(session: Session) -> _Changes:
    if _PENDING not in session.info:
        session.info[_PENDING] = _Changes()
        event.listen(session, "before_commit", _write)
        event.listen(session, "after_rollback", _forget)
    changes: _Changes = session.info[_PENDING]
    return changes


def _forget(session: Session) -> None:
    session.info[_PENDING] = _Changes()


# Whoever holds a row so keeps claims from saying that nothing waits.
_HOLD = text(
    """
    SELECT queue, account, waiting FROM queue_usage
    WHERE (queue, account) IN (SELECT * FROM unnest(CAST(:queues AS text[]), CAST(:accounts AS text[])))
    ORDER BY queue, account FOR KEY SHARE
    """
)
_PUT = text(
    f"""
    INSERT INTO queue_usage AS usage
        (queue, account, level, half_life_s, total_s, waiting, waiting_since, updated_at)
    VALUES (
        :queue, :account,
        CASE WHEN :seconds > 0 THEN ln(CAST(:seconds AS float8)) + {_CLOCK} * {RATE.format(half_life=":half_life_s")}
            ELSE '-infinity' END,
        :half_life_s, :seconds, :waiting, CASE WHEN :waiting THEN clock_timestamp() END, clock_timestamp()
    )
    ON CONFLICT (queue, account) DO UPDATE SET
        level = CASE WHEN :seconds > 0 THEN
            ln(exp(greatest(usage.level - {_CLOCK} * {RATE.format(half_life="usage.half_life_s")}, {LEAST})) + :seconds)
                + {_CLOCK} * {RATE.format(half_life=":half_life_s")}
            ELSE usage.level END,
        half_life_s = CASE WHEN :seconds > 0 THEN :half_life_s ELSE usage.half_life_s END,
        total_s = usage.total_s + :seconds,
        waiting_since = CASE WHEN :waiting AND NOT usage.waiting THEN clock_timestamp() ELSE usage.waiting_since END,
        waiting = usage.waiting OR :waiting,
        updated_at = clock_timestamp()
    """
)


def _write(session: Session) -> None:
    if session.in_nested_transaction():
        return
    # What is still to be written locks rows that come before these.
    session.flush()
    changes: _Changes = session.info[_PENDING]
    session.info[_PENDING] = _Changes()
    waiting = sorted(changes.waiting)
    known = set()
    if waiting:
        queues, accounts = zip(*waiting, strict=True)
        held = session.execute(_HOLD, {"queues": list(queues), "accounts": list(accounts)})
        known = {(row.queue, row.account) for row in held if row.waiting}
    half_life_s = get_settings().usage_half_life_s
    for key in sorted({*changes.seconds, *changes.waiting} - (known - set(changes.seconds))):
        session.execute(
            _PUT,
            {
                "queue": key[0],
                "account": key[1],
                "seconds": changes.seconds.get(key, 0.0),
                "waiting": key in changes.waiting,
                "half_life_s": half_life_s,
            },
        )


#: The first job of every priority and depth that ``account`` has waiting in ``queue`` (SQL expressions): one step in
#: ``ix_jobs_claim`` each, whatever waits behind them.
HEADS = """
    WITH RECURSIVE heads AS (
        (
            SELECT priority, depth, not_before FROM jobs
            WHERE queue = {queue} AND account = {account} AND state = 'queued'
            ORDER BY priority DESC, depth DESC, not_before LIMIT 1
        )
        UNION ALL
        SELECT next.priority, next.depth, next.not_before FROM heads CROSS JOIN LATERAL (
            SELECT priority, depth, not_before FROM jobs
            WHERE queue = {queue} AND account = {account} AND state = 'queued'
                AND (priority, depth) < (heads.priority, heads.depth)
            ORDER BY priority DESC, depth DESC, not_before LIMIT 1
        ) next
    )
    SELECT * FROM heads
"""

_PROMOTE = text(
    """
    UPDATE queue_usage SET waiting = true, waiting_since = due_at, due_at = NULL
    WHERE queue = :queue AND account = ANY(ARRAY(
        SELECT account FROM queue_usage
        WHERE queue = :queue AND NOT waiting AND due_at <= (SELECT clock_timestamp())
        ORDER BY due_at LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
    ))
    """
)


def promote(session: Session, queue: str) -> None:
    """Let accounts wait again whose first deferred job may run now."""
    session.execute(_PROMOTE, {"queue": queue})


_FREE = text(
    """
    SELECT account FROM queue_usage WHERE queue = :queue AND account = ANY(:accounts) AND waiting
    ORDER BY account FOR UPDATE SKIP LOCKED
    """
)
_REST = text(
    f"""
    UPDATE queue_usage SET waiting = false, waiting_since = NULL, due_at = found.due_at
    FROM (
        SELECT given.account, min(heads.not_before) AS due_at
        FROM unnest(CAST(:accounts AS text[])) AS given(account)
        LEFT JOIN LATERAL ({HEADS.format(queue=":queue", account="given.account")}) heads ON true
        GROUP BY given.account
    ) found
    WHERE queue_usage.queue = :queue AND queue_usage.account = found.account
        AND coalesce(found.due_at > clock_timestamp(), true)
    """
)


def rest(session: Session, queue: str, accounts: Iterable[str]) -> int:
    """Say of those of some accounts that have no job to run now that they don't wait. Returns of how many.

    Accounts that somebody is making a job for at this moment are left as they are.
    """
    free = list(session.scalars(_FREE, {"queue": queue, "accounts": list(accounts)}))
    if not free:
        return 0
    # A statement of its own: it sees what was committed before the rows were locked.
    result = session.execute(_REST, {"queue": queue, "accounts": free})
    return result.rowcount  # type: ignore[attr-defined, no-any-return]


_UNMARKED = text(
    """
    WITH RECURSIVE found AS (
        (SELECT queue, account FROM jobs WHERE state = 'queued' ORDER BY queue, account LIMIT 1)
        UNION ALL
        SELECT next.queue, next.account FROM found CROSS JOIN LATERAL (
            SELECT queue, account FROM jobs WHERE state = 'queued' AND (queue, account) > (found.queue, found.account)
            ORDER BY queue, account LIMIT 1
        ) next
    )
    INSERT INTO queue_usage (queue, account, waiting, waiting_since)
    SELECT queue, account, true, clock_timestamp() FROM found
    WHERE NOT EXISTS (
        SELECT FROM queue_usage u WHERE u.queue = found.queue AND u.account = found.account
            AND (u.waiting OR u.due_at IS NOT NULL)
    )
    ORDER BY queue, account
    ON CONFLICT (queue, account) DO UPDATE SET waiting = true, waiting_since = clock_timestamp()
    """
)
_RESCALE = text(
    f"""
    UPDATE queue_usage SET
        level = greatest(level - {_CLOCK} * {RATE.format(half_life="half_life_s")}, {LEAST})
            + {_CLOCK} * {RATE.format(half_life=":half_life_s")},
        half_life_s = :half_life_s
    WHERE (queue, account) IN (
        SELECT queue, account FROM queue_usage WHERE half_life_s <> :half_life_s AND level > '-infinity'
        FOR NO KEY UPDATE SKIP LOCKED
    )
    """
)
_TIDY = text(
    """
    DELETE FROM queue_usage WHERE (queue, account) IN (
        SELECT queue, account FROM queue_usage
        WHERE NOT waiting AND due_at IS NULL AND updated_at < clock_timestamp() - make_interval(secs => :keep_s)
        FOR UPDATE SKIP LOCKED
    )
    """
)


def tend(session: Session) -> None:
    """What is done once a minute: find who waits unnoticed, take a changed half-life over, remove what is over."""
    session.execute(_UNMARKED)
    session.execute(_RESCALE, {"half_life_s": get_settings().usage_half_life_s})
    session.execute(_TIDY, {"keep_s": _KEEP_S})


@dataclass(frozen=True, kw_only=True)
class Usage:
    """An account in a queue, now."""

    queue: str
    #: Empty: the fleet's own work.
    account: str
    #: What is left of its device seconds by their half-life, those of running jobs included.
    recent_s: float
    total_s: float
    queued: int
    running: int


_READ = text(
    f"""
    SELECT u.queue, u.account, u.total_s, coalesce(busy.running, 0) AS running,
        exp(greatest(u.level - {_CLOCK} * {RATE.format(half_life="u.half_life_s")}, {LEAST}))
            + coalesce(busy.seconds, 0) AS recent_s,
        (SELECT count(*) FROM jobs WHERE queue = u.queue AND account = u.account AND state = 'queued') AS queued
    FROM queue_usage u LEFT JOIN (
        SELECT queue, account, count(*) AS running,
            sum(greatest(extract(epoch FROM least(clock_timestamp(), lease_until) - started_at), 0))::float8 AS seconds
        FROM jobs WHERE state = 'running' GROUP BY queue, account
    ) busy ON busy.queue = u.queue AND busy.account = u.account
    ORDER BY recent_s DESC, u.total_s DESC, u.queue, u.account LIMIT :limit
    """
)


def read(session: Session, limit: int = 100) -> list[Usage]:
    """Who has used the fleet's devices most lately, by queue, the greatest first."""
    rows: list[Any] = list(session.execute(_READ, {"limit": limit}).mappings())
    return [Usage(**row) for row in rows]
