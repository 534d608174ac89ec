"""A node in its main process: its name, the states of its children, commands to them, what it publishes."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from billiard.process import current_process

from db.vectors import SEARCHED
from shared import routing
from shared.errors import Conflict, ModelUnavailable
from shared.kept_vectors import ActiveModel
from shared.logs import get_logger
from shared.permissions import make_private_folder
from shared.settings import Settings
from worker.broker import clock
from worker.child import Child
from worker.job_locks import JobLocks
from worker.models.catalog import configured_catalog
from worker.models.common_queries import embed_queries, read_queries
from worker.models.placement import devices
from worker.models.weights.verify import find_absent
from worker.runtime import get_runtime, renew_runtime
from worker.slots import READY, STATE_NAMES, Slot, Slots

log = get_logger(__name__)

#: A node fails after this many failed loads, or after one whose error is permanent.
MAX_FAILED_LOADS = 3
#: A child that has published nothing for this time after its fork hangs, seconds: it does so before it imports anything.
SILENT_S = 60.0


def _hold_name(work_dir: Path) -> IO[str] | None:
    """Lock a node's name on this machine until this process ends, however it ends; its children don't hold the lock.

    None: the file system has no locks.

    Raises:
        Conflict: another process has it.
    """
    make_private_folder(work_dir.parent)
    file = (work_dir.parent / f"{work_dir.name}.lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(20)
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            log.warning("a second node of this name would not be noticed", node=work_dir.name, error=error)
            return None
        raise Conflict(
            f"node {work_dir.name} runs on this machine already (pid {holder or 'unknown'}), with the same SCENEFLEET_HOME:"
            " start this one under another name (--name), or stop that one first"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


class Node:
    """This process as a node of the fleet. Created in the main process before its children are forked."""

    def __init__(self, settings: Settings, name: str, concurrency: int) -> None:
        """
        Raises:
            Conflict: a node of this name runs on this machine already; nothing of it is touched.
        """
        self.settings = settings
        self.family = routing.NODES[settings.family]
        self.name = name
        self.main_pid = os.getpid()
        #: Identifies this life of the node: in a container the process ids of every life are the same.
        self.life = f"{self.main_pid}.{secrets.token_hex(4)}"
        self.owner_prefix = f"{name}:{self.life}:"
        self.work_dir = settings.home / "work" / name
        self.slots = Slots(concurrency)
        self.job_locks = JobLocks()
        self.failed_loads = 0
        self.state = "loading"
        self.error = ""
        #: Whether the last look found a change that is to be published at once.
        self.changed = False
        self._seen: list[Any] = []
        self._live: set[int] = set()
        #: Live children that have published nothing yet -> when they were first seen, monotonic.
        self._unheard: dict[int, float] = {}
        self._commands = 0
        self._name = _hold_name(self.work_dir)
        # Temporary files of an earlier life.
        shutil.rmtree(self.work_dir, ignore_errors=True)

    # --- main process

    def look(self, live_pids: set[int]) -> str:
        """Read the children's states: ``ready`` when all are, ``failed`` if waiting for them makes no sense."""
        slots = self.slots.read_all()
        self._live = live_pids
        seen = [
            (slot.state, slot.pid, *map(slot.report.get, ("loads", "evictions", "command"))) for slot in slots
        ]
        self.changed, self._seen = seen != self._seen, seen
        # Counted by the children: a failed one may be replaced before the node looks.
        failed_loads = sum(slot.report.get("failures", 0) for slot in slots)
        for slot in slots:
            self.error = slot.report.get("error") or self.error
        if failed_loads > self.failed_loads:
            log.warning("node did not load", node=self.name, loads_failed=failed_loads)
        self.failed_loads = failed_loads
        if devices.is_cuda_initialised():
            # Children that are forked from now on would hang at their first use of it.
            self.state = "failed"
            self.error = "the node's main process has initialised CUDA; its children can't"
        elif failed_loads >= MAX_FAILED_LOADS or any(slot.report.get("permanent") for slot in slots):
            self.state = "failed"
        elif all(slot.state == READY and slot.pid in live_pids for slot in slots):
            self.state, self.error = "ready", ""
        else:
            self.state = "loading"
        return self.state

    def silent(self, live_pids: set[int]) -> set[int]:
        """Live children that hang since their fork, by a lock that a thread of the main process held."""
        now, heard = time.monotonic(), {slot.pid for slot in self.slots.read_all()}
        self._unheard = {pid: self._unheard.get(pid, now) for pid in live_pids - heard}
        return {pid for pid, since in self._unheard.items() if now - since >= SILENT_S}

    def not_ready(self, live_pids: set[int]) -> set[int]:
        """Live children that have no model yet, and so no job."""
        return live_pids - {slot.pid for slot in self.slots.read_all() if slot.state == READY}

    def describe(self) -> dict[str, Any]:
        """The node and each of its processes, by the last reports of the children; plain JSON."""
        slots = self.slots.read_all()
        return {
            "node": self.name,
            "family": self.family.name,
            "state": self.state,
            "error": self.error,
            "pid": self.main_pid,
            "lacks": self._lacks(),
            "loads": dict(sum((Counter(slot.report.get("loads", {})) for slot in slots), Counter())),
            "evictions": sum(slot.report.get("evictions", 0) for slot in slots),
            "slots": [self._describe_slot(index, slot) for index, slot in enumerate(slots)],
        }

    def active_embedders(self) -> dict[str, ActiveModel]:
        """Kind -> its active model, of those that embed texts, whose vectors are kept, and that a child has loaded."""
        kind, settings = self.family.name, self.settings
        if kind not in SEARCHED or not settings.embedding_cache_ttl_s:
            return {}
        try:
            spec = get_runtime().active.models().get(kind)
        except ModelUnavailable as error:
            log.warning("active model not published", node=self.name, error=error)
            return {}
        held = (model for slot in self.slots.read_all() for model in slot.report.get("models", ()))
        for model in held:
            if (
                spec is not None
                and model.get("loaded")
                and (model["name"], model["revision"]) == (spec.name, spec.revision)
            ):
                found = {name: model[name] for name in ("name", "revision", "dim", "device")}
                return {kind: ActiveModel(**found, max_chars=settings.embedding_cache_max_chars)}
        return {}

    def _lacks(self) -> dict[str, str]:
        """Model of this family -> why it can't be loaded here, by its files."""
        catalog = configured_catalog(self.settings)
        mine = [spec for name in catalog.names() if (spec := catalog.get(name)).family == self.family.name]
        absent = {spec.name: find_absent(spec, models_dir=self.settings.models_dir) for spec in mine}
        return {name: reason for name, reason in absent.items() if reason}

    def _describe_slot(self, index: int, slot: Slot) -> dict[str, Any]:
        state = STATE_NAMES[slot.state] if slot.pid in self._live or not slot.pid else "dead"
        command = slot.report.get("command")
        given = self.slots.read_command(index)
        if given and (command is None or command["id"] != given["id"]):
            command = {**given, "state": "waiting", "error": "", "seconds": None}
        shown = {"slot": index, "pid": slot.pid, "state": state, "command": command}
        return {"models": [], **slot.report, **shown}

    def command(self, verb: str, model: str) -> int:
        """Give every child a command about a model, and return its number at once.

        Args:
            verb: ``load``, ``unload`` or ``warm_up``.

        Raises:
            ModelUnavailable: there is no such model, or it belongs to another family.
            Conflict: the node is not ready, or an earlier command is still in progress.
        """
        spec = configured_catalog(self.settings).get(model)
        if spec.family != self.family.name:
            raise ModelUnavailable(
                f"Model {model} belongs to family {spec.family}; node {self.name} serves {self.family.name}."
            )
        if self.state != "ready":
            raise Conflict(f"Node {self.name} is {self.state}; wait until it is ready")
        for slot in self.describe()["slots"]:
            command = slot["command"]
            if command is not None and command["state"] in ("waiting", "running"):
                raise Conflict(
                    f"Node {self.name} is busy with `{command['verb']} {command['model']}` "
                    f"(command {command['id']}); wait until it is done"
                )
        self._commands += 1
        for index in range(self.slots.count):
            self.slots.write_command(index, {"id": self._commands, "verb": verb, "model": model})
        log.info("command given", node=self.name, command=self._commands, verb=verb, model=model)
        return self._commands

    # --- pool child

    def start_child(self) -> None:
        """Load and warm up this node's models; ends the process if that fails."""
        pid, index = os.getpid(), current_process().index or 0
        child = Child(self.slots, index, pid)
        renew_runtime()
        clock.read_in_child(self.settings.redis_url)
        runtime = get_runtime()
        runtime.owner = f"{self.owner_prefix}{index}:{pid}"
        runtime.work_dir = self.work_dir / str(index)
        runtime.job_locks = self.job_locks
        shutil.rmtree(runtime.work_dir, ignore_errors=True)
        try:
            # Before an engine is imported: CUDA reads its environment once.
            device = devices.pin(self.settings.gpu_list, index)
            # Every family plans runs: without the catalogue it would fail job after job.
            _ = runtime.policy
            child.hold(runtime.model_cache, device)
            if self.family.name == "vision":
                _ = runtime.labels
            if self.family.has_model:
                runtime.model_cache.preload()
            if index == 0 and self.settings.warm_queries is not None and self.family.name in SEARCHED:
                queries = read_queries(self.settings.warm_queries)
                count = embed_queries(runtime.model(self.family.name), queries, runtime.vector_cache)
                log.info("common queries embedded", node=self.name, count=count)
        except Exception as error:  # noqa: BLE001 - Celery would swallow it and serve tasks without a model
            child.end(error)
        child.serve()
        log.info("child ready", node=self.name, slot=index)

    def model_of(self, task: str) -> str | None:
        """The model that answers a request of this node by default; None: no model does."""
        kind = "rerank" if task == routing.TEXT_RERANK else self.family.name
        return get_runtime().model_cache.active_name(kind) if self.family.has_model else None
