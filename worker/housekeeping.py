"""The housekeeping thread of a node's main process: it reconciles the ledger and publishes the node's state.

It opens a connection for each transaction, and no child is forked meanwhile (worker/forks.py): a child must not inherit a
live connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import redis
from celery.worker import state as worker_state
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from db.engine import make_engine, set_engine, transact
from db.ledger import attempts
from db.limits import housekeeping_limits
from shared import nodes, queue_lengths
from shared.admission import Limits, publish_limits
from shared.errors import DatabaseBusy, DatabaseUnavailable, ScenefleetError, StatementTimeout
from shared.kept_vectors import publish_active
from shared.logs import get_logger
from shared.settings import Settings
from worker import reconcile
from worker.broker.celery_patches import Channel
from worker.broker.clock import fleet_clock
from worker.forks import forks
from worker.node import Node
from worker.telemetry.node import Telemetry
from worker.telemetry.watchdog import Watchdog

log = get_logger(__name__)

_PUBLISH_S = 5.0
#: The key in Redis that exists after a node has reconciled, and its longest life: nodes may have other intervals.
_RECONCILED, _RECONCILED_S = "scenefleet:reconciled", 5.0
#: Jobs of dead children are looked for during this time after a child has ended or started, and at this interval, seconds.
_AFTER_CHANGE_S, _LOST_S = 10.0, 30.0
#: Time limit of Redis to connect and to answer: a fork may be waiting.
_REDIS_S = 2.0
#: How long a stopping node waits for the current tick.
_LEAVE_S = 10.0


class Housekeeping:
    """Runs until the process ends; ``leave`` releases the node's jobs."""

    def __init__(self, node: Node, settings: Settings, telemetry: Telemetry, watchdog: Watchdog) -> None:
        self.children: Callable[[], set[int]] = set
        self._node = node
        self._telemetry, self._watchdog = telemetry, watchdog
        self.request_queues = telemetry.request_queues
        self._settings = settings
        self._wake = threading.Event()
        self.stopping = False
        self._leaving = False
        self._thread: threading.Thread | None = None
        self._published_at = 0.0
        #: The children at the last tick, when they changed (None: that is settled), and the last look for lost jobs.
        self._last_children: set[int] | None = None
        self._changed_at: float | None = 0.0
        self._looked_at = 0.0

    def start(self) -> None:
        """Start the thread, once: Celery calls this again after a lost broker connection."""
        if self._thread is not None:
            return
        limits = housekeeping_limits(self._settings)
        set_engine(forks.watch(make_engine(self._settings.database_url, pooled=False, limits=limits)))
        forks.install()
        with self._redis("clock not read") as client:
            fleet_clock.read(client.time)
        self._telemetry.serve()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Note that the node stops: it ends its own children from now on."""
        self.stopping = True

    def wake(self) -> None:
        """Publish the node's state now."""
        self._published_at = 0.0
        self._wake.set()

    def _run(self) -> None:
        while not self._leaving:
            self._wake.wait(self._settings.reconcile_s)
            self._wake.clear()
            if self._leaving:
                return
            try:
                self._tick()
            except ScenefleetError as error:
                log.warning("reconcile put off", error=error)
            except Exception:
                log.exception("reconcile failed")

    def _tick(self) -> None:
        # One node per interval; without Redis, each node.
        is_first = True
        with self._redis("state not published") as client:
            fleet_clock.read(client.time)
            if time.monotonic() - self._published_at >= _PUBLISH_S:
                self._look_at_queues(client)
                publish_limits(client, self.request_queues, Limits.of(self._settings))
                nodes.publish(client, {**self._node.describe(), "telemetry": self._telemetry.record()})
                publish_active(client, self._node.active_embedders())
                self._published_at = time.monotonic()
            life_s = min(0.9 * self._settings.reconcile_s, _RECONCILED_S)
            is_first = bool(client.set(_RECONCILED, self._node.name, nx=True, px=max(1, int(1000 * life_s))))
        try:
            self._free_lost_jobs()
            if is_first:
                reconcile.fleet()
        except DatabaseUnavailable as error:
            self._telemetry.note_database(isinstance(error, (DatabaseBusy, StatementTimeout)))
            raise

    def _look_at_queues(self, client: redis.Redis) -> None:
        """Note how many requests wait, and whether the consumer leaves messages to idle children."""
        pipeline = client.pipeline(transaction=False)
        for queue in self._node.family.queues:
            pipeline.llen(queue)
        # A key that is no list counts as an empty queue.
        found = pipeline.execute(raise_on_error=False)
        lengths = {
            queue: length if isinstance(length, int) else 0
            for queue, length in zip(self._node.family.queues, found, strict=True)
        }
        self._telemetry.sample(self._waiting_requests(lengths))
        idle = self._node.state == "ready" and not worker_state.reserved_requests
        self._watchdog.note_queue(sum(lengths.values()), idle, Channel.taken)

    def _waiting_requests(self, lengths: Mapping[str, int]) -> int:
        """Messages in the queues of requests; ``lengths``: of the lists in Redis, which are empty with RabbitMQ."""
        if not self._settings.broker_url:
            return sum(lengths[queue] for queue in self.request_queues)
        if not self.request_queues:
            return 0
        connection = Connection(self._settings.broker_url, connect_timeout=_REDIS_S)
        try:
            with connection:
                return sum(queue_lengths.waiting(connection, self.request_queues).values())
        except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors):
            # The consumer says so in the log.
            return 0

    def _free_lost_jobs(self) -> None:
        """Free the jobs of dead children; without a change of children rarely, because it asks Postgres."""
        now, children = time.monotonic(), self.children()
        if children != self._last_children:
            self._last_children, self._changed_at = children, now
        if self._changed_at is None and now - self._looked_at < _LOST_S:
            return
        with reconcile.guarded("own_children"):
            reconcile.own_children(self._node.name, self._node.life, self._live_children)
            self._telemetry.note_database(True)
            self._looked_at = now
            if self._changed_at is not None and now - self._changed_at >= _AFTER_CHANGE_S:
                self._changed_at = None

    def _live_children(self) -> set[int] | None:
        live = self.children()
        return None if self.stopping else live

    @contextmanager
    def _redis(self, failed: str) -> Iterator[redis.Redis]:
        # The default is ten tries with this timeout each.
        options = {
            "socket_timeout": _REDIS_S,
            "socket_connect_timeout": _REDIS_S,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            with forks.held_off(), redis.Redis.from_url(self._settings.redis_url, **options) as client:
                yield client
        except RedisError as error:
            log.warning(failed, error=error)

    def leave(self) -> None:
        """Release the jobs of a stopping node at once, and remove it from the list of nodes; only the first call does."""
        if self._leaving:
            return
        self._leaving = True
        self._wake.set()
        if self._thread is None:
            return
        # Its transactions may overlap with what follows; it only must not publish a state after that.
        self._thread.join(_LEAVE_S)
        try:
            with forks.held_off():
                released = transact(lambda session: attempts.release(session, self._node.owner_prefix))
            if released:
                log.info("jobs released", count=released)
        except DatabaseUnavailable as error:
            log.warning("leases run out by themselves", error=error)
        with self._redis("state not withdrawn") as client:
            nodes.withdraw(client, self._node.name)
