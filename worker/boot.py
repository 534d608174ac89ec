"""How a node starts: its children load their model, and only then does it take work.

Celery serves tasks before ``worker_process_init`` has ended and swallows its exceptions. So a node starts on a
private queue; each child writes LOADING, READY or FAILED to shared memory; a timer in the main process consumes the
real queues while all children are READY. A child whose load fails exits with ``EXIT_NO_MODEL``; after three such
loads the node does.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from billiard.process import current_process
from celery import Celery, bootsteps, signals
from celery.worker import state as worker_state

from shared import routing
from shared.errors import ScenefleetError
from shared.logs import get_logger
from shared.settings import Settings
from worker.keeper import Keeper
from worker.runtime import get_runtime
from worker.slots import FAILED, LOADING, READY, Slots

log = get_logger(__name__)

#: EX_CONFIG: the model can't be loaded; restarting won't help until somebody changes something.
EXIT_NO_MODEL = 78
MAX_FAILED_LOADS = 3
_LOOK_S = 0.5


class Node:
    """This process as a node of the fleet. Made in the main process before its children are forked."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.family = routing.NODES[settings.family]
        self.name = ""
        self.main_pid = os.getpid()
        self.slots = Slots(1)
        self.failed_loads = 0
        self._counted: set[tuple[int, int]] = set()
        self.state = "loading"
        self.error = ""

    @property
    def owner_prefix(self) -> str:
        return f"{self.name}:{self.main_pid}:"

    # --- main process

    def prepare(self, name: str, concurrency: int) -> None:
        """Before the pool is forked."""
        self.name = name
        self.main_pid = os.getpid()
        self.slots = Slots(concurrency)
        # Temporary files of an earlier life of this node.
        shutil.rmtree(self.work_dir, ignore_errors=True)

    @property
    def work_dir(self) -> Any:
        return self.settings.home / "work" / self.name

    def look(self, live_pids: set[int]) -> str:
        """Read the children's states: ``ready`` when all are, ``failed`` when loading is hopeless."""
        slots = self.slots.read_all()
        for index, slot in enumerate(slots):
            if slot.state == FAILED and (index, slot.pid) not in self._counted:
                self._counted.add((index, slot.pid))
                self.failed_loads += 1
                self.error = str(slot.report.get("error", "unknown"))
                log.error(
                    "model not loaded", node=self.name, loads_failed=self.failed_loads, error=self.error
                )
        if self.failed_loads >= MAX_FAILED_LOADS:
            self.state = "failed"
        elif all(slot.state == READY and slot.pid in live_pids for slot in slots):
            self.state, self.error = "ready", ""
            self.failed_loads = 0
        else:
            self.state = "loading"
        return self.state

    def models(self) -> list[Any]:
        return [model for slot in self.slots.read_all() for model in slot.report.get("models", [])]

    # --- pool child

    def start_child(self) -> None:
        """Load and warm this node's models; ends the process when that fails."""
        pid, index = os.getpid(), current_process().index or 0
        self.slots.write(index, LOADING, pid, 0, {})
        runtime = get_runtime()
        runtime.owner = f"{self.owner_prefix}{index}:{pid}"
        runtime.work_dir = self.work_dir / str(index)
        shutil.rmtree(runtime.work_dir, ignore_errors=True)
        try:
            if self.family.has_model:
                runtime.shelf.preload()
            report = {"models": runtime.shelf.states()}
        except Exception as error:  # noqa: BLE001 - Celery would swallow it and serve tasks without a model
            message = str(error) if isinstance(error, ScenefleetError) else f"{type(error).__name__}: {error}"
            log.error("model load failed", node=self.name, slot=index, error=message)
            self.slots.write(index, FAILED, pid, 0, {"error": message})
            os._exit(EXIT_NO_MODEL)
        self.slots.write(index, READY, pid, 0, report)
        log.info("child ready", node=self.name, slot=index)


def live_children(consumer: Any) -> set[int]:
    """Process ids of the pool's children."""
    pool = getattr(consumer.pool, "_pool", None)
    return {process.pid for process in getattr(pool, "_pool", []) if process.pid and process.exitcode is None}


class Gate(bootsteps.StartStopStep):
    """Consumes the node's queues while its children are ready; starts the keeper."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    node: Node
    keeper: Keeper

    def __init__(self, consumer: Any, **_: Any) -> None:
        self.timer: Any = None

    def start(self, consumer: Any) -> None:
        self.keeper.children = lambda: live_children(consumer)
        self.keeper.start()
        self.timer = consumer.timer.call_repeatedly(_LOOK_S, self.look, (consumer,))
        self.look(consumer)

    def stop(self, consumer: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def look(self, consumer: Any) -> None:
        was = self.node.state
        now = self.node.look(live_children(consumer))
        for queue in self.node.family.queues:
            consuming = consumer.task_consumer.consuming_from(queue)
            if now == "ready" and not consuming:
                consumer.add_task_queue(queue)
            elif now != "ready" and consuming:
                consumer.cancel_task_queue(queue)
        if now != was:
            log.info("node " + now, node=self.node.name, error=self.node.error or None)
            self.keeper.wake()
        if now == "failed" and worker_state.should_stop is None:
            log.error(
                "leaving: the model can't be loaded; the queue keeps its messages",
                node=self.node.name,
                error=self.node.error,
            )
            worker_state.should_stop = EXIT_NO_MODEL


def install(app: Celery, settings: Settings) -> None:
    """Make the worker process that ``app`` starts a node of ``settings.family``."""
    node = Node(settings)
    keeper = Keeper(node, settings)
    app.steps["consumer"].add(type("NodeGate", (Gate,), {"node": node, "keeper": keeper}))

    @signals.celeryd_after_setup.connect(weak=False)
    def prepare(sender: str, instance: Any, **_: object) -> None:
        node.prepare(sender, instance.concurrency or 1)

    @signals.worker_process_init.connect(weak=False)
    def start_child(**_: object) -> None:
        node.start_child()

    @signals.worker_shutdown.connect(weak=False)
    def leave(**_: object) -> None:
        keeper.leave()
