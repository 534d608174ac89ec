"""Searches of the sample by one client and by several: with new queries, and with the same ones again."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from bench.online.load import SEARCHER, Load, run_load
from bench.online.report import Figure
from tests.support.fleet import Fleet

#: Clients at the same time.
CLIENTS = 16
#: Of one client's hybrid searches, ms.
_LONE_MS = 15.0
#: Of ``CLIENTS``, searches per second.
_FRESH_PER_S, _CACHED_PER_S = 100.0, 300.0


class _Way(NamedTuple):
    mode: Any
    clients: int
    fresh: bool


_WAYS = {
    "lone": _Way("hybrid", 1, True),
    "lone_keyword": _Way("keyword", 1, True),
    "fresh": _Way("hybrid", CLIENTS, True),
    "fresh_keyword": _Way("keyword", CLIENTS, True),
    "cached": _Way("hybrid", CLIENTS, False),
}


def measure(fleet: Fleet, video: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Index the sample, and search it in each way in turn. Raises RuntimeError if a search is answered without a retriever."""
    fleet.process(video, "searched", SEARCHER)
    fleet.wait_for("searched", user_id=SEARCHER, within_s=600)
    fleet.wait_rendition("searched", SEARCHER)
    found: dict[str, Any] = {name: {"per_s": [], "p50_ms": []} for name in _WAYS}
    for turn in range(rounds):
        for name, way in _WAYS.items():
            load = Load(kind=way.mode, url=fleet.redis_url, clients=way.clients, seconds=seconds, run=f"{name}{turn}",
                        fresh=way.fresh)  # fmt: skip
            said = run_load(load)
            found[name]["per_s"].append(said["texts_per_s"])
            found[name]["p50_ms"].append(1000 * statistics.median(said["took_s"]))
    return found


def judge(found: dict[str, Any]) -> list[Figure]:
    def of(name: str, field: str) -> float:
        return statistics.median(found[name][field])

    def ratio(name: str, other: str, field: str) -> float:
        pairs = zip(found[name][field], found[other][field], strict=True)
        return statistics.median(one / two for one, two in pairs)

    return [
        Figure("one client, hybrid: p50, ms", of("lone", "p50_ms"), most=_LONE_MS),
        Figure("... over the same by keyword", ratio("lone", "lone_keyword", "p50_ms")),
        Figure(f"{CLIENTS} clients, new queries: searches/s", of("fresh", "per_s"), least=_FRESH_PER_S),
        Figure("... over the same by keyword", ratio("fresh", "fresh_keyword", "per_s")),
        Figure(f"{CLIENTS} clients, the same queries: searches/s", of("cached", "per_s"), least=_CACHED_PER_S),
    ]  # fmt: skip
