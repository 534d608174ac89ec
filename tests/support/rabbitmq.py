"""A RabbitMQ of a test run: Debian's package, started as a process of its own, not as the service that the package installs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from local.servers.ports import find_free_port
from tests.support.assets import give_up
from tests.support.fleet import eventually

#: Debian's /usr/sbin/rabbitmq-server changes to the service's user first.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")


class RabbitMQServer:
    """Its user is the default one, which may connect from this machine only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = find_free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._epmd_port = find_free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        if not (PROGRAMS / "rabbitmq-server").exists():
            give_up("RabbitMQ is not installed: apt-get install rabbitmq-server, and stop the service")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "plugins").write_text("[].\n")
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAMS / "rabbitmq-server"],
                env=self._environment(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        eventually(self._answers, within_s=120, what=f"RabbitMQ answers (see {self.folder})")

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ["PATH"],
            # Where Erlang keeps the secret that its nodes share.
            "HOME": folder,
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(find_free_port()),
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            # Its own daemon of names, which would outlive it.
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # An idle Erlang spins otherwise.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (
            self.folder / "server.log"
        ).read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                # Anything else than the protocol's header is answered with the server's.
                connection.sendall(b"HELLO\r\n\r\n")
                return connection.recv(8).startswith(b"AMQP")
        except OSError:
            return False

    def stop(self) -> None:
        """End the server and its daemon of names."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(timeout=10)
            self._process = None
            subprocess.run(["epmd", "-port", str(self._epmd_port), "-kill"], capture_output=True, timeout=30)
