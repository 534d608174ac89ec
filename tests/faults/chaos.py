"""Breaks a running fleet at random moments, and restarts what a supervisor would restart.

Every fault is real: signals to processes, servers stopped and killed, FLUSHALL, the storage folder renamed away, a
full file system. Moments, kinds and victims come from one seeded generator; what happened is kept for the report.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import redis

from shared.client import Client
from shared.errors import Outage, WorkerLost
from shared.storage import upload_key
from tests.faults.material import Source
from tests.support.fleet import Fleet
from tests.support.services import PostgresServer, RedisServer


class Fault(NamedTuple):
    """One thing that was broken."""

    kind: str
    #: Jobs that were running at that moment.
    running: int


class FullDisk:
    """Makes the storage (and the nodes' working folders) refuse to grow, by the kernel's own word.

    Where file systems may be mounted (root with that right), the storage lies on a small tmpfs, which is filled up:
    ENOSPC. Elsewhere the nodes' processes get a file-size limit (``prlimit RLIMIT_FSIZE``, which needs no right):
    EFBIG from the same calls.
    """

    _SIZE_BYTES = 64 * 2**20
    #: Less than a clip's audio or a picture of it.
    _LIMIT_BYTES = 8192

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._SIZE_BYTES}", "scenefleet-test", str(root)]
        self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        self.how = "ENOSPC on a full tmpfs" if self.mounted else "EFBIG by RLIMIT_FSIZE"

    def environment(self, home: Path) -> dict[str, str]:
        """For the ``Fleet`` whose storage and working folders are to lie on this disk."""
        (self.root / "work").mkdir()
        home.mkdir(parents=True, exist_ok=True)
        (home / "work").symlink_to(self.root / "work")
        # A folder below the mount point: that itself could not be renamed away.
        return {"STORAGE_ROOT": str(self.root / "storage")}

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.root)], check=True)

    def full(self, fleet: Fleet) -> AbstractContextManager[None]:
        return self._filled() if self.mounted else self._limited(fleet)

    @contextmanager
    def _filled(self) -> Iterator[None]:
        ballast = self.root / "ballast"
        try:
            with ballast.open("wb", buffering=0) as sink:
                for size_bytes in (2**20, 4096, 1):
                    with suppress(OSError):  # as full as it gets with this size
                        while True:
                            sink.write(bytes(size_bytes))
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def _limited(self, fleet: Fleet) -> Iterator[None]:
        limited: list[tuple[psutil.Process, tuple[int, int]]] = []
        for process in children_of(fleet):
            with suppress(psutil.NoSuchProcess):
                before = process.rlimit(psutil.RLIMIT_FSIZE)
                process.rlimit(psutil.RLIMIT_FSIZE, (self._LIMIT_BYTES, before[1]))
                limited.append((process, before))
        try:
            yield
        finally:
            for process, before in limited:
                with suppress(psutil.NoSuchProcess):
                    process.rlimit(psutil.RLIMIT_FSIZE, before)


def children_of(fleet: Fleet) -> list[psutil.Process]:
    """The pool children of all nodes."""
    return [child for node in list(fleet.nodes.values()) for child in node.children]


@dataclass
class Chaos:
    """One fleet, its servers and its storage, and the faults done to them."""

    fleet: Fleet
    postgres: PostgresServer
    redis_server: RedisServer
    disk: FullDisk
    seed: int
    faults: list[Fault] = field(default_factory=list)
    #: Requests and uploads that a client had to send again.
    resent: int = 0
    #: Hands over another video; False: none is left.
    send_more: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.began = time.monotonic()
        self._client = Client(self.fleet.redis_url, timeout_s=6)

    @property
    def kinds(self) -> dict[str, Callable[[], str]]:
        return {
            "pool child kill -9": self.kill_child,
            "node kill -9, restarted": self.kill_node,
            "Redis restart": partial(self._restart, self.redis_server, signal.SIGTERM),
            "Redis kill -9": partial(self._restart, self.redis_server, signal.SIGKILL),
            "Redis FLUSHALL": self.flush_redis,
            "Postgres restart": partial(self._restart, self.postgres, signal.SIGINT),
            "Postgres kill -9": partial(self._restart, self.postgres, signal.SIGKILL),
            "storage away": self.take_storage_away,
            "disk full": self.fill_disk,
        }

    @property
    def rarer_kinds(self) -> dict[str, Callable[[], str]]:
        """Processes that neither answer nor die: only the long run does these."""
        return {
            "pool child frozen": lambda: self._freeze(self.random.choice(children_of(self.fleet))),
            "node frozen": self.freeze_node,
            "Redis frozen": lambda: self._freeze(self.redis_server.process),
            "Postgres frozen": lambda: self._freeze(self.postgres.process),
        }

    def inject(self, kind: str) -> None:
        """Do one fault while something runs, and note it."""
        running = self._wait_running()
        began_s = time.monotonic() - self.began
        detail = {**self.kinds, **self.rarer_kinds}[kind]()
        self.faults.append(Fault(kind, running))
        print(f"  {began_s:6.1f} s  {kind:24} {detail} ({running} jobs were running)", flush=True)

    def pause(self, least_s: float = 0.1, most_s: float = 1.5) -> None:
        """Let a random time pass: the moment of the next fault."""
        time.sleep(self.random.uniform(least_s, most_s))

    def _wait_running(self) -> int:
        """A fault that meets an idle fleet shows nothing: wait for a running job, and see to it that there is one."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            states = [row["state"] for row in self.fleet.rows("SELECT state FROM jobs")]
            if "running" in states:
                return states.count("running")
            if "queued" not in states and not self.send_more():
                return 0
            time.sleep(0.05)
        raise AssertionError("jobs are queued, and none runs for two minutes")

    # --- the faults

    def kill_child(self) -> str:
        """kill -9 a child that runs a job, whatever it has survived (any child, when the job has just ended)."""
        rows = self.fleet.rows("SELECT lease_owner, stage FROM jobs WHERE state = 'running'")
        jobs = {int(row["lease_owner"].rsplit(":", 1)[1]): row for row in rows}
        children = children_of(self.fleet)
        busy = [child for child in children if child.pid in jobs]
        victim = self.random.choice(busy or children)
        victim.kill()
        return f"pid {victim.pid}, stage {jobs[victim.pid]['stage'] if victim.pid in jobs else 'none'}"

    def kill_node(self) -> str:
        name = self.random.choice(sorted(self.fleet.nodes))
        self.fleet.kill(name)
        self.pause(0.0, 1.0)
        self.fleet.restart(name)
        return name

    def flush_redis(self) -> str:
        with redis.Redis.from_url(self.fleet.redis_url) as client:
            keys = client.dbsize()
            client.flushall()
        return f"{keys} keys gone"

    def _restart(self, server: PostgresServer | RedisServer, how: signal.Signals) -> str:
        assert server.process is not None
        backends = psutil.Process(server.process.pid).children(recursive=True)
        server.stop(how)
        # A killed Postgres leaves its backends to notice; a new one refuses to start beside them.
        psutil.wait_procs(backends, timeout=30)
        away_s = self.random.uniform(0.0, 2.0)
        time.sleep(away_s)
        server.start()
        return f"away {away_s:.1f} s and the start"

    def freeze_node(self) -> str:
        name = self.random.choice(sorted(self.fleet.nodes))
        return f"{name}, {self._freeze(self.fleet.nodes[name].process)}"

    def _freeze(self, process: psutil.Process | subprocess.Popen[bytes] | None) -> str:
        """Stop a process and all its children for a while, up to longer than a lease of media."""
        assert process is not None
        root = psutil.Process(process.pid)
        frozen, frozen_s = [root, *root.children(recursive=True)], self.random.uniform(1.0, 8.0)
        for one in frozen:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        time.sleep(frozen_s)
        for one in frozen:
            with suppress(psutil.NoSuchProcess):
                one.resume()
        return f"pid {root.pid} and {len(frozen) - 1} children, {frozen_s:.1f} s"

    def take_storage_away(self) -> str:
        root = self.fleet.storage_root
        away, away_s = root.with_name("away"), self.random.uniform(0.5, 3.0)
        root.rename(away)
        try:
            met = self._until_met(away_s)
        finally:
            away.rename(root)
        return f"away {away_s:.1f} s or more, met by {met}"

    def fill_disk(self) -> str:
        full_s = self.random.uniform(0.5, 3.0)
        with self.disk.full(self.fleet):
            met = self._until_met(full_s)
        return f"{self.disk.how}, full {full_s:.1f} s or more, met by {met}"

    def _until_met(self, least_s: float) -> str:
        """Let ``least_s`` pass, and then up to 5 s more until an attempt or an upload has met the broken storage."""
        began, resent, outages = time.monotonic(), self.resent, self._outages()
        self.send_more()
        while (passed_s := time.monotonic() - began) < least_s + 5:
            attempts = self._outages() - outages
            if passed_s >= least_s and (attempts or self.resent > resent):
                break
            time.sleep(0.05)
        return f"{attempts} attempts, {self.resent - resent} uploads"

    def _outages(self) -> int:
        (row,) = self.fleet.rows("SELECT coalesce(sum(outages), 0) AS n FROM jobs")
        return int(row["n"])

    # --- what goes on meanwhile

    def send(self, source: Source, *, within_s: float = 120) -> None:
        """Store and hand over a video as a client does: again after each outage or dead process, until it has its receipt."""
        key = upload_key(source.user_id, source.video_id, source.path.name)
        deadline = time.monotonic() + within_s
        while True:
            try:
                self.fleet.storage.put_file("uploads", key, source.path, "video/mp4")
                self._client.process(source.video_id, source.user_id, key, priority=source.priority)
                return
            except (Outage, WorkerLost) as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"no receipt for {source.video_id} in {within_s:g} s") from error
                self.resent += 1
                time.sleep(0.2)

    def table(self) -> str:
        """The faults done, by kind."""
        lines = ["| fault | times | jobs running at the time |", "|---|---|---|"]
        for kind in (*self.kinds, *self.rarer_kinds):
            running = [fault.running for fault in self.faults if fault.kind == kind]
            if running:
                lines.append(f"| {kind} | {len(running)} | {sum(running)} |")
        return "\n".join(lines)
