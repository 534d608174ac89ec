"""This process as a node of the fleet: what it is called, how its children are, what it publishes of itself."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from billiard.process import current_process

from shared import routing
from shared.errors import ScenefleetError
from shared.logs import get_logger
from shared.settings import Settings
from worker.runtime import get_runtime
from worker.slots import FAILED, LOADING, READY, Slots

log = get_logger(__name__)

#: EX_CONFIG: the model can't be loaded; restarting won't help until somebody changes something.
EXIT_NO_MODEL = 78
MAX_FAILED_LOADS = 3


class Node:
    """This process as a node of the fleet. Made in the main process before its children are forked."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.family = routing.NODES[settings.family]
        self.name = ""
        self.main_pid = os.getpid()
        #: Tells this life of the node from one before it: in a container both have the same process ids.
        self.birth = secrets.token_hex(4)
        self.slots = Slots(1)
        self.failed_loads = 0
        self._counted: set[tuple[int, int]] = set()
        self.state = "loading"
        self.error = ""

    @property
    def life(self) -> str:
        return f"{self.main_pid}.{self.birth}"

    @property
    def owner_prefix(self) -> str:
        return f"{self.name}:{self.life}:"

    # --- main process

    def prepare(self, name: str, concurrency: int) -> None:
        """Before the pool is forked."""
        self.name = name
        self.main_pid = os.getpid()
        self.slots = Slots(concurrency)
        # Temporary files of an earlier life of this node.
        shutil.rmtree(self.work_dir, ignore_errors=True)

    @property
    def work_dir(self) -> Path:
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
