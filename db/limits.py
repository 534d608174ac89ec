"""Limits of Postgres sessions on waiting, working and idling: a dead peer must not keep its locks.

A client that disappeared inside a transaction keeps its row locks for 15 minutes to 2 hours by the defaults of
Postgres and the kernel. Each session therefore sets its own limits in its startup packet (``options``), so that
they apply on any server; the client's end of the connection has the same limits. In total, a row
locked by a dead peer is free within 60 s.

Which limit ends what: ``idle_in_transaction_session_timeout`` a client that is silent between two statements;
keepalives a connection whose other end is gone while nothing is in flight; ``tcp_user_timeout`` the same with data in
flight, for which keepalives do nothing; ``client_connection_check_interval`` a statement whose client is gone;
``lock_timeout`` a wait for a row, ``statement_timeout`` whatever else is slow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from shared.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one engine's sessions, seconds."""

    #: Waiting for a lock that another transaction holds.
    lock_s: float
    #: One statement, its waits included; 0 is no limit.
    statement_s: float
    #: An idle transaction.
    idle_s: float
    #: Time without a network response before the connection is closed.
    peer_s: float
    #: Until a new connection is ready; at least 2 for libpq.
    connect_s: int = 5

    def arguments(self, options: str = "") -> dict[str, Any]:
        """Arguments of a libpq connection; ``options``: further ones for the server, which win."""
        idle_s, interval_s, count = _keepalives(self.peer_s)
        session = {
            "lock_timeout": _ms(self.lock_s),
            "statement_timeout": _ms(self.statement_s),
            "idle_in_transaction_session_timeout": _ms(self.idle_s),
            **server_side(self.peer_s),
        }
        return {
            "connect_timeout": self.connect_s,
            "keepalives_idle": idle_s,
            "keepalives_interval": interval_s,
            "keepalives_count": count,
            "tcp_user_timeout": _ms(self.peer_s),
            "options": " ".join(
                [*(f"-c {name}={value}" for name, value in session.items()), options]
            ).strip(),
        }


def server_side(peer_s: float) -> dict[str, str]:
    """What a server needs to notice that a client is gone: settings of a session, or of the whole server."""
    idle_s, interval_s, count = _keepalives(peer_s)
    return {
        "tcp_keepalives_idle": str(idle_s),
        "tcp_keepalives_interval": str(interval_s),
        "tcp_keepalives_count": str(count),
        "tcp_user_timeout": str(_ms(peer_s)),
        # While a statement runs the server does not read the socket: without this it notices a closed one only when it answers.
        "client_connection_check_interval": "5000",
    }


def _keepalives(peer_s: float) -> tuple[int, int, int]:
    """Seconds until the first probe and between further ones, and how many: five sixths of ``peer_s`` in all."""
    return max(1, round(peer_s / 3)), max(1, round(peer_s / 6)), 3


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def configured_limits(settings: Settings) -> Limits:
    """The limits of ordinary sessions."""
    return Limits(
        lock_s=settings.database_lock_s,
        statement_s=settings.database_statement_s,
        idle_s=settings.database_idle_s,
        peer_s=settings.database_peer_s,
    )


def housekeeping_limits(settings: Settings) -> Limits:
    """The limits of reconciling: short, because it repeats every few seconds."""
    most = Limits(lock_s=2.0, statement_s=15.0, idle_s=15.0, peer_s=6.0, connect_s=3)
    own = asdict(configured_limits(settings))
    return Limits(**{name: min(limit, own[name]) for name, limit in asdict(most).items()})


def migration_limits(settings: Settings) -> Limits:
    """The limits of a migration: it may compute for hours, but waits for a table briefly, because all others queue behind it."""
    limits = configured_limits(settings)
    return replace(limits, statement_s=0.0, idle_s=max(600.0, limits.idle_s))
