"""A pool child as its node sees it: it says how its models are, and does what it is told about them.

Remote control reaches only the node's main process, which holds no model. So the child publishes its state in shared
memory and a thread of its own looks there for commands; a job may run meanwhile, the models' locks keep them apart.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, NoReturn

from shared.errors import Permanent, ScenefleetError
from shared.exit_status import ExitStatus
from shared.logs import get_logger
from worker.models.cache import ModelCache
from worker.slots import FAILED, LOADING, READY, Slots

log = get_logger(__name__)

#: How often it looks for a command, and for a model that was used meanwhile.
LOOK_S, PUBLISH_S = 0.2, 1.0


class Child:
    """One life of one slot. What it counts goes on from what the child before it in this slot had counted.

    Args:
        slots: shared with the main process.
        index: of this slot.
        pid: of this process.
    """

    def __init__(self, slots: Slots, index: int, pid: int) -> None:
        self._slots, self._index, self._pid = slots, index, pid
        self._model_cache: ModelCache | None = None
        self._lock = threading.Lock()
        self._published: list[dict[str, Any]] = []
        before = slots.read(index).report
        self._loads_before: dict[str, int] = before.get("loads", {})
        self._evictions_before: int = before.get("evictions", 0)
        self._said: dict[str, Any] = {
            "gpu": None,
            #: Processes this slot has had, this one included.
            "children": before.get("children", 0) + 1,
            #: Loads that failed since one worked, and why the last did.
            "failures": before.get("failures", 0),
            "error": before.get("error", ""),
            "permanent": before.get("permanent", False),
            "command": self._last_command(before.get("command")),
        }
        self._state = LOADING
        self.publish()

    def _last_command(self, outcome: dict[str, Any] | None) -> dict[str, Any] | None:
        """What became of the last command: that of a dead child is lost unless it had said more."""
        given = self._slots.read_command(self._index)
        if not given or (
            outcome is not None and outcome["id"] == given["id"] and outcome["state"] != "running"
        ):
            return outcome
        error = "The process ended before it was done; give the command again."
        return {**given, "state": "lost", "error": error, "seconds": None}

    def hold(self, model_cache: ModelCache, gpu: str | None) -> None:
        """Say from now on how these models are; ``gpu``: the device this process was given."""
        self._model_cache = model_cache
        self._said["gpu"] = gpu
        model_cache.on_change = self.publish
        model_cache.on_unavailable = self.end

    def end(self, error: Exception) -> NoReturn:
        """The process can't work: say why, and end it.

        Not by an exception: Celery would swallow it and serve tasks without a model, each of which would fail for good.
        """
        self._said |= {
            "failures": self._said["failures"] + 1,
            "error": _sentence(error),
            "permanent": isinstance(error, Permanent),
        }
        self._state = FAILED
        self.publish()
        os._exit(ExitStatus.CONFIG)

    def serve(self) -> None:
        """Ready for jobs; from now on obey commands."""
        self._said |= {"failures": 0, "error": "", "permanent": False}
        self._state = READY
        self.publish()
        threading.Thread(target=self._obey_until_exit, name="control", daemon=True).start()

    def publish(self) -> None:
        """Write the state of now to shared memory."""
        with self._lock:
            model_cache = self._model_cache
            self._published = model_cache.states() if model_cache is not None else []
            loads = dict(self._loads_before)
            for model in self._published:
                if model.get("loads"):
                    loads[model["name"]] = loads.get(model["name"], 0) + model["loads"]
            report = {
                **self._said,
                #: Memory all models of this process may take together, MB; 0: no limit.
                "budget_mb": model_cache.budget_mb if model_cache is not None else 0,
                "models": self._published,
                "loads": loads,
                "evictions": self._evictions_before
                + (model_cache.evictions if model_cache is not None else 0),
            }
            self._slots.write(self._index, self._state, self._pid, report)

    def _obey_until_exit(self) -> None:
        published_s = time.monotonic()
        while True:
            time.sleep(LOOK_S)
            try:
                self._obey()
                if time.monotonic() - published_s >= PUBLISH_S:
                    published_s = time.monotonic()
                    if self._model_cache is not None and self._model_cache.states() != self._published:
                        self.publish()
            except Exception:
                # The thread has to live as long as the process, whatever it was.
                log.exception("control failed")

    def _obey(self) -> None:
        given = self._slots.read_command(self._index)
        done = self._said["command"]
        if not given or (done is not None and done["id"] >= given["id"]):
            return
        started_s = time.monotonic()
        self._answer({**given, "state": "running", "error": "", "seconds": None})
        error = ""
        try:
            self._do(given["verb"], given["model"])
        except Exception as failure:  # noqa: BLE001 - whoever gave the command is told, the node works on
            error = _sentence(failure)
        seconds = round(time.monotonic() - started_s, 3)
        state = "failed" if error else "done"
        self._answer({**given, "state": state, "error": error, "seconds": seconds})
        level = log.warning if error else log.info
        level(
            "command " + state,
            verb=given["verb"],
            model=given["model"],
            failure=error or None,
            seconds=seconds,
        )

    def _answer(self, command: dict[str, Any]) -> None:
        self._said["command"] = command
        self.publish()

    def _do(self, verb: str, model: str) -> None:
        assert self._model_cache is not None, "a node that serves has a model cache"
        if verb == "load":
            self._model_cache.load(model)
        elif verb == "unload":
            self._model_cache.unload(model)
        else:
            self._model_cache.warm_up(model)


def _sentence(error: Exception) -> str:
    if isinstance(error, ScenefleetError):
        return str(error)
    # An engine may say it in many lines.
    return " ".join(f"{type(error).__name__}: {error}".split())
