"""All metrics: their names, labels and help in one list, and a function per event that changes them.

Counters and histograms change in any process of a node. They are kept in memory-mapped files in the node's work folder
(prometheus_client's multiprocess mode), one set per slot: the replacement of a dead child continues the counts of its slot.
The other metrics are read when somebody asks: from the node (`node`) or from the ledger and Redis (`exporter`). API processes count for themselves (api/metrics.py).
`python -m worker.telemetry` writes the table of docs/metrics.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil
from billiard.process import current_process
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector

from shared.http_pages import Page
from shared.metrics import API_METRICS, Metric
from shared.settings import Settings, get_settings, set_process_environment

_FAST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SLOW_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)

#: Of a process's counters, and of its histograms: some 600 values of each, several times what a family has.
_FILE_BYTES = 2**17


def _exported(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "gauge", help, labels, "exporter")


# fmt: off
METRICS = (
    Metric("model_service_requests_total", "counter", "Requests answered, by model and status (ok, failed, deferred)", ("model", "status")),
    Metric("model_service_latency_seconds", "histogram", "Time to answer a request, without its wait in the queue", ("model",), buckets=_FAST_S),
    Metric("model_service_batch_size", "histogram", "Items of a batch of requests", ("model",), buckets=_ITEMS),
    Metric("model_service_memory_bytes", "gauge", "Measured memory of a loaded model, over the node's processes", ("model",)),
    Metric("scenefleet_requests_total", "counter", "Requests by task and status", ("task", "status")),
    Metric("scenefleet_request_seconds", "histogram", "Time to answer a request of a family, without its wait in the queue", ("family",), buckets=_FAST_S),
    Metric("scenefleet_wait_seconds", "histogram", "Time that a job was claimable, or a request waited, before it began", ("queue",), buckets=_SLOW_S),
    Metric("scenefleet_batch_items_total", "counter", "Items of batches of requests", ("family",)),
    Metric("scenefleet_batch_tokens_total", "counter", "Tokens of batches of requests", ("family",)),
    Metric("scenefleet_rejected_total", "counter", "Requests refused, by reason", ("queue", "reason")),
    Metric("scenefleet_cache_total", "counter", "Look-ups in a cache, by result (hit, miss)", ("kind", "result")),
    Metric("scenefleet_jobs_total", "counter", "Attempts at jobs that have ended, by outcome (done, failed, deferred, lost)", ("stage", "outcome")),
    Metric("scenefleet_job_seconds", "histogram", "Duration of attempts at jobs; its sum is the device time of a stage", ("stage",), buckets=_SLOW_S),
    Metric("scenefleet_job_failures_total", "counter", "Failed attempts at jobs, by class of error", ("stage", "error_class")),
    Metric("scenefleet_leases_lost_total", "counter", "Jobs taken back from a dead child or node, or after an expired lease", ("reason",)),
    Metric("scenefleet_node_info", "gauge", "1; the labels describe the node", ("node", "family", "profile", "version")),
    Metric("scenefleet_node_ready", "gauge", "1 while the node consumes its queues"),
    Metric("scenefleet_node_uptime_seconds", "gauge", "Time since the node's start"),
    Metric("scenefleet_node_children", "gauge", "Processes of the node, by state", ("state",)),
    Metric("scenefleet_node_loop_age_seconds", "gauge", "Time since the node's event loop has last run"),
    Metric("scenefleet_node_cpu_seconds_total", "counter", "CPU time of the node's processes"),
    Metric("scenefleet_node_resident_bytes", "gauge", "Resident memory of the node's processes, in sum"),
    Metric("scenefleet_models_loaded", "gauge", "Loaded models, over the node's processes"),
    Metric("scenefleet_model_loads_total", "counter", "Loads of a model", ("model",)),
    Metric("scenefleet_model_evictions_total", "counter", "Models unloaded to make room"),
    Metric("scenefleet_model_memory_available_bytes", "gauge", "Memory left of WORKER_MODEL_MEMORY_MB in the fullest process; absent without a limit"),
    Metric("scenefleet_machine_memory_bytes", "gauge", "Memory of the machine or container (total, available)", ("kind",)),
    Metric("scenefleet_machine_disk_bytes", "gauge", "Space of the disk with SCENEFLEET_HOME (total, free)", ("kind",)),
    Metric("scenefleet_machine_cpu_percent", "gauge", "Busy CPUs of the machine, percent of all"),
    _exported("scenefleet_database_up", "1 if Postgres has answered the last look"),
    _exported("scenefleet_redis_up", "1 if Redis has answered the last look"),
    _exported("scenefleet_broker_up", "1 if RabbitMQ has answered the last look; absent without BROKER_URL"),
    _exported("scenefleet_redis_memory_bytes", "Memory that Redis uses"),
    _exported("scenefleet_database_bytes", "Size of the database"),
    _exported("scenefleet_nodes", "Nodes of the last 30 s, by family and state", "family", "state"),
    _exported("scenefleet_queue_waiting", "Jobs that may run now, or requests in the queue", "queue"),
    _exported("scenefleet_queue_running", "Running jobs", "queue"),
    _exported("scenefleet_queue_deferred", "Jobs that wait for a later time", "queue"),
    _exported("scenefleet_queue_failed", "Jobs that failed for good and were not tried again", "queue"),
    _exported("scenefleet_queue_oldest_seconds", "How long the oldest waiting job, or the request at the queue's head, has waited", "queue"),
    _exported("scenefleet_queue_backlog_seconds", "Time to do all waiting jobs at the rate of the last 10 minutes; absent if none was done", "queue"),
    _exported("scenefleet_jobs", "Jobs that have not ended or have failed, by stage and state", "stage", "state"),
    _exported("scenefleet_device_seconds", "Device time of all accounts in a queue; rows of accounts without use for 90 days are removed", "queue"),
    _exported("scenefleet_user_device_seconds", "Device time of the METRICS_USERS users with the most, and of the others", "queue", "user"),
    _exported("scenefleet_videos", "Videos by state", "state"),
    _exported("scenefleet_video_hours", "Duration of the videos, by state", "state"),
    _exported("scenefleet_indexed_hour_videos", "Videos indexed in the last hour"),
    _exported("scenefleet_indexed_hour_hours", "Duration of the videos indexed in the last hour"),
    _exported("scenefleet_realtime_factor", "Hours of video indexed in the last hour: above 1, faster than real time"),
    _exported("scenefleet_concurrent_requests", "Mean number of requests that waited or were answered at once (window: 1m, 5m)", "family", "window"),
    _exported("scenefleet_request_mean_seconds", "Mean time to answer a request (window: 1m, 5m)", "family", "window"),
    _exported("scenefleet_scale_advice", "Advice of `scenefleet scale`: 0 enough nodes, 1 more, 2 many more", "family"),
    _exported("scenefleet_reserved_items", "Items that callers have reserved in a queue of requests, waiting or computed", "queue"),
    Metric("scenefleet_admission_rejected_total", "counter", "Requests that callers did not send because a limit was reached (items, tokens, user)", ("queue", "reason"), "exporter"),
    *API_METRICS,
)
# fmt: on
NAMED = {metric.name: metric for metric in METRICS}


def _slot() -> str:
    """Who writes a set of files: the main process or a slot, whatever process it has now."""
    index = getattr(current_process(), "index", None)
    return "main" if index is None else f"slot{index}"


def _folder(settings: Settings) -> Path:
    """An empty folder for the files of this node; removes those of nodes that are gone."""
    work = settings.home / "work"
    for left in work.glob("metrics.*"):
        pid = int(left.suffix[1:])
        if pid == os.getpid() or not psutil.pid_exists(pid):
            shutil.rmtree(left, ignore_errors=True)
    found = work / f"metrics.{os.getpid()}"
    found.mkdir(parents=True, mode=0o700)
    return found


def reserve_files(slots: int) -> None:
    """Take the space on disk of all that a node with so many children will count, before they are forked.

    prometheus_client makes files with holes, and a process that writes into a hole on a full disk dies of SIGBUS.

    Raises:
        OSError: the disk is full.
    """
    if FOLDER is None:
        return
    for writer in ("main", *(f"slot{index}" for index in range(slots))):
        for kind in ("counter", "histogram"):
            if not (file := FOLDER / f"{kind}_{writer}.db").exists():
                file.write_bytes(bytes(_FILE_BYTES))


#: Where this node's processes write; None: this process is no node, and counts for itself.
FOLDER: Path | None = None
if get_settings().family:
    FOLDER = _folder(get_settings())
    # Read by prometheus_client, whose metrics are made below.
    set_process_environment("PROMETHEUS_MULTIPROC_DIR", str(FOLDER))
    values.ValueClass = values.MultiProcessValue(_slot)  # type: ignore[no-untyped-call]

#: The counters and histograms of this process.
REGISTRY = CollectorRegistry()


def _counter(name: str) -> Counter:
    metric = NAMED[name]
    return Counter(metric.name, metric.help, metric.labels, registry=REGISTRY)


def _histogram(name: str) -> Histogram:
    metric = NAMED[name]
    return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=REGISTRY)


_model_requests = _counter("model_service_requests_total")
_model_latency = _histogram("model_service_latency_seconds")
_batch_size = _histogram("model_service_batch_size")
_requests = _counter("scenefleet_requests_total")
_request_seconds = _histogram("scenefleet_request_seconds")
_wait = _histogram("scenefleet_wait_seconds")
_batch_items = _counter("scenefleet_batch_items_total")
_batch_tokens = _counter("scenefleet_batch_tokens_total")
_rejected = _counter("scenefleet_rejected_total")
_cache = _counter("scenefleet_cache_total")
_jobs = _counter("scenefleet_jobs_total")
_job_seconds = _histogram("scenefleet_job_seconds")
_job_failures = _counter("scenefleet_job_failures_total")
_leases_lost = _counter("scenefleet_leases_lost_total")


def observe_request(
    task: str, family: str, seconds: float, status: str = "ok", model: str | None = None
) -> None:
    """Count a request that was answered after this time; ``status``: ok, failed or deferred; ``model``: which answered."""
    _requests.labels(task, status).inc()
    _request_seconds.labels(family).observe(seconds)
    if model is not None:
        _model_requests.labels(model, status).inc()
        _model_latency.labels(model).observe(seconds)


def observe_wait(queue: str, seconds: float) -> None:
    """Count a job or request that has waited so long before it began."""
    _wait.labels(queue).observe(max(0.0, seconds))


def observe_batch(family: str, items: int, tokens: int = 0, model: str | None = None) -> None:
    """Count a batch of requests that a model answers at once."""
    _batch_size.labels(model or family).observe(items)
    _batch_items.labels(family).inc(items)
    _batch_tokens.labels(family).inc(tokens)


def count_rejected(queue: str, reason: str, count: int = 1) -> None:
    """Count refused requests; ``reason``: one of few words, never a caller's text."""
    _rejected.labels(queue, reason).inc(count)


