"""What the fleet takes in memory when it is idle, against one that loads every model in every process.

``python -m bench.memory [--quick]``. The lite fleet as ``scenefleet up`` runs it, one node of one process per family; then the
same nodes with every model in each child (`bench/naive.py`). Counted is the proportional set size (PSS) of all their
processes, in which memory that several of them share counts once; not that of Postgres and Redis, which both have. For
the full models there is the catalogue's memory_mb only: an estimate, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench import OUT
from bench.servers import servers
from tests.support.fleet import FAMILIES, Fleet, eventually, fleet_over

MB = 1e6
#: Settled: two looks this far apart differ by less than that share.
_LOOK_S, _SETTLED = 3.0, 0.01
_PATIENCE_S = 120.0


def pss_bytes(fleet: Fleet) -> dict[str, int]:
    """Node -> PSS of its main process and its children."""
    return {
        name: sum(
            process.memory_full_info().pss
            for process in (
                psutil.Process(node.process.pid),
                *psutil.Process(node.process.pid).children(True),
            )
        )
        for name, node in fleet.nodes.items()
    }


def measure(fleet: Fleet, families: Sequence[str], *, naive: bool) -> dict[str, int]:
    """Start the nodes, wait until they are idle and settled, look, stop them."""
    fleet.app = "bench.naive" if naive else "worker.app"
    fleet.start(*families)
    fleet.wait_ready(within_s=300)
    if naive:
        eventually(
            lambda: len(list(fleet.home.glob("naive-*"))) == len(families),
            within_s=300,
            what="every child has every model",
        )
    found, deadline = pss_bytes(fleet), time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        before, found = found, pss_bytes(fleet)
        if abs(sum(found.values()) - sum(before.values())) < _SETTLED * sum(before.values()):
            break
    fleet.stop()
    return found


def run(families: Sequence[str]) -> dict[str, Any]:
    """Both fleets, one after the other."""
    with servers() as (postgres, redis, folder), fleet_over(postgres, redis, folder / "home") as fleet:
        ours = measure(fleet, families, naive=False)
        naive = measure(fleet, families, naive=True)
    return {
        "families": list(families),
        "fleet_bytes": ours,
        "naive_bytes": naive,
        "ratio": sum(naive.values()) / sum(ours.values()),
        "full_estimate": estimate_full(),
    }


def estimate_full() -> dict[str, Any]:
    """What the catalogue says the full models take: each once, or all of them in each process of a family.

    Both without the processes themselves.
    """
    from shared.routing import FAMILIES as ALL
    from worker.models.catalog import load_catalog

    models = {spec.name: spec.memory_mb for spec in load_catalog().for_profile("full").values()}
    once = sum(models.values())
    return {"models_mb": models, "fleet_mb": once, "naive_mb": once * len(ALL), "processes": len(ALL)}


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Idle lite fleet: PSS in MB, measured")
    for column in ("node", "scenefleet", "every model everywhere"):
        table.add_column(column, justify="left" if column == "node" else "right")
    ours, naive = result["fleet_bytes"], result["naive_bytes"]
    for name in ours:
        table.add_row(name, f"{ours[name] / MB:.0f}", f"{naive[name] / MB:.0f}")
    table.add_row(
        "together", f"{sum(ours.values()) / MB:.0f}", f"{sum(naive.values()) / MB:.0f}", style="bold"
    )
    console.print(table)
    console.print(f"every model everywhere takes {result['ratio']:.2f} times as much")
    full = result["full_estimate"]
    table = Table(title="Full models: MB by the catalogue, an estimate")
    for column in ("model", "memory_mb"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, memory_mb in full["models_mb"].items():
        table.add_row(name, str(memory_mb))
    table.add_row("each once", str(full["fleet_mb"]), style="bold")
    table.add_row(f"all in each of {full['processes']} processes", str(full["naive_mb"]), style="bold")
    console.print(table)


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one family only: does everything run?")
    parser.add_argument("--out", type=Path, default=OUT / "memory.json")
    options = parser.parse_args()
    if sys.platform != "linux":
        print("bench.memory reads the proportional set size of processes, which only Linux tells")
        return 1
    result = run(("search",) if options.quick else FAMILIES)
    show(result, Console())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
