"""``python -m bench.online [--quick] [--only PART]...``: prints each figure with its target, stores all of it as JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import OUT
from bench.online import deaths, flood, indexing, rates, searches
from bench.online.load import THREADS, Load, run_load
from bench.online.report import Figure, show
from bench.servers import servers
from local.node_plan import PROCESSES
from tests.support.fleet import ROOT, Fleet, fleet_over

PARTS = ("rates", "deaths", "searches", "indexing", "flood")
VIDEO = ROOT / "samples" / "demo.mp4"


def run(parts: list[str], *, quick: bool) -> tuple[dict[str, Any], list[Figure]]:
    """Start the lite fleet as shipped, and measure part after part."""
    found: dict[str, Any] = {}
    figures: list[Figure] = []
    with servers() as (postgres, redis, folder), fleet_over(postgres, redis, folder / "home") as fleet:
        # What `scenefleet node` sets (local/node.py).
        fleet.environment |= THREADS
        if not quick:
            # As shipped: every core.
            del fleet.environment["SCENEFLEET_MODEL_THREADS"]
        fleet.start("text")
        fleet.wait_ready(within_s=300)
        if "rates" in parts:
            rounds, seconds = (1, 3.0) if quick else (5, 15.0)
            found["rates"] = rates.measure(fleet, folder, rounds, seconds)
            figures += rates.judge(found["rates"])
        if "deaths" in parts:
            found["deaths"] = deaths.measure(fleet, *((100, 1) if quick else (10_000, 20)))
            figures += deaths.judge(found["deaths"])
        if {"searches", "indexing", "flood"} & set(parts):
            for family in ("media", "asr", "face", "ocr", "housekeeping", "search"):
                fleet.start(family, concurrency=PROCESSES.get(family, 1))
            fleet.wait_ready(within_s=300)
        if "searches" in parts:
            found["searches"] = searches.measure(fleet, VIDEO, *((1, 3.0) if quick else (5, 10.0)))
            figures += searches.judge(found["searches"])
        if "indexing" in parts:
            found["indexing"] = indexing.measure(fleet, VIDEO, 1 if quick else 20)
            figures += indexing.judge(found["indexing"])
        if "flood" in parts:
            found["flood"] = flood.measure(fleet, VIDEO, _capacity(fleet, found), 5.0 if quick else 60.0)
            figures += flood.judge(found["flood"])
    return found, figures


def _capacity(fleet: Fleet, found: dict[str, Any]) -> float:
    """Texts per second of the fleet."""
    if "rates" in found:
        return float(statistics.median(found["rates"]["single"]["texts_per_s"]))
    load = Load(kind="fleet", url=fleet.redis_url, clients=rates.CLIENTS, seconds=5.0, run="capacity")
    return float(run_load(load)["texts_per_s"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.online", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="this part; may be given several times"
    )
    parser.add_argument("--quick", action="store_true", help="a few of everything: does it run?")
    parser.add_argument("--out", type=Path, default=OUT / "online.json")
    options = parser.parse_args()
    found, figures = run(options.only or list(PARTS), quick=options.quick)
    missed = [figure.name for figure in figures if not figure.is_met]
    report = {**found, "quick": options.quick, "missed": missed, "load_average": os.getloadavg()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    show(figures, Console())
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
