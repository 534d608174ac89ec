"""The fleet's clock in a node (shared/fleet_clock.py).

The main process reads it in its housekeeping thread, a child over a connection of its own.
"""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.fleet_clock import FleetClock

#: Time limit of Redis to connect and to answer, seconds.
_REDIS_S = 1.0

fleet_clock = FleetClock()


def read_in_child(redis_url: str) -> None:
    """Let this process, which forks no others, read the clock when it needs it."""
    limits = {"socket_timeout": _REDIS_S, "socket_connect_timeout": _REDIS_S, "retry": Retry(NoBackoff(), 1)}
    fleet_clock.ask_with(redis.Redis.from_url(redis_url, **limits).time)
