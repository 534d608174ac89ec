"""Starts a node: its children load their models before it consumes its queues.

Celery serves tasks before ``worker_process_init`` has ended, and swallows its exceptions. So a node starts on a private
queue. Each child writes LOADING, READY or FAILED to shared memory, and a timer in the main process consumes the real
queues while all children are READY. A child whose load fails exits with ``ExitStatus.CONFIG``; so does the node after three
such loads, or after one with a permanent error.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress
from typing import Any

from celery import bootsteps, signals
from celery.worker import state as worker_state
from kombu.common import ignore_errors

from shared import routing
from shared.admission import Limits
from shared.errors import Conflict
from shared.exit_status import ExitStatus
from shared.logs import get_logger
from shared.settings import get_settings
from worker import control
from worker.broker.celery_patches import allow_early_exits, announce_stop, stop_replacing_children
from worker.housekeeping import Housekeeping
from worker.node import Node
from worker.online.dispatcher import Dispatcher
from worker.online.operations import OPERATIONS
from worker.online.overload import refuse_newest
from worker.online.vectors import use_store
from worker.runtime import get_runtime
from worker.telemetry import metrics, request_signals
from worker.telemetry.node import Telemetry
from worker.telemetry.watchdog import Watchdog

log = get_logger(__name__)

_LOOK_S = 0.5
#: Of the connection to RabbitMQ from which a node takes its messages.
_HEARTBEAT_S = 30


def _live_children(consumer: Any) -> set[int]:
    pool = getattr(consumer.pool, "_pool", None)
    return {process.pid for process in getattr(pool, "_pool", []) if process.pid and process.exitcode is None}


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Gate(bootsteps.StartStopStep):
    """Consumes the node's queues while its children are ready; starts the housekeeping thread."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    node: Node
    limits: Limits
    housekeeping: Housekeeping
    watchdog: Watchdog

    def __init__(self, consumer: Any, **_: Any) -> None:
        self.timer: Any = None
        self.dispatcher: Dispatcher | None = None
        # RabbitMQ gives the messages of a silent node to another one after twice this time. (Redis has no heartbeats.)
        consumer.amqheartbeat = _HEARTBEAT_S

    def start(self, consumer: Any) -> None:
        batched = {routing.TASK_QUEUE[task] for task in OPERATIONS}
        for queue in batched.intersection(self.node.family.queues):
            # A new one for each connection: messages of the last one belong to the broker again.
            self.dispatcher = Dispatcher(consumer, self.node.settings, queue)
        self.housekeeping.children = lambda: _live_children(consumer)
        self.watchdog.resume()
        self.housekeeping.start()
        allow_early_exits(consumer.pool)
        consumer.event_dispatcher.hold()
        self.timer = consumer.timer.call_repeatedly(_LOOK_S, self.look, (consumer,))
        self.look(consumer)

    def stop(self, consumer: Any) -> None:
        self.watchdog.pause()
        if self.timer is not None:
            self.timer.cancel()
        ignore_errors(consumer, consumer.event_dispatcher.flush_held)
        if self.dispatcher is not None:
            self.dispatcher.close()
            self.dispatcher = None

    def shutdown(self, consumer: Any) -> None:
        """Called at the end of a warm or cold shutdown, when the children have ended. (Celery's signal: warm only.)"""
        self.housekeeping.leave()
        metrics.remove_files()

    def look(self, consumer: Any) -> None:
        self.watchdog.beat()
        consumer.event_dispatcher.flush_held()
        if self.housekeeping.stopping:
            # Celery has cancelled the queues.
            return
        was, live = self.node.state, _live_children(consumer)
        for pid in self.node.silent(live):
            log.error("process killed: it hangs since its start", node=self.node.name, pid=pid)
            _kill({pid})
        now = self.node.look(live)
        for queue in self.node.family.queues:
            if self.dispatcher is not None and queue == self.dispatcher.queue:
                if now == "ready" and not self.dispatcher.consuming:
                    self.dispatcher.consume()
                elif now != "ready" and self.dispatcher.consuming:
                    self.dispatcher.pause()
                continue
            consuming = consumer.task_consumer.consuming_from(queue)
            if now == "ready" and not consuming:
                consumer.add_task_queue(queue)
            elif now != "ready" and consuming:
                consumer.cancel_task_queue(queue)
        if self.dispatcher is not None:
            self.dispatcher.look()
        if consumer.connection.transport.driver_type == "redis":
            for queue in self.housekeeping.request_queues:
                refuse_newest(consumer.task_consumer.channel, queue, self.limits)
        if now != was:
            log.info("node " + now, node=self.node.name)
        if now != was or self.node.changed:
            self.housekeeping.wake()
        if now == "failed" and worker_state.should_stop is None:
            reason = "leaving: this node can't work; its queues keep their messages"
            log.error(reason, node=self.node.name, failure=self.node.error)
            # A replacement would load its model first, and one that hangs would hold up the exit for ever.
            stop_replacing_children(consumer.pool)
            _kill(self.node.not_ready(_live_children(consumer)))
            worker_state.should_stop = ExitStatus.CONFIG


class BecomeNode(bootsteps.Step):
    """Makes a worker process the node of its settings' family, before its pool is forked."""

    def create(self, worker: Any) -> None:
        settings = get_settings()
        try:
            node = Node(settings, worker.hostname, worker.concurrency)
            metrics.reserve_files(worker.concurrency)
        except Conflict as error:
            log.error("leaving: another node has this name", node=worker.hostname, failure=str(error))
            raise SystemExit(ExitStatus.CONFIG) from None
        except OSError as error:
            log.error(
                "leaving: the node's work folder can't be written", node=worker.hostname, failure=str(error)
            )
            metrics.remove_files()
            raise SystemExit(ExitStatus.FAILED) from None
        watchdog = Watchdog(lambda: housekeeping.stopping)
        telemetry = Telemetry(settings, node.family.name, node.describe, watchdog)
        housekeeping = Housekeeping(node, settings, telemetry, watchdog)
        control.answer_for(node)
        # From then on dead children are no failures of their jobs.
        announce_stop(worker, housekeeping.stop)
        request_signals.connect(node.model_of)
        gate = type(
            "NodeGate",
            (Gate,),
            {"node": node, "limits": Limits.of(settings), "housekeeping": housekeeping, "watchdog": watchdog},
        )
        worker.app.steps["consumer"].add(gate)

        @signals.worker_process_init.connect(weak=False)
        def start_child(**_: object) -> None:
            node.start_child()
            use_store(lambda: get_runtime().vector_cache)

        # What is loaded by now stays: a collection in a child would copy the pages that it shares with this process.
        gc.collect()
        gc.freeze()
