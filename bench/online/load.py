"""Callers of one server, in a process of their own: how many texts it embeds or searches for, and how long each request takes.

``python -m bench.online.load JSON``; the JSON is a ``Load``. Prints one line of JSON: ``texts_per_s`` and ``took_s``.
Each caller sends its next request when it has the last answer. No text is sent twice, so no cache answers, unless ``fresh`` is false.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from bench.models import make_texts

ROOT = Path(__file__).parents[2]
#: Of every server that is compared: threads that wait for work don't take the cores of those that have some.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
#: Requests that each caller sends before the clock runs.
_WARM_UP = 1
SEARCHER = "local"
REPEATED = 16
#: Words of a text that are searched for.
_QUERY_WORDS = 5
Ask = Callable[[Sequence[str]], int]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked: ``fleet``, a REDIS_URL, by ``shared.client``; ``http``, an address that answers as OpenAI's embeddings
    do; ``bare``, a model of the catalogue in the caller's process, by its own library; ``hybrid`` and ``keyword``, searches of
    ``SEARCHER``'s videos, by ``shared.client``.
    """

    kind: Literal["fleet", "http", "bare", "hybrid", "keyword"]
    url: str
    clients: int
    #: Of each request.
    texts: int = 1
    seconds: float
    #: In each text: different in each run.
    run: str
    #: Whether each text is sent once; otherwise the same ``REPEATED`` are sent again and again.
    fresh: bool = True


def run_load(load: Load) -> dict[str, Any]:
    """Run callers in a process of their own, and return what it prints."""
    command = [sys.executable, "-m", "bench.online.load", json.dumps(asdict(load))]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **THREADS},
        capture_output=True,
        text=True,
        timeout=load.seconds + 300,
    )
    if done.returncode:
        raise RuntimeError(f"the callers of {load.kind} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(load: Load) -> dict[str, Any]:
    """Ask with all callers at the same time for ``seconds``. Raises what one of them raised."""
    drawn, numbers = make_texts(512), itertools.count()
    took: list[float] = []
    failed: list[Exception] = []
    start = threading.Barrier(load.clients + 1)
    ends_s = 0.0

    def texts() -> list[str]:
        found = [next(numbers) for _ in range(load.texts)]
        if not load.fresh:
            found = [number % REPEATED for number in found]
        return [f"{load.run} {number} {drawn[number % len(drawn)]}" for number in found]

    def call(ask: Ask) -> None:
        try:
            for _ in range(_WARM_UP):
                ask(texts())
            start.wait()
            while (began_s := time.perf_counter()) < ends_s:
                asked = texts()
                if ask(asked) != len(asked):
                    raise RuntimeError(f"{load.kind} answers with another number of vectors")
                if (ended_s := time.perf_counter()) < ends_s:
                    took.append(ended_s - began_s)
        except Exception as error:  # noqa: BLE001 - it is raised by the caller of ``measure``
            failed.append(error)
            start.abort()

    asks = _asks(load)
    threads = [threading.Thread(target=call, args=(ask,), daemon=True) for ask in asks]
    for thread in threads:
        thread.start()
    # Set before the last one reaches the barrier: a little of the first requests is lost, of every server alike.
    while start.n_waiting < load.clients and not failed:
        time.sleep(0.01)
    ends_s = time.perf_counter() + load.seconds
    if not failed:
        start.wait()
    for thread in threads:
        thread.join(timeout=load.seconds + 240)
    if failed:
        raise failed[0]
    return {"texts_per_s": len(took) * load.texts / load.seconds, "took_s": took}


def _asks(load: Load) -> list[Ask]:
    if load.kind == "http":
        return [_over_http(load.url) for _ in range(load.clients)]
    if load.kind == "bare":
        return [_bare(load.url)] * load.clients
    from shared.client import Client

    client = Client(load.url, timeout_s=240)
    if load.kind in ("hybrid", "keyword"):
        return [lambda texts: _search(client, load.kind, texts)] * load.clients
    return [lambda texts: len(client.embed_texts(texts).vectors)] * load.clients


def _search(client: Any, mode: str, texts: Sequence[str]) -> int:
    """Search for the first words of a text, as long as a query is."""
    (text,) = texts
    answer = client.search(SEARCHER, " ".join(text.split()[:_QUERY_WORDS]), mode=mode)
    if answer.degraded:
        raise RuntimeError(f"a search was answered without {answer.degraded}")
    return 1


def _bare(name: str) -> Ask:
    from bench.engines import ENGINES
    from worker.models.catalog import load_catalog

    spec = load_catalog().get(name)
    engine = ENGINES[spec.provider](spec, len(os.sched_getaffinity(0)))

    def ask(texts: Sequence[str]) -> int:
        engine.run(texts)
        return len(texts)

    return ask


def _over_http(url: str) -> Ask:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=240)
    headers = {"Content-Type": "application/json"}

    def ask(texts: Sequence[str]) -> int:
        body = json.dumps({"model": "minilm", "input": list(texts)})
        try:
            connection.request("POST", address.path, body, headers)
            answer = connection.getresponse()
        except ConnectionError:
            # The server closes one that was idle for some seconds, as before the clock runs.
            connection.close()
            connection.request("POST", address.path, body, headers)
            answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{url} answers {answer.status}: {said[:300]!r}")
        return len(json.loads(said)["data"])

    return ask


if __name__ == "__main__":
    print(json.dumps(measure(Load(**json.loads(sys.argv[1])))))
