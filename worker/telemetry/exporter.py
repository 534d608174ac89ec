"""`scenefleet exporter`: the metrics of the whole fleet, read from the ledger and Redis, and the addresses of its nodes.

It only reads, in transactions that can't write, with short limits. However often it is asked, it looks every ``KEPT_S``.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import redis
from kombu import Connection
from kombu.exceptions import OperationalError
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from db.engine import reading_only, statements_may_take
from db.ledger import overview
from shared import admission, api_processes, http_pages as http, nodes, queue_lengths, routing, scaling
from shared.contracts.fleet import QueueView
from shared.errors import BrokerUnavailable, DatabaseUnavailable, StatementTimeout
from shared.logs import get_logger
from shared.settings import Settings
from worker.telemetry import metrics

log = get_logger(__name__)
T = TypeVar("T")

#: An answer is kept so long; those that read a whole table longer. Limit of a statement. Seconds.
KEPT_S, KEPT_TABLES_S, STATEMENT_S = 10.0, 60.0, 5.0
DEFAULT_PORT = 9464
#: A user's id can't be empty: the label of all users that are not shown.
OTHERS = ""


class _Kept:
    """An answer that is computed at most every ``kept_s`` seconds."""

    def __init__(self, kept_s: float, compute: Callable[[], Any]) -> None:
        self._kept_s, self._compute = kept_s, compute
        self._at_s = float("-inf")
        self._answer: Any = None

    def __call__(self) -> Any:
        if time.monotonic() - self._at_s >= self._kept_s:
            self._answer = self._compute()
            self._at_s = time.monotonic()
        return self._answer


class Exporter(Collector):
    """The metrics of the fleet."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Asked by several threads at once; one looks.
        self._lock = threading.Lock()
        self._look = _Kept(KEPT_S, self._families)
        self._tables = _Kept(KEPT_TABLES_S, self._of_tables)
        self._queues = sorted({*routing.TASK_QUEUE.values()})
        #: Queue -> hash of the message at its head, and when it was first seen there, monotonic.
        self._heads: dict[str, tuple[int, float]] = {}
        self._answers = {"database": True, "redis": True, **({"broker": True} if settings.broker_url else {})}

    def collect(self) -> Iterable[Family]:
        with self._lock:
            found: list[Family] = self._look()
            return found

    def targets(self) -> http.Answer:
        """The nodes and API processes that serve metrics, for Prometheus's HTTP service discovery."""
        try:
            records = nodes.read_nodes(self._settings.redis_url)
            with self._redis() as client:
                apis = api_processes.read(client)
        except (BrokerUnavailable, redis.RedisError) as error:
            return 503, http.TEXT, f"{error}\n".encode()
        found = [
            {"targets": [record.telemetry["metrics"]], "labels": {"node": name, "family": record.family}}
            for name, record in sorted(records.items())
            if record.telemetry.get("metrics")
        ]
        found += [{"targets": [address], "labels": {"job": "scenefleet-api"}} for address in apis]
        return 200, http.JSON, json.dumps(found).encode()

    def ready(self) -> http.Answer:
        """Whether the last look reached both servers."""
        with self._lock:
            self._look()
            ok = all(self._answers.values())
        return 200 if ok else 503, http.JSON, json.dumps(self._answers).encode()

    def _families(self) -> list[Family]:
        made = {
            metric.name: metrics.family_of(metric.name)
            for metric in metrics.METRICS
            if metric.source == "exporter"
        }

        def add(name: str, value: float | None, *labels: str) -> None:
            if value is not None:
                made[f"scenefleet_{name}"].add_metric(labels, value)

        queues: tuple[QueueView, ...] = self._try("database", lambda: self._of_ledger(add)) or ()
        records = self._try("redis", lambda: self._of_redis(add)) or {}
        states = Counter((record.family, record.state) for record in records.values())
        for (family, state), count in states.items():
            add("nodes", count, family, state)
        for view in scaling.views(records.values(), queues):
            add("scale_advice", view.level, view.family)
            add("concurrent_requests", view.concurrent_1m, view.family, "1m")
            add("concurrent_requests", view.concurrent, view.family, "5m")
            add("request_mean_seconds", view.mean_ms / 1000, view.family, "5m")
        for server, answers in self._answers.items():
            add(f"{server}_up", answers)
        return list(made.values())

    def _try(self, server: str, look: Callable[[], T]) -> T | None:
        """Look at a server; None, noted once in the log, if it does not answer."""
        try:
            found = look()
        except (DatabaseUnavailable, BrokerUnavailable, redis.RedisError, OperationalError, OSError) as error:
            if self._answers[server]:
                log.warning("server does not answer", server=server, problem=type(error).__name__)
            self._answers[server] = False
            return None
        if not self._answers[server]:
            log.info("server answers again", server=server)
        self._answers[server] = True
        return found

    def _read(self, look: Callable[[Session], T]) -> T:
        with statements_may_take(STATEMENT_S), reading_only() as session:
            return look(session)

    def _of_ledger(self, add: Callable[..., None]) -> tuple[QueueView, ...]:
        queues = self._read(overview.queues)
        for view in queues:
            for name in ("waiting", "running", "deferred", "failed"):
                add(f"queue_{name}", getattr(view, name), view.queue)
            add("queue_oldest_seconds", view.oldest_s or 0.0, view.queue)
            add("queue_backlog_seconds", view.backlog_s, view.queue)
        for stage, state, count in self._read(overview.jobs):
            add("jobs", count, stage, state)
        for queue, seconds in self._read(overview.device_seconds).items():
            add("device_seconds", seconds, queue)
        if self._settings.metrics_users:
            top = self._settings.metrics_users
            for queue, account, seconds in self._read(
                lambda session: overview.device_seconds_of_users(session, top)
            ):
                add("user_device_seconds", seconds, queue, account or OTHERS)
        videos, seconds = self._read(overview.indexed_lately)
        add("indexed_hour_videos", videos)
        add("indexed_hour_hours", seconds / 3600)
        add("realtime_factor", seconds / 3600)
        size_bytes, by_state = self._tables()
        add("database_bytes", size_bytes)
        for state, count, seconds in by_state:
            add("videos", count, state)
            add("video_hours", seconds / 3600, state)
        return queues

    def _of_tables(self) -> tuple[int | None, list[tuple[str, int, float]]]:
        """The size of the database, and the videos by state; nothing for a while if there are too many to count."""
        try:
            return self._read(overview.size_bytes), self._read(overview.videos)
        except StatementTimeout:
            log.warning("videos not counted", limit_s=STATEMENT_S)
            return None, []

    def _of_redis(self, add: Callable[..., None]) -> dict[str, nodes.NodeRecord]:
        with self._redis() as client:
            pipeline = client.pipeline(transaction=False)
            for queue in self._queues:
                pipeline.llen(queue)
                pipeline.lindex(queue, -1)
            *answers, memory = pipeline.info("memory").execute(raise_on_error=False)
            self._of_admission(client, add)
        add("redis_memory_bytes", memory["used_memory"])
        if self._settings.broker_url:
            self._try("broker", lambda: self._of_rabbitmq(add))
        else:
            self._of_lists(answers, add)
        return nodes.read_nodes(self._settings.redis_url)

    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(self._settings.redis_url, socket_connect_timeout=2, socket_timeout=3)

    def _of_admission(self, client: redis.Redis, add: Callable[..., None]) -> None:
        for queue, items in admission.held_items(client, self._queues).items():
            add("reserved_items", items, queue)
        for (queue, reason), count in admission.refusals(client).items():
            add("admission_rejected_total", count, queue, reason)

    def _of_rabbitmq(self, add: Callable[..., None]) -> None:
        """The lengths of the queues; RabbitMQ does not tell how old a message is."""
        with Connection(self._settings.broker_url, connect_timeout=2) as connection:
            for queue, length in queue_lengths.waiting(connection, self._queues).items():
                add("queue_waiting", length, queue)

    def _of_lists(self, answers: Sequence[Any], add: Callable[..., None]) -> None:
        """The lengths of the queues as Redis has them, pairs of length and head, and how long their heads have stayed."""
        now_s, heads = time.monotonic(), {}
        for queue, length, head in zip(self._queues, answers[::2], answers[1::2], strict=True):
            if isinstance(length, redis.ResponseError):
                log.error("queue not looked at", queue=queue, problem=str(length))
                continue
            add("queue_waiting", length, queue)
            if head is not None:
                before = self._heads.get(queue)
                heads[queue] = (
                    before if before is not None and before[0] == hash(head) else (hash(head), now_s)
                )
            add("queue_oldest_seconds", now_s - heads[queue][1] if queue in heads else 0.0, queue)
        self._heads = heads


def serve(settings: Settings) -> http.HttpServer:
    """Start to serve the fleet's metrics.

    Raises:
        InvalidRequest: no server is configured.
        Outage: METRICS_HOST is not an address of this machine.
    """
    settings.require("redis_url")
    settings.require("postgres_url")
    exporter = Exporter(settings)
    registry = CollectorRegistry()
    registry.register(exporter)
    pages = {
        "/metrics": metrics.page_of(registry),
        "/targets": exporter.targets,
        "/livez": lambda: (200, http.JSON, b'{"live": true}\n'),
        "/readyz": exporter.ready,
    }
    port = DEFAULT_PORT if settings.metrics_port is None else settings.metrics_port
    server = http.HttpServer(settings.metrics_host, port, pages)
    server.start()
    return server
