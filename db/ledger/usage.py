"""Recent device time of each account in each queue, and which accounts wait there: a claim chooses the account by both.

``queue_usage`` has one row per queue and account. Its ``level`` is ``ln(u) + t * ln(2) / half-life``, where ``u`` is the
account's device seconds at time ``t``, each counting half as much after every half-life. All accounts decay at the same
rate, so the order of levels is the order of usage at any later time: it can be indexed, and no row has to be updated.

``waiting`` may be true without a claimable job, never false with one: a transaction that makes a job claimable sets it
and holds the row until its commit (FOR KEY SHARE, so that several may). Only a claim that has found nothing clears it,
on rows that are not locked (FOR UPDATE SKIP LOCKED), after another look. All changes of a transaction are written just
before its commit, in the order of the keys, as its last locks: they are held briefly and can't deadlock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from shared.settings import get_settings

_PENDING = "queue usage"
#: Rows of accounts without device time or jobs for this long are removed, seconds.
_KEEP_S = 90 * 24 * 3600.0

#: Growth of a level per second by the half-life; and the lowest level that ``exp`` can take.
RATE = "(ln(2.0::float8) / {half_life})"
LEAST = "-700.0::float8"
_CLOCK = "extract(epoch FROM clock_timestamp())::float8"


@dataclass
class _Changes:
    """Changes that a transaction writes before it commits."""

    #: (queue, account) -> device seconds.
    seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    waiting: set[tuple[str, str]] = field(default_factory=set)
    deferred: set[tuple[str, str]] = field(default_factory=set)


def add_seconds(session: Session, queue: str, account: str, seconds: float) -> None:
    """Add the device seconds of an attempt that has ended."""
    _changes(session).seconds[queue, account] += max(0.0, float(seconds))


def add_waiting(session: Session, queue: str, account: str, *, deferred: bool = False) -> None:
    """Note that the account has a queued job; ``deferred``: it may run at a later time only."""
    changes = _changes(session)
    (changes.deferred if deferred else changes.waiting).add((queue, account))


def _changes(session: Session) -> _Changes:
    if _PENDING not in session.info:
        session.info[_PENDING] = _Changes()
        event.listen(session, "before_commit", _write)
        event.listen(session, "after_rollback", _forget)
    changes: _Changes = session.info[_PENDING]
    return changes


def _forget(session: Session) -> None:
    session.info[_PENDING] = _Changes()


# While a row is locked so, no claim clears its ``waiting``.
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
    # Pending writes lock rows that come before these.
    session.flush()
    changes: _Changes = session.info[_PENDING]
    session.info[_PENDING] = _Changes()
    marked = sorted(changes.waiting | changes.deferred)
    known = set()
    if marked:
        queues, accounts = zip(*marked, strict=True)
        held = session.execute(_HOLD, {"queues": list(queues), "accounts": list(accounts)})
        known = {(row.queue, row.account) for row in held if row.waiting}
    half_life_s = get_settings().usage_half_life_s
    for key in sorted({*changes.seconds, *((changes.waiting | changes.deferred) - known)}):
        queue, account = key
        if key in changes.seconds or key in changes.waiting - known:
            values = {"seconds": changes.seconds.get(key, 0.0), "waiting": key in changes.waiting}
            session.execute(_PUT, {"queue": queue, "account": account, "half_life_s": half_life_s, **values})
        if key in changes.deferred - changes.waiting - known:
            session.execute(_PUT_DUE, {"queue": queue, "account": account, "half_life_s": half_life_s})


#: The first queued job of every priority and depth of ``account`` in ``queue`` (SQL expressions): one step in
#: ``ix_jobs_claim`` each, however many jobs follow.
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

# Claims skip an account whose jobs are all deferred: it need not be looked at until the first of them may run.
_PUT_DUE = text(
    f"""
    INSERT INTO queue_usage AS usage (queue, account, half_life_s, due_at, updated_at)
    SELECT :queue, :account, :half_life_s, min(not_before), clock_timestamp()
    FROM ({HEADS.format(queue=":queue", account=":account")}) first
    ON CONFLICT (queue, account) DO UPDATE SET
        due_at = CASE WHEN usage.waiting THEN usage.due_at ELSE least(usage.due_at, excluded.due_at) END,
        updated_at = clock_timestamp()
    """
)
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
    """Mark accounts as waiting whose first deferred job may run now."""
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
    """Clear ``waiting`` of those of some accounts that have no claimable job, unless their rows are locked. Returns how many."""
    free = list(session.scalars(_FREE, {"queue": queue, "accounts": list(accounts)}))
    if not free:
        return 0
    # A separate statement: it sees what was committed before the rows were locked.
    result = session.execute(_REST, {"queue": queue, "accounts": free})
    return result.rowcount  # type: ignore[attr-defined, no-any-return]


# The accounts of queued jobs, a page at a time, in the order of ix_jobs_claim.
_PAGE = text(
    """
    WITH RECURSIVE found AS (
        (
            SELECT queue, account, 1 AS place FROM jobs
            WHERE state = 'queued' AND (queue, account) > (:queue, :account) ORDER BY queue, account LIMIT 1
        )
        UNION ALL
        SELECT next.queue, next.account, found.place + 1 FROM found CROSS JOIN LATERAL (
            SELECT queue, account FROM jobs WHERE state = 'queued' AND (queue, account) > (found.queue, found.account)
            ORDER BY queue, account LIMIT 1
        ) next
        WHERE found.place < :page
    )
    SELECT queue, account, EXISTS (
        SELECT FROM queue_usage u WHERE u.queue = found.queue AND u.account = found.account
            AND (u.waiting OR u.due_at IS NOT NULL)
    ) AS marked
    FROM found ORDER BY place
    """
)
_MARK = text(
    """
    INSERT INTO queue_usage (queue, account, waiting, waiting_since)
    SELECT queue, account, true, clock_timestamp()
    FROM unnest(CAST(:queues AS text[]), CAST(:accounts AS text[])) AS found(queue, account) ORDER BY queue, account
    ON CONFLICT (queue, account) DO UPDATE SET waiting = true, waiting_since = clock_timestamp()
    """
)
#: Accounts per look, and where this process's next look begins.
_PAGE_SIZE = 300
_page_after: tuple[str, str] = ("", "")
# Two conditions in place of <>: an index has both.
_RESCALE = text(
    f"""
    UPDATE queue_usage SET
        level = greatest(level - {_CLOCK} * {RATE.format(half_life="half_life_s")}, {LEAST})
            + {_CLOCK} * {RATE.format(half_life=":half_life_s")},
        half_life_s = :half_life_s
    WHERE (queue, account) IN (
        SELECT queue, account FROM queue_usage
        WHERE (half_life_s < :half_life_s OR half_life_s > :half_life_s) AND level > '-infinity'::float8
        LIMIT :most FOR NO KEY UPDATE SKIP LOCKED
    )
    """
)
_TIDY = text(
    """
    DELETE FROM queue_usage WHERE (queue, account) IN (
        SELECT queue, account FROM queue_usage
        WHERE NOT waiting AND due_at IS NULL AND updated_at < clock_timestamp() - make_interval(secs => :keep_s)
        ORDER BY updated_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)
