"""Metrics, probes and advice, without servers."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from shared import http_pages as pages, scaling
from shared.contracts.fleet import QueueView
from shared.exit_status import ExitStatus
from shared.nodes import NodeRecord
from shared.scaling import FamilyLoad
from worker.telemetry import metrics
from worker.telemetry.load import Counts, Load
from worker.telemetry.watchdog import LOOKS, QUEUE_LOOKS, Watchdog

ROOT = Path(__file__).parents[2]


# --- metrics


def test_every_counter_and_histogram_is_made_and_moves() -> None:
    moves: dict[str, Callable[[], None]] = {
        "scenefleet_requests": lambda: metrics.observe_request("t", "text", 0.1, "ok", "m"),
        "model_service_batch_size": lambda: metrics.observe_batch("text", 3, 70, "m"),
        "scenefleet_wait_seconds": lambda: metrics.observe_wait("asr", 2.0),
        "scenefleet_rejected": lambda: metrics.count_rejected("text.online", "full"),
        "scenefleet_cache": lambda: metrics.count_cache("vectors", True),
        "scenefleet_jobs": lambda: metrics.observe_job("asr", "done", 3.0),
        "scenefleet_job_failures": lambda: metrics.count_failure("asr", "BadMedia"),
        "scenefleet_leases_lost": lambda: metrics.count_lost_lease("child"),
    }
    for move in moves.values():
        move()
    counted = {family.name: sum(sample.value for sample in family.samples) for family in metrics.counted()}
    declared = {
        metric.name.removesuffix("_total")
        for metric in metrics.METRICS
        if metric.source == "node" and (metric.kind == "histogram" or metric.name.endswith("_total"))
    }
    of_node = {"scenefleet_node_cpu_seconds", "scenefleet_model_loads", "scenefleet_model_evictions"}
    assert set(counted) == declared - of_node
    assert all(value > 0 for value in counted.values()), counted


def test_the_table_of_metrics_is_current() -> None:
    assert metrics.metrics_table() in (ROOT / "docs" / "metrics.md").read_text(), (
        "run: python -m worker.telemetry"
    )


def test_counts_of_a_slot_outlive_its_process(tmp_path: Path) -> None:
    """Two children of one slot, one after the other, and one of another slot; the main process reads the sum."""
    code = """
import os, sys, billiard
from billiard.process import current_process
from worker.telemetry import metrics
metrics.reserve_files(2)
def child(index, times):
    if os.fork() == 0:
        current_process().index = index
        for _ in range(times):
            metrics.count_rejected("q", "full")
            metrics.observe_wait("q", 1)
        os.kill(os.getpid(), 9)
    os.wait()
