"""A fleet of real worker processes over real servers, for acceptance tests and the runs of faults."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import redis
from psycopg.rows import dict_row

from shared.client import Client
from shared.contracts import VideoStatus
from shared.nodes import state_key
from shared.routing import gate_queue
from shared.storage import Bucket, StorageConfig, open_storage, upload_key
from tests.support import fork_server
from tests.support.fork_server import RunningProcess
from tests.support.services import TEMPLATE, PostgresServer, RedisServer

ROOT = Path(__file__).parents[2]
FAMILIES = ("media", "asr", "text", "face", "ocr", "housekeeping", "search")
ENDED = ("indexed", "partial", "failed", "cancelled")
T = TypeVar("T")

_numbers = itertools.count(1)


def eventually(look: Callable[[], T], *, within_s: float, what: str, every_s: float = 0.2) -> T:
    """The first true value of ``look``; fails the test with ``what`` when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(every_s)


def kept_environment() -> dict[str, str]:
    """What a process that a test starts keeps of this one's environment: no setting; how to measure coverage."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_CONFIG")
    return {name: os.environ[name] for name in kept if name in os.environ}


def run_to_end(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    cwd: Path = ROOT,
    timeout_s: float,
) -> subprocess.CompletedProcess[str]:
    """Run a program away from any terminal. ``environment``: None for that of this process."""
    full = os.environ if environment is None else environment
    return fork_server.run_to_end(command, full, cwd=cwd, timeout_s=timeout_s)


@dataclass(frozen=True)
class NodeProcess:
    """One ``celery worker`` and its log."""

    name: str
    family: str
    process: RunningProcess
    log: Path
    concurrency: int
    environment: dict[str, str]

    @property
    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []


class Fleet:
    """Nodes over one database, one Redis and one folder of objects."""

    def __init__(self, home: Path, postgres_url: str, redis_url: str, **environment: str) -> None:
        self.home = home
        self.postgres_url, self.redis_url = postgres_url, redis_url
        self.environment = {
            "SCENEFLEET_LOG_FORMAT": "console",
            # PocketSphinx holds the GIL for seconds on a busy machine: no beat meanwhile.
            "LEASE_S": "30",
            "HEARTBEAT_S": "1",
            # An idle fleet that reconciles twice a second takes a third of a core.
            "RECONCILE_S": "2",
            "BACKOFF_S": "0.2",
            "BACKOFF_MAX_S": "2",
            "SOFT_SHUTDOWN_S": "2",
            "SCENEFLEET_MODEL_THREADS": "1",
            **environment,
        }
        self.nodes: dict[str, NodeProcess] = {}
        # Tests poll: a connection for each question would cost more than the question.
        self._connection: psycopg.Connection[dict[str, Any]] | None = None
        self._asking = threading.Lock()
        #: Nodes that still ran when a test that came after a failed one started others under their names.
        self._replaced: list[NodeProcess] = []
        #: What its nodes are: a benchmark has others to compare with.
        self.app = "worker.app"
        #: Let another process write the nodes' logs, so that nodes can be kept from writing to any file.
        self.pipe_logs = False
        self.storage_root = Path(environment.get("STORAGE_ROOT", home / "storage"))
        self.storage = open_storage(StorageConfig(backend="local", root=self.storage_root))
        self.storage.ensure_buckets()
        broker_url = environment.get("BROKER_URL", "")
        self.client = Client(redis_url, broker_url=broker_url, timeout_s=30)
        (home / "logs").mkdir(parents=True, exist_ok=True)

    # --- nodes

    def start(
        self, *families: str, concurrency: int = 1, name: str | None = None, **environment: str
    ) -> None:
        """Start nodes and return at once."""
        for family in families or FAMILIES:
            self._start(name or family, family, concurrency, environment)

    def _start(self, name: str, family: str, concurrency: int, environment: dict[str, str]) -> None:
        log = self.home / "logs" / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", self.app, "worker", "-n", f"{name}@%h",
                   "-Q", gate_queue(family), "-c", str(concurrency), "-l", "INFO", "--without-mingle"]  # fmt: skip
        full = self.process_environment(SCENEFLEET_FAMILY=family, REMAP_SIGTERM="SIGQUIT", **environment)
        with self._log_sink(log) as sink:
            process = fork_server.start(
                command, full, cwd=ROOT, output=sink, errors=sink, fork=not self.pipe_logs
            )
        if name in self.nodes and self.nodes[name].process.poll() is None:
            self._replaced.append(self.nodes[name])
        self.nodes[name] = NodeProcess(name, family, process, log, concurrency, environment)

    @contextmanager
    def _log_sink(self, log: Path) -> Iterator[Path]:
        """What a node writes to: its log, or a pipe to the process that writes it."""
        if not self.pipe_logs:
            yield log
            return
        with log.open("ab") as sink:
            writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sink, start_new_session=True)
        assert writer.stdin is not None
        with writer.stdin as pipe:
            yield Path(f"/dev/fd/{pipe.fileno()}")

    def restart(self, name: str) -> None:
        """Start a node that has left or was killed as it was started before, as a supervisor does."""
        node = self.nodes[name]
        assert node.process.poll() is not None, f"node {name} still runs"
        self._start(name, node.family, node.concurrency, node.environment)

    def process_environment(self, **more: str) -> dict[str, str]:
        return {
            **kept_environment(),
            "POSTGRES_URL": self.postgres_url,
            "REDIS_URL": self.redis_url,
            "SCENEFLEET_HOME": str(self.home),
            **self.environment,
            **more,
        }

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the `scenefleet` command against this fleet to its end, away from any terminal."""
        arguments = (sys.executable, "-m", "cli", *arguments)
        return run_to_end(arguments, self.process_environment(**environment), timeout_s=300)

    def peaks_mb(self, *names: str) -> dict[int, float]:
        """The most memory each process of these nodes has ever held, MiB, by process id."""
        held = {}
        for name in names:
            node = self.nodes[name]
            for pid in (node.process.pid, *(child.pid for child in node.children)):
                status = Path(f"/proc/{pid}/status").read_text()
                held[pid] = int(status.split("VmHWM:")[1].split()[0]) / 1024
        return held

    def node_states(self) -> dict[str, dict[str, str]]:
        """What each node publishes in Redis."""
        host = os.uname().nodename
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            return {name: client.hgetall(state_key(f"{name}@{host}")) for name in self.nodes}

    def wait_ready(self, *names: str, within_s: float = 90) -> None:
        wanted = names or tuple(self.nodes)

        def ready() -> bool:
            for name in wanted:
                status = self.nodes[name].process.poll()
                assert status is None, f"node {name} left with {status}:\n{self.log(name)[-3000:]}"
            states = self.node_states()
            return all(
                (states[name].get("state"), states[name].get("pid"))
                == ("ready", str(self.nodes[name].process.pid))
                for name in wanted
            )

        eventually(ready, within_s=within_s, what=f"nodes {', '.join(wanted)} are ready")

    def kill(self, name: str) -> None:
        """kill -9 the whole node; ``restart`` starts it again."""
        node = self.nodes[name]
        children = node.children
        node.process.kill()
        node.process.wait(timeout=30)
        psutil.wait_procs(children, timeout=30)

    def kill_child(self, name: str) -> bool:
        """kill -9 one pool child. False when there is none at the moment."""
        children = self.nodes[name].children
        if children:
            children[0].kill()
        return bool(children)

    def stop(self, *names: str) -> None:
        """Stop nodes as a supervisor would, and wait."""
        self._stop([self.nodes.pop(name) for name in names or tuple(self.nodes)])

    def _stop(self, stopping: list[NodeProcess]) -> None:
        for node in stopping:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        for node in stopping:
            try:
                node.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                os.killpg(node.process.pid, signal.SIGKILL)
                node.process.wait(timeout=10)

    def log(self, name: str) -> str:
        return (self.home / "logs" / f"{name}.log").read_text(errors="replace")

    # --- work

    def upload(self, path: Path, video_id: str, user_id: str = "u1", name: str | None = None) -> str:
        """Store a file as a user's source video; returns its key."""
        key = upload_key(user_id, video_id, name or path.name)
        self.storage.put_file("uploads", key, path, "video/mp4")
        return key

    def process(self, path: Path, video_id: str, user_id: str = "u1", **options: Any) -> None:
        key = self.upload(path, video_id, user_id)
        self.client.process(video_id, user_id, key, **options)

    def wait_ended(
        self, video_ids: Iterable[str], *, within_s: float, user_id: str = "u1"
    ) -> dict[str, VideoStatus]:
        """Wait until every video has ended, whatever way; read from Postgres, so that it works while Redis is away."""
        wanted = list(video_ids)

        def ended() -> bool:
            rows = self.rows(
                "SELECT state FROM videos WHERE user_id = %s AND external_id = ANY(%s)", user_id, wanted
            )
            return len(rows) == len(wanted) and all(row["state"] in ENDED for row in rows)

        with self.jobs_shown():
            eventually(ended, within_s=within_s, what=f"videos {wanted} have ended")
        return {video_id: self.client.status(video_id, user_id) for video_id in wanted}

    @contextmanager
    def jobs_shown(self) -> Iterator[None]:
        """Add the jobs that have not ended to a failure of the block."""
        try:
            yield
        except AssertionError as error:
            jobs = self.rows(
                "SELECT video_id, stage, part, state, attempt, failures, outages, lease_owner, not_before, error"
                " FROM jobs WHERE state NOT IN ('done', 'skipped', 'reused') ORDER BY job_id LIMIT 50"
            )
            raise AssertionError("\n".join(map(str, [error, *jobs]))) from None

    def wait_for(
        self, video_id: str, state: str = "indexed", user_id: str = "u1", *, within_s: float = 120
    ) -> VideoStatus:
        """The status of a video that has ended; fails the test when it ended in another state."""
        status = self.wait_ended([video_id], within_s=within_s, user_id=user_id)[video_id]
        assert status.state == state, status
        return status

    def wait_rendition(self, video_id: str, user_id: str = "u1") -> None:
        """Wait until a video's rendition has ended: after its run is published, and behind what others wait for."""

        def ended() -> bool:
            stages = {stage.stage: stage.state for stage in self.client.status(video_id, user_id).stages}
            return stages["rendition"] not in ("pending", "queued", "running")

        with self.jobs_shown():
            eventually(ended, within_s=180, what=f"the rendition of {video_id} has ended")

    def wait_swept(self, video_id: str, user_id: str = "u1") -> None:
        """Wait until nothing is left of the runs that a video's published run replaced: its jobs that are due have ended."""
        due = "state IN ('queued', 'running') AND not_before < now()"
        with self.jobs_shown():
            eventually(
                lambda: not self.of_video("jobs", video_id, due, user_id=user_id),
                within_s=60,
                what=f"{video_id} is swept",
            )

    def index(self, path: Path, video_id: str, user_id: str = "u1") -> VideoStatus:
        self.process(path, video_id, user_id)
        return self.wait_for(video_id, user_id=user_id, within_s=300)

    @property
    def database(self) -> str:
        """The name of its database."""
        return self.postgres_url.rpartition("/")[2]

    def rows(self, query: str, *values: Any, **named: Any) -> list[dict[str, Any]]:
        """Ask Postgres; again while it is away."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with self._asking:
                    return self._connected().execute(query, named or values).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _connected(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self.postgres_url, row_factory=dict_row, connect_timeout=5, autocommit=True
            )
        return self._connection

    def of_video(
        self, table: str, video_id: str, where: str = "true", *, user_id: str = "u1"
    ) -> list[dict[str, Any]]:
        """The rows of a table that belong to a video, or to a scene of it, by the id that its user chose."""
        column = "scene_id" if table in ("embeddings", "faces", "screen_texts") else "video_id"
        found = f"SELECT {column} FROM videos LEFT JOIN scenes USING (video_id) WHERE external_id = %s AND videos.user_id = %s"
        return self.rows(
            f"SELECT * FROM {table} WHERE {column} IN ({found}) AND ({where})", video_id, user_id
        )

    def objects(self, bucket: Bucket = "sidecars") -> dict[str, bytes]:
        """Every object of a bucket."""
        return {
            found.key: self.storage.get_bytes(bucket, found.key) for found in self.storage.list(bucket, "")
        }

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self.stop()
        # They would go on writing their states to a Redis that other fleets use too.
        self._stop(self._replaced)
        shutil.rmtree(self.home / "work", ignore_errors=True)


def full_profile(models: Path) -> dict[str, str]:
    """The environment of nodes of profile `full` with this catalogue, which look nothing up on a network."""
    full = {"SCENEFLEET_PROFILE": "full", "SCENEFLEET_MODELS_FILE": str(models)}
    return {**full, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@contextmanager
def fleet_over(
    postgres: PostgresServer, redis_server: RedisServer, home: Path, **environment: str
) -> Iterator[Fleet]:
    """A fleet over an empty, migrated database of its own and an emptied Redis; whoever asks for it starts its nodes."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    name = f"fleet_{os.getpid()}_{next(_numbers)}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    try:
        fleet = Fleet(home, postgres.url(name), redis_server.url, **environment)
        try:
            yield fleet
        finally:
            fleet.close()
    finally:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")