#: Maximum number of rows that each statement of ``tend`` changes.
_MOST_TENDED = 10_000


def find_unmarked(session: Session) -> list[tuple[str, str]]:
    """Some (queue, account) that wait unmarked. Successive calls of a process look at one page of accounts each, in turn."""
    global _page_after
    queue, account = _page_after
    found = session.execute(_PAGE, {"queue": queue, "account": account, "page": _PAGE_SIZE}).all()
    _page_after = (found[-1].queue, found[-1].account) if len(found) == _PAGE_SIZE else ("", "")
    return [(row.queue, row.account) for row in found if not row.marked]


def mark(session: Session, accounts: Iterable[tuple[str, str]]) -> None:
    """Mark accounts as waiting: the next claim that finds no job of theirs corrects it."""
    queues, names = zip(*accounts, strict=True)
    session.execute(_MARK, {"queues": list(queues), "accounts": list(names)})


def tend(session: Session) -> None:
    """Maintain the table, once a minute: apply a changed half-life, remove idle rows."""
    half_life_s = get_settings().usage_half_life_s
    session.execute(_RESCALE, {"half_life_s": half_life_s, "most": _MOST_TENDED})
    session.execute(_TIDY, {"keep_s": _KEEP_S, "most": _MOST_TENDED})


@dataclass(frozen=True, kw_only=True)
class Usage:
    """An account's use of a queue."""

    queue: str
    #: Empty: the fleet.
    account: str
    #: Decayed device seconds, including those of running jobs.
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
    """The accounts with the most recent device time, by queue, highest first."""
    return [Usage(**row._mapping) for row in session.execute(_READ, {"limit": limit})]