child(0, 2); child(0, 3); child(1, 4)
print(sum(s.value for f in metrics.counted() for s in f.samples if s.name == "scenefleet_rejected_total"))
# Who writes into a hole of a file on a full disk dies of SIGBUS.
print(*sorted((f.name, f.stat().st_blocks * 512 >= f.stat().st_size) for f in metrics.FOLDER.iterdir()))
"""
    environment = {**os.environ, "SCENEFLEET_HOME": str(tmp_path), "SCENEFLEET_FAMILY": "housekeeping"}
    # Files of a node that was killed are removed by the next one.
    left = tmp_path / "work" / "metrics.999999999"
    left.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "9.0",
        " ".join(
            str((f"{kind}_{writer}.db", True))
            for kind in ("counter", "histogram")
            for writer in ("main", "slot0", "slot1")
        ),
    ], done.stderr
    assert not left.exists()


# --- load and advice


def test_load_is_what_happened_in_the_window() -> None:
    load = Load()
    load.add(0, Counts(100, 50.0, {0.1: 90, float("inf"): 100}), 0)
    for second in range(15, 301, 15):
        # One request of 0.2 s each second, from then on.
        load.add(second, Counts(100 + second, 50 + 0.2 * second, {0.1: 90, float("inf"): 100 + second}), 3)
    minute, five = load.describe()["1m"], load.describe()["5m"]
    assert (minute["count"], minute["busy"], minute["waiting"]) == (75, 0.2, 3)
    assert (five["count"], five["busy"]) == (300, 0.2)
    assert five["buckets"] == {"0.1": 0, "inf": 300}


def window(count: int, seconds: float, buckets: dict[str, float], waiting: float = 0.0) -> dict[str, Any]:
    return {"count": count, "seconds": seconds, "buckets": buckets, "busy": seconds / 300, "waiting": waiting}


def test_loads_of_nodes_are_summed_and_their_queue_counted_once() -> None:
    found = scaling.sum_loads([window(80, 8.0, {"0.1": 80, "0.2": 80, "inf": 80}, 6.0),
                               window(20, 4.0, {"0.1": 0, "0.2": 20, "inf": 20}, 4.0)])  # fmt: skip
    assert (found.requests, found.mean_ms, found.waiting) == (100, 120.0, 6.0)
    assert found.concurrent == pytest.approx(6.04)
    # 80 of 100 took at most 100 ms: the 95th is three quarters into the next bucket.
    assert (found.p95_ms, found.p99_ms) == (175.0, 195.0)
    assert scaling.sum_loads([]) == FamilyLoad()


@pytest.mark.parametrize(
    ("load", "level", "reason"),
    [
        (FamilyLoad(), 0, "below every limit"),
        (FamilyLoad(concurrent=10), 0, "below"),
        (FamilyLoad(concurrent=10.5), 1, "10.5 concurrent requests over 5 minutes, limit 10"),
        (FamilyLoad(concurrent=51), 2, "limit 50"),
        (FamilyLoad(requests=100, mean_ms=101), 1, "101 ms on average, limit 100"),
        (FamilyLoad(requests=100, mean_ms=201), 2, "limit 200"),
        (FamilyLoad(requests=3, mean_ms=900), 0, "below"),
        (FamilyLoad(waiting=6), 1, "6 requests in the queue on average, limit 5"),
        (FamilyLoad(waiting=21), 2, "limit 20"),
    ],
)
def test_advice_of_each_threshold(load: FamilyLoad, level: int, reason: str) -> None:
    found = scaling.advise("text", load, ready=1, backlog_s=None, jobs_waiting=0)
    assert found[0] == level and reason in found[1], found


def test_advice_by_backlog_and_readiness() -> None:
    slow = FamilyLoad(requests=100, mean_ms=5000)
    assert scaling.advise("asr", slow, ready=1, backlog_s=None, jobs_waiting=0)[0] == 0
    level, reason = scaling.advise("asr", slow, ready=1, backlog_s=7200, jobs_waiting=500)
    assert (level, reason) == (1, "jobs for 120 minutes wait, limit 60")
    assert scaling.advise("asr", slow, ready=0, backlog_s=None, jobs_waiting=1)[0] == 2
    assert "7 jobs wait" in scaling.advise("asr", FamilyLoad(), ready=1, backlog_s=None, jobs_waiting=7)[1]


def test_views_have_families_with_nodes_or_jobs() -> None:
    record = NodeRecord(name="text@a", family="text", state="ready", error="", pid=1, models=(), telemetry={
        "load": {"1m": window(0, 0, {}), "5m": window(100, 30.0, {"inf": 100})}})  # fmt: skip
    queue = QueueView(queue="ocr", waiting=4, running=0, deferred=0, oldest_s=1.0, done_last_minute=0, failed=0, backlog_s=None)  # fmt: skip
    text, ocr = scaling.views([record], [queue])
    assert (text.family, text.nodes, text.level, text.mean_ms) == ("text", 1, 2, 300.0)
    assert (ocr.family, ocr.ready, ocr.jobs_waiting, ocr.level) == ("ocr", 0, 4, 2)


# --- the HTTP server


@pytest.fixture(scope="module")
def server() -> Iterator[pages.HttpServer]:
    def broken() -> pages.Answer:
        raise RuntimeError("x")

    found = pages.HttpServer(
        "127.0.0.1",
        0,
        {
            "/livez": lambda: (200, pages.JSON, b"{}"),
            "/metrics": metrics.page_of(metrics.REGISTRY),
            "/bad": broken,
        },
    )
    found.start()
    yield found
    # Its thread ends with the process.
    found.server_close()


def get(server: pages.HttpServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_pages(server: pages.HttpServer) -> None:
    assert get(server, "/livez") == (200, b"{}")
    assert get(server, "/livez?a=b")[0] == 200
    assert get(server, "/other") == (404, b"there are /livez, /metrics, /bad here\n")
    assert get(server, "/livez", "POST")[0] == 405
    assert get(server, "/bad") == (500, b"internal error: the log says which\n")
    status, body = get(server, "/metrics")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert status == 200 and {"scenefleet_requests", "model_service_latency_seconds"} <= names


@pytest.mark.parametrize("sent", [b"x\r\n\r\n", b"\0" * 9_000, b"GET / SPDY\r\n\r\n", b"\r\n\r\n"])
def test_what_is_no_request(server: pages.HttpServer, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert get(server, "/livez")[0] == 200


def test_slow_clients_are_bounded_in_number_and_time(
    server: pages.HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LIMIT_S", 0.5)
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(pages.MAX_OPEN)]
    try:
        for connection in slow:
            connection.sendall(b"GET /livez HTTP/1.1\r\n")
        deadline = time.monotonic() + 10
        while True:
            try:
                assert get(server, "/livez")[0] == 200
                break
            except (http.client.HTTPException, OSError):
                # All places are taken until the slow ones are given up.
                assert time.monotonic() < deadline
                time.sleep(0.05)
        for connection in slow:
            assert connection.recv(100) == b""
    finally:
        for connection in slow:
            connection.close()


def test_a_closed_server_leaves_no_thread_that_polls_its_socket_s_number() -> None:
    """The next file with that number, a pipe to a child for example, would stay open for up to a minute."""
    before = set(threading.enumerate())
    found = pages.HttpServer("127.0.0.1", 0, {})
    found.start()
    (serving,) = set(threading.enumerate()) - before
    found.server_close()
    serving.join(20)
    assert not serving.is_alive()


def test_a_taken_port_is_replaced_by_a_free_one(server: pages.HttpServer) -> None:
    second = pages.HttpServer("127.0.0.1", server.port, {})
    assert second.port != server.port
    second.server_close()


def test_own_address() -> None:
    assert pages.own_address("10.1.2.3", "example.org") == "10.1.2.3"
    assert pages.own_address("0.0.0.0", "127.0.0.1") == "127.0.0.1"


def test_a_metric_of_a_collector_is_a_declared_one() -> None:
    with pytest.raises(KeyError):
        metrics.family_of("scenefleet_unknown")
    assert CollectorRegistry() is not metrics.REGISTRY
    assert json.dumps(sorted(metrics.NAMED)) and len(metrics.NAMED) == len(metrics.METRICS)


# --- the watchdog


class Ended(BaseException):
    """The process would have ended with this status."""


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watchdog]:
    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr("worker.telemetry.watchdog.os._exit", end)
    monkeypatch.setattr("worker.telemetry.watchdog.faulthandler.dump_traceback", lambda file: None)
    # Its looks are the test's.
    monkeypatch.setattr(Watchdog, "_watch", lambda self: None)
    # pytest imports a debugger.
    monkeypatch.setattr("worker.telemetry.watchdog._is_debugged", lambda: False)
    found = Watchdog(lambda: False)
    found.resume()
    yield found


def looks(watchdog: Watchdog, count: int) -> None:
    for _ in range(count):
        watchdog.look()


def test_a_loop_that_does_not_run_ends_the_process(watchdog: Watchdog) -> None:
    watchdog.look()
    looks(watchdog, LOOKS - 1)
    watchdog.beat()
    looks(watchdog, LOOKS)
    with pytest.raises(Ended) as ended:
        watchdog.look()
    assert ended.value.args == (ExitStatus.STUCK,)


def test_no_end_while_it_is_debugged(watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.telemetry.watchdog._is_debugged", lambda: True)
    looks(watchdog, 3 * LOOKS)


def test_no_end_while_the_broker_is_away_or_the_node_stops(watchdog: Watchdog) -> None:
    watchdog.pause()
    looks(watchdog, 3 * LOOKS)
    assert watchdog.alive
    stopping = Watchdog(lambda: True)
    stopping.resume()
    looks(stopping, 3 * LOOKS)


def test_a_consumer_that_leaves_messages_to_idle_children_ends_the_process(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("worker.telemetry.watchdog.time", SimpleNamespace(monotonic=lambda: now))

    def note(
        times: int, *, waiting: int = 1, idle: bool = True, taken: int = 7, after_s: float = 6.0
    ) -> None:
        nonlocal now
        for _ in range(times):
            now += after_s
            watchdog.note_queue(waiting, idle, taken)

    # Each of these begins the count again: a busy child, an empty queue, a message that was taken.
    note(QUEUE_LOOKS)
    note(1, idle=False)
    note(QUEUE_LOOKS)
    note(1, waiting=0)
    note(QUEUE_LOOKS)
    note(QUEUE_LOOKS, taken=8)
    # Looks in quick succession are one.
    note(20, taken=8, after_s=0.01)
    with pytest.raises(Ended):
        note(1, taken=8)
