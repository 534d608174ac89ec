"""``python -m bench.api``: what the HTTP API adds to a search, and what idle clients cost it.

One lite fleet with the sample, one API process, the shipped settings. The same search is asked in three ways, in an order of chance that
changes every round: a bare ``send_task(...).get()`` of Celery, the typed client (``shared.client``), and ``GET /api/v1/search`` on
a connection that stays open. Each round gives a difference and a ratio to the bare task; the report has their medians. Asking and
waiting share this process, one request at a time. Everything is asked again while 1,000 event streams and then 1,000 connections
that send nothing are open. Memory is the resident memory of the API process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from celery import Celery
from rich.console import Console
from rich.table import Table

from bench import OUT
from bench.servers import servers
from shared.routing import REQUESTS, SEARCH_SCENES, TASK_QUEUE
from tests.support.api import Api
from tests.support.fleet import ROOT, Fleet, fleet_over

USER = "local"
#: Needs no model, whose time would hide the difference.
MODE: Literal["keyword"] = "keyword"
CLIENTS = 1_000
#: How long is asked while connections are silent.
SILENT_S = 10.0
#: The targets.
MOST_OVER_MS = 5.0
#: Nodes that answer a search; the others stop once the sample is indexed.
SEARCHING = ("search",)
Asks = dict[str, Callable[[], Any]]


def ways(fleet: Fleet, outside: Celery, connection: http.client.HTTPConnection, word: str) -> Asks:
    """The ways to ask; each returns the number of hits."""
    kwargs = {"user_id": USER, "query": word, "mode": MODE}
    address = f"/api/v1/search?{urlencode({'q': word, 'mode': MODE})}"

    def bare() -> int:
        sent = outside.send_task(SEARCH_SCENES, kwargs=kwargs, queue=TASK_QUEUE.get(SEARCH_SCENES, REQUESTS))
        try:
            return len(sent.get(timeout=30)["hits"])
        finally:
            sent.forget()
            # Its end would ask Redis to unsubscribe, also when that has gone.
            sent.backend.remove_pending_result(sent)
            sent.backend = None

    def over_http() -> int:
        connection.request("GET", address)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the search answers {answer.status}: {body[:300]!r}")
        return len(json.loads(body)["hits"])

    return {
        "send_task": bare,
        "client": lambda: len(fleet.client.search(USER, word, mode=MODE).hits),
        "api": over_http,
    }


def timed(asks: Asks, rounds: int, within_s: float = 3600) -> dict[str, Any]:
    """Milliseconds of each way, and the medians of what each round says of it against ``send_task``. ``within_s``: no round begins later."""
    took: dict[str, list[float]] = {name: [] for name in asks}
    hits = {name: ask() for name, ask in asks.items() for _ in range(5)}
    if len(set(hits.values())) > 1 or not hits["api"]:
        raise RuntimeError(f"the ways do not find the same: {hits}")
    order = random.Random(1)
    names = list(asks)
    last = time.monotonic() + within_s
    for _ in range(rounds):
        if time.monotonic() > last:
            break
        order.shuffle(names)
        for name in names:
            started = time.perf_counter()
            asks[name]()
            took[name].append((time.perf_counter() - started) * 1000)
    bare = took["send_task"]
    return {
        name: {
            "rounds": len(found),
            "p50_ms": statistics.median(found),
            "p95_ms": statistics.quantiles(found, n=20)[-1],
            "over_ms": statistics.median(one - other for one, other in zip(found, bare, strict=True)),
            "ratio": statistics.median(one / other for one, other in zip(found, bare, strict=True)),
        }
        for name, found in took.items()
    }


@contextmanager
def connections(api: Api, request: bytes, number: int) -> Iterator[list[socket.socket]]:
    """So many open connections that have sent this request, and have begun to be answered if it is one."""
    address = urlsplit(api.url)
    opened: list[socket.socket] = []
    try:
        for _ in range(number):
            opened.append(
                socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=30)
            )
            opened[-1].sendall(request)
            if request and not opened[-1].recv(4096).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("an event stream was refused")
        yield opened
    finally:
        for found in opened:
            found.close()


def still_open(opened: list[socket.socket]) -> int:
    """How many of them the server has not closed."""
    count = 0
    for found in opened:
        found.setblocking(False)
        try:
            while data := found.recv(65536):
                pass
            count += bool(data)
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def run(video: Path, rounds: int, clients: int) -> dict[str, Any]:
    """Index the video, then ask alone and with idle clients."""
    _allow_files(clients + 512)
    with servers() as (postgres, redis, folder), fleet_over(postgres, redis, folder / "home") as fleet:
        fleet.start()
        fleet.wait_ready(within_s=300)
        fleet.index(video, "sample", USER)
        fleet.stop(*(name for name in fleet.nodes if name not in SEARCHING))
        outside = Celery("outside", broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False)
        api = Api(fleet)
        api.start()
        try:
            return measure(fleet, api, outside, rounds, clients)
        finally:
            api.stop()


def measure(fleet: Fleet, api: Api, outside: Celery, rounds: int, clients: int) -> dict[str, Any]:
    """The three situations."""
    address = urlsplit(api.url)
    found: dict[str, Any] = {"clients": clients, "rounds": rounds}
    asking = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    words = " ".join(scene.transcript for scene in fleet.client.scenes("sample", USER).scenes).split()
    asks = ways(fleet, outside, asking, max(words, key=len))

    def look(name: str, opened: list[socket.socket], within_s: float = 3600) -> None:
        took = timed(asks, rounds, within_s)
        found[name] = {"took": took, "memory_mb": api.memory_mb, "open": still_open(opened)}
        if found[name]["open"] != len(opened):
            raise RuntimeError(f"{name}: only {found[name]['open']} of {len(opened)} were open at the end")

    timed(asks, 10)
    look("alone", [])
    stream = b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    with connections(api, stream, clients) as opened:
        look("streams", opened)
    # The API closes them after API_SLOW_CLIENT_S: the end has to be before that.
    with connections(api, b"", clients) as opened:
        look("silent", opened, within_s=SILENT_S)
    return found


def _allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number if hard < 0 else min(number, hard), hard))


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"A search by three ways; {result['clients']} idle clients")
    for column in ("idle", "way", "p50 ms", "p95 ms", "over ms", "ratio", "memory MB"):
        table.add_column(column, justify="left" if column in ("idle", "way") else "right")
    for name in ("alone", "streams", "silent"):
        for way, took in result[name]["took"].items():
            cells = (took["p50_ms"], took["p95_ms"], took["over_ms"])
            memory = f"{result[name]['memory_mb']:.0f}" if way == "api" else ""
            table.add_row(name, way, *(f"{cell:.2f}" for cell in cells), f"{took['ratio']:.2f}", memory)
    console.print(table)
    over_ms = result["alone"]["took"]["api"]["over_ms"]
    console.print(f"the API adds {over_ms:.2f} ms (at most {MOST_OVER_MS:g} wanted)")


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m bench.api", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--video", type=Path, default=ROOT / "samples" / "demo.mp4")
    parser.add_argument("--rounds", type=int, help="default 300, quick 20")
    parser.add_argument(
        "--quick", action="store_true", help="20 rounds, 100 idle clients: does everything run?"
    )
    parser.add_argument("--out", type=Path, default=OUT / "api.json")
    options = parser.parse_args()
    rounds = options.rounds or (20 if options.quick else 300)
    result = run(options.video, rounds, 100 if options.quick else CLIENTS)
    result["load_average"] = os.getloadavg()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result, Console())
    missed = not options.quick and result["alone"]["took"]["api"]["over_ms"] > MOST_OVER_MS
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