def count_cache(kind: str, hit: bool, number: int = 1) -> None:
    """Count look-ups in a cache."""
    if number:
        _cache.labels(kind, "hit" if hit else "miss").inc(number)


def observe_job(stage: str, outcome: str, seconds: float) -> None:
    """Count an attempt at a job that has ended."""
    _jobs.labels(stage, outcome).inc()
    _job_seconds.labels(stage).observe(seconds)


def count_failure(stage: str, error_class: str) -> None:
    """Count a failed attempt at a job."""
    _job_failures.labels(stage, error_class).inc()


def count_lost_lease(reason: str) -> None:
    """Count a job taken back; ``reason``: child, node. In the main process only while no child is forked."""
    _leases_lost.labels(reason).inc()


def counted() -> Iterable[Family]:
    """The counters and histograms of all processes of this node."""
    if FOLDER is None:
        return list(REGISTRY.collect())
    files = [str(path) for path in FOLDER.glob("*.db")]
    return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


def page_of(registry: CollectorRegistry) -> Page:
    """The metrics of a registry as Prometheus reads them."""
    return lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry))


def remove_files() -> None:
    """Remove the files of a node that ends."""
    if FOLDER is not None:
        shutil.rmtree(FOLDER, ignore_errors=True)


def family_of(name: str) -> GaugeMetricFamily | CounterMetricFamily:
    """An empty set of samples of a declared metric, for a collector."""
    metric = NAMED[name]
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return made(metric.name, metric.help, labels=metric.labels)


def metrics_table() -> str:
    """The Markdown table of every metric."""
    rows = ["| metric | kind | labels | where | what it says |", "|---|---|---|---|---|"]
    rows += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.source} | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(rows)
