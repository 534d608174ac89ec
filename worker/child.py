"""A pool child as its node sees it: it publishes the states of its models, and obeys commands about them.

Remote control reaches only the node's main process, which holds no model. So the child publishes its state in shared
memory, and a thread reads commands there. A job may run meanwhile: models have locks.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Any, NoReturn

from shared.errors import Permanent, ScenefleetError
from shared.exit_status import ExitStatus
from shared.logs import get_logger
from worker.models.cache import ModelCache
from worker.slots import FAILED, LOADING, READY, Slots
from worker.telemetry import custom_events

log = get_logger(__name__)

#: Intervals at which it reads commands, and publishes that a model was used, seconds.
LOOK_S, PUBLISH_S = 0.5, 1.0


class Child:
    """The process of one slot. Its counters continue those of the slot's earlier processes."""

    def __init__(self, slots: Slots, index: int, pid: int) -> None:
        self._slots, self._index, self._pid = slots, index, pid
        self._model_cache: ModelCache | None = None
        self._lock = threading.Lock()
        self._published: list[dict[str, Any]] = []
        #: Model -> its load and warm-up that an event was sent of.
        self._announced: dict[str, tuple[Any, Any]] = {}
        before = slots.read(index).report
        self._loads_before: dict[str, int] = before.get("loads", {})
        self._evictions_before: int = before.get("evictions", 0)
        self._said: dict[str, Any] = {
            "gpu": None,
            #: Number of processes of this slot, this one included.
            "children": before.get("children", 0) + 1,
            #: Failed loads since the last successful one, and the last error.
            "failures": before.get("failures", 0),
            "error": before.get("error", ""),
            "permanent": before.get("permanent", False),
            "command": self._last_command(before.get("command")),
        }
        self._state = LOADING
        self.publish()

    def _last_command(self, outcome: dict[str, Any] | None) -> dict[str, Any] | None:
        """The outcome of the last command; it is lost if the child died before it was done."""
        given = self._slots.read_command(self._index)
        if not given or (
            outcome is not None and outcome["id"] == given["id"] and outcome["state"] != "running"
        ):
            return outcome
        error = "The process ended before it was done; give the command again."
        return {**given, "state": "lost", "error": error, "seconds": None}

    def hold(self, model_cache: ModelCache, gpu: str | None) -> None:
        """Publish the states of these models from now on; ``gpu``: the device of this process."""
        self._model_cache = model_cache
        self._said["gpu"] = gpu
        model_cache.on_change = self._changed
        model_cache.on_unavailable = self.end

    def _changed(self) -> None:
        self.publish()
        for state in self._published:
            # A model is loaded first, and then warmed up.
            now = (state.get("loads"), state.get("warm_up_s"))
            if state["loaded"] and self._announced.get(state["name"]) != now:
                self._announced[state["name"]] = now
                custom_events.model_loaded(state)

    def end(self, error: Exception) -> NoReturn:
        """Publish why the process can't work, and end it.

        Celery would swallow an exception and serve tasks without a model, each of which would fail for good.
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
        """Publish that the child is ready, and obey commands from now on."""
        self._said |= {"failures": 0, "error": "", "permanent": False}
        self._state = READY
        self.publish()
        threading.Thread(target=self._obey_until_exit, name="control", daemon=True).start()

    def publish(self) -> None:
        """Write the current state to shared memory."""
        with self._lock:
            cache = self._model_cache
            self._published = cache.states() if cache is not None else []
            loads = Counter(self._loads_before)
            loads.update({model["name"]: model["loads"] for model in self._published if model.get("loads")})
            report = {
                **self._said,
                #: Maximum memory of all models of this process, MB; 0: no limit.
                "budget_mb": cache.budget_mb if cache is not None else 0,
                "models": self._published,
                "loads": dict(loads),
                "evictions": self._evictions_before + (cache.evictions if cache is not None else 0),
            }
            self._slots.write(self._index, self._state, self._pid, report)

    def _obey_until_exit(self) -> None:
        published_s = time.monotonic()
        while True:
            time.sleep(LOOK_S)
            try:
                self._obey()
                custom_events.flush()
                if time.monotonic() - published_s >= PUBLISH_S:
                    published_s = time.monotonic()
                    if self._model_cache is not None and self._model_cache.states() != self._published:
                        self.publish()
            except Exception:
                # The thread must not end before the process.
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
            # The verbs are names of the cache's methods.
            getattr(self._model_cache, given["verb"])(given["model"])
        except Exception as failure:  # noqa: BLE001 - reported as the command's outcome, the node works on
            error = _sentence(failure)
        seconds = round(time.monotonic() - started_s, 3)
        state = "failed" if error else "done"
        self._answer({**given, "state": state, "error": error, "seconds": seconds})
        level = log.warning if error else log.info
        shown = {"verb": given["verb"], "model": given["model"], "seconds": seconds}
        level("command " + state, failure=error or None, **shown)

    def _answer(self, command: dict[str, Any]) -> None:
        self._said["command"] = command
        self.publish()


def _sentence(error: Exception) -> str:
    if isinstance(error, ScenefleetError):
        return str(error)
    # The text of an engine's error may have many lines.
    return " ".join(f"{type(error).__name__}: {error}".split())
