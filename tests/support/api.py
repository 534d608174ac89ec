"""A real `scenefleet api` over a fleet of tests."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from tests.support import fork_server
from tests.support.fleet import ROOT, Fleet
from tests.support.fork_server import RunningProcess


class Api:
    """One API process on a port that it keeps over restarts."""

    def __init__(self, fleet: Fleet, name: str = "api", *, forked: bool = True, **environment: str) -> None:
        self._fleet, self._environment = fleet, environment
        #: A forked process shares the memory of the fork server, which counts as its own.
        self._forked = forked
        self.log = fleet.home / "logs" / f"{name}.log"
        self.port = 0
        self.process: RunningProcess | None = None

    @property
    def url(self) -> str:
        """Its address, without a path and a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, within_s: float = 60) -> None:
        """Start it and return when it answers."""
        told = self.log.with_suffix(".out")
        environment = {"API_PORT": str(self.port), "SCENEFLEET_USER": "local", **self._environment}
        command = [sys.executable, "-m", "cli", "api"]
        full = self._fleet.process_environment(**environment)
        told.write_bytes(b"")
        self.process = fork_server.start(
            command, full, cwd=ROOT, output=told, errors=self.log, fork=self._forked
        )
        deadline = time.monotonic() + within_s
        while not self._answers(told):
            assert self.process.poll() is None, f"the API left:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"the API does not answer:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def _answers(self, told: Path) -> bool:
        line = told.read_text()
        if not line.endswith("\n"):
            return False
        self.port = int(line.split(" ")[0].rpartition(":")[2])
        try:
            httpx.get(f"{self.url}/api/v1/health", timeout=5)
        except httpx.TransportError:
            return False
        return True

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=10)

    def stop(self) -> None:
        """Stop it as a supervisor does, and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()

    def restart(self) -> None:
        """Stop it, unless it was killed, and start it on the same port."""
        self.stop()
        self.start()

    @property
    def memory_mb(self) -> float:
        """Its resident memory."""
        assert self.process is not None
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)
