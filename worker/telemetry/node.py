"""A node's metrics and probes: what its processes have counted, and its state when somebody asks."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from shared import http_pages as http, routing
from shared.settings import Settings
from worker.telemetry import metrics, resources
from worker.telemetry.load import Load, count_family
from worker.telemetry.watchdog import Watchdog

#: Interval at which the load and the resources are read, seconds.
_SAMPLE_S = 15.0


class Telemetry(Collector):
    """The metrics of one node, read in its main process.

    Args:
        describe: the node's state (`worker.node.Node.describe`).
    """

    def __init__(
        self, settings: Settings, family: str, describe: Callable[[], dict[str, Any]], watchdog: Watchdog
    ) -> None:
        self._settings, self._family, self._describe, self._watchdog = settings, family, describe, watchdog
        self._load = Load()
        # Read once: a thread that imports must not be copied by a fork.
        self._version = version("scenefleet")
        self._started, self._started_s = time.time(), time.monotonic()
        self._sampled_s = float("-inf")
        self._resources: dict[str, float] = {}
        self._database: dict[str, Any] = {}
        self._server: http.HttpServer | None = None
        #: Queues of requests, whose length is part of the load.
        queues = routing.NODES[family].queues
        self.request_queues = [queue for queue in queues if queue in {*routing.TASK_QUEUE.values()}]

    def serve(self) -> None:
        """Answer probes and Prometheus on METRICS_PORT, once; without one, not."""
        if self._server is not None or self._settings.metrics_port is None:
            return
        registry = CollectorRegistry()
        registry.register(self)
        pages = {"/livez": self.live, "/readyz": self.ready, "/metrics": metrics.page_of(registry)}
        self._server = http.HttpServer(self._settings.metrics_host, self._settings.metrics_port, pages)
        self._server.start()

    def live(self) -> http.Answer:
        """Whether the main process and its loop run."""
        ok = self._watchdog.alive
        return _page(ok, {"live": ok, "loop_age_s": round(self._watchdog.age_s, 1)})

    def ready(self) -> http.Answer:
        """Whether the node's models are loaded and its queues consumed."""
        node = self._describe()
        ok = node["state"] == "ready" and self._watchdog.alive
        models = [
            model.get("name") for slot in node["slots"] for model in slot["models"] if model.get("loaded")
        ]
        return _page(ok, {"ready": ok, "state": node["state"], "models": models})

    def note_database(self, answers: bool) -> None:
        """Note whether Postgres has answered this node."""
        self._database = {"ok": answers, "at": time.time()}

    def sample(self, waiting: int) -> None:
        """Read load and resources, if it is time; ``waiting``: messages in the queues of requests."""
        now_s = time.monotonic()
        if now_s - self._sampled_s >= _SAMPLE_S:
            self._sampled_s = now_s
            self._load.add(now_s, count_family(metrics.counted(), self._family), waiting)
            self._resources = resources.machine(self._settings.home)

    def record(self) -> dict[str, Any]:
        """What the fleet may know of this node besides its state; plain JSON."""
        address = None
        if self._server is not None:
            towards = urlsplit(self._settings.redis_url).hostname or ""
            host = http.own_address(self._settings.metrics_host, towards)
            address = f"[{host}]:{self._server.port}" if ":" in host else f"{host}:{self._server.port}"
        return {
            "started": self._started,
            "metrics": address,
            "database": self._database,
            "resources": self._resources,
            "load": self._load.describe(),
        }

    def collect(self) -> Iterable[Family]:
        yield from metrics.counted()
        yield from self._of_node(self._describe())

    def _of_node(self, node: dict[str, Any]) -> Iterator[Family]:
        profile = self._settings.profile
        yield _one("scenefleet_node_info", 1, node["node"], node["family"], profile, self._version)
        yield _one("scenefleet_node_ready", node["state"] == "ready")
        yield _one("scenefleet_node_uptime_seconds", time.monotonic() - self._started_s)
        yield _one("scenefleet_node_loop_age_seconds", self._watchdog.age_s)
        yield _many("scenefleet_node_children", Counter(slot["state"] for slot in node["slots"]))
        used = resources.processes([node["pid"], *(slot["pid"] for slot in node["slots"] if slot["pid"])])
        yield _one("scenefleet_node_cpu_seconds_total", used["cpu_s"])
        yield _one("scenefleet_node_resident_bytes", used["resident_bytes"])
        machine = resources.machine(self._settings.home)
        yield _one("scenefleet_machine_cpu_percent", machine["cpu_percent"])
        for kind, names in (("memory", ("total", "available")), ("disk", ("total", "free"))):
            found = {name: machine[key] for name in names if (key := f"{kind}_{name}_bytes") in machine}
            yield _many(f"scenefleet_machine_{kind}_bytes", found)
        loaded = [model for slot in node["slots"] for model in slot["models"] if model.get("loaded")]
        memory: Counter[str] = Counter()
        for model in loaded:
            memory[model["name"]] += model.get("memory_bytes") or 0
        yield _one("scenefleet_models_loaded", len(loaded))
        yield _many("model_service_memory_bytes", memory)
        yield _many("scenefleet_model_loads_total", node["loads"])
        yield _one("scenefleet_model_evictions_total", node["evictions"])
        left = [
            (slot["budget_mb"] << 20) - sum(model.get("memory_bytes") or 0 for model in slot["models"])
            for slot in node["slots"]
            if slot.get("budget_mb")
        ]
        if left:
            yield _one("scenefleet_model_memory_available_bytes", max(0, min(left)))


def _page(ok: bool, body: dict[str, Any]) -> http.Answer:
    return 200 if ok else 503, http.JSON, json.dumps(body).encode() + b"\n"


def _one(name: str, value: float, *labels: str) -> Family:
    family = metrics.family_of(name)
    family.add_metric(labels, value)
    return family


def _many(name: str, found: dict[str, Any] | Counter[str]) -> Family:
    """One sample per value of the metric's only label."""
    family = metrics.family_of(name)
    for label, value in found.items():
        family.add_metric([label], value)
    return family
