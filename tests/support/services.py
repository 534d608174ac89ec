"""Real servers for tests: Postgres and Redis of their own, which a test may stop, kill and start again."""

from __future__ import annotations

import secrets
import signal
import subprocess
from pathlib import Path
from typing import IO

import psycopg

from db import schema
from local.servers import postgres, redis_server
from local.servers.ports import find_free_port
from shared.errors import InvalidRequest
from tests.support.assets import give_up

TEMPLATE = "template_scenefleet"


class Server:
    """A server process with a fixed address over its restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = find_free_port()
        self.password = secrets.token_hex(8)
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._sink: IO[bytes] | None = None

    def _spawn(self, command: list[str], cwd: Path) -> None:
        self._sink = self.log.open("ab")
        self.process = subprocess.Popen(
            command, cwd=cwd, stdout=self._sink, stderr=self._sink, stdin=subprocess.DEVNULL
        )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop and wait. SIGINT is a fast, clean stop for both servers."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=60)
            self.process = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None


def start_or_give_up(server: PostgresServer | RedisServer) -> None:
    """Start a server; a test that needs what is not installed skips locally and fails in CI."""
    try:
        server.start()
    except InvalidRequest as error:
        give_up(str(error))


class PostgresServer(Server):
    """Its ``url`` is the superuser's."""

    def start(self) -> str:
        data = self.folder / "data"
        postgres.prepare(data, self.password, self.log)
        self.spawn()
        return postgres.wait_until_ready(self.port, self.password, self.password, log=self.log)

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        # Not for speed: tests must not wait for the disk of a busy machine.
        self._spawn(
            [*postgres.server_command(self.folder / "data", self.port), "-c", "fsync=off"], self.folder
        )

    def url(self, database: str = "postgres") -> str:
        return postgres.server_url(self.port, self.password, database, user=postgres.ADMIN)

    def create_template(self) -> None:
        """Make the migrated database that others are copied from."""
        self.execute(f"CREATE DATABASE {TEMPLATE}")
        schema.upgrade(url=self.url(TEMPLATE).replace("postgresql://", "postgresql+psycopg://"))

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)


class RedisServer(Server):
    @property
    def url(self) -> str:
        return redis_server.server_url(self.port, self.password)

    def start(self) -> str:
        redis_server.prepare(self.folder, self.port, self.password)
        self._spawn(redis_server.server_command(), self.folder)
        return redis_server.wait_until_ready(self.url, log=self.log)
