"""Where the metrics of API processes are: a sorted set in Redis, address -> time of its last update. They write, the exporter reads."""

from __future__ import annotations

import time
from typing import Any

KEY = "scenefleet:api-metrics"
#: Interval of updates, and time after which a process counts as gone, seconds.
PUBLISH_S, TTL_S = 5.0, 30.0


def read(client: Any) -> list[str]:
    """The addresses of those that have published lately, with a redis.Redis and its errors; forgets the others."""
    client.zremrangebyscore(KEY, "-inf", time.time() - TTL_S)
    return sorted(name.decode() if isinstance(name, bytes) else name for name in client.zrange(KEY, 0, -1))
