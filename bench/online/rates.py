"""Texts per second and the time of one request: our fleet, infinity-emb, and the bare model, in turn."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.online.infinity import serving
from bench.online.load import Load, run_load
from bench.online.report import Figure
from tests.support.fleet import Fleet
from worker.models.catalog import load_catalog
from worker.models.weights.verify import locate

MODEL = "all-minilm-l6-v2"
CLIENTS = 64
#: Callers of several texts each: as many texts wait as with ``CLIENTS`` single ones, twice.
SEVERAL, TEXTS = 16, 8
#: What a lone caller may wait beyond the bare model, ms.
_OVER_MS = 8.0


def measure(fleet: Fleet, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Ask each in turn; the texts differ in every run. ``fleet``: its text node is ready."""
    model = locate(load_catalog().get(MODEL), "")
    found: dict[str, list[Any]] = {}

    def ask(name: str, kind: Any, url: str, clients: int, texts: int) -> None:
        run = f"{name} {len(found.get(name, []))}"
        load = Load(kind=kind, url=url, clients=clients, texts=texts, seconds=seconds, run=run)
        found.setdefault(name, []).append(run_load(load))

    with serving(model, folder / "infinity.log") as infinity:
        for _ in range(rounds):
            ask("infinity", "http", infinity, CLIENTS, 1)
            ask("single", "fleet", fleet.redis_url, CLIENTS, 1)
            ask("several", "fleet", fleet.redis_url, SEVERAL, TEXTS)
            ask("bare_32", "bare", MODEL, 1, 32)
            ask("lone", "fleet", fleet.redis_url, 1, 1)
            ask("bare_1", "bare", MODEL, 1, 1)
    return {
        name: {
            "texts_per_s": [round(one["texts_per_s"], 2) for one in runs],
            "p50_ms": [round(1000 * statistics.median(one["took_s"]), 2) for one in runs],
        }
        for name, runs in found.items()
    }


def judge(found: dict[str, Any]) -> list[Figure]:
    """Medians of the rounds' ratios and differences."""

    def compared(name: str, other: str, field: str) -> list[tuple[float, float]]:
        return list(zip(found[name][field], found[other][field], strict=True))

    def ratio(name: str, other: str) -> float:
        return statistics.median(one / two for one, two in compared(name, other, "texts_per_s"))

    over_ms = statistics.median(one - two for one, two in compared("lone", "bare_1", "p50_ms"))
    return [
        Figure(
            f"{CLIENTS} callers, single texts: texts/s over infinity-emb's",
            ratio("single", "infinity"),
            least=1.0,
        ),
        Figure(
            f"{TEXTS} texts a message: texts/s over the bare model's", ratio("several", "bare_32"), least=0.9
        ),
        Figure("a lone caller: p50 beyond the bare model's, ms", over_ms, most=_OVER_MS),
    ]
