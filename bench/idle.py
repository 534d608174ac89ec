"""What an idle fleet costs: CPU and memory of every process of ``scenefleet up``.

``python -m bench.idle [--quick] [--seconds N]``. Starts the lite fleet in a home of its own, waits until it has settled, and reads the CPU
time of all its processes from /proc, over a minute: nodes, their children, API, Postgres, Redis, process runner. Percent of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench import OUT
from tests.support.fleet import ROOT, kept_environment

#: Until first reads, caches and late imports are done, seconds.
_SETTLE_S = 30.0


def _name(process: psutil.Process) -> str:
    """What a process is, by its command line; children of a node count to it."""
    words = process.cmdline()
    for word in words:
        if "@%h" in word:
            return word.partition("@")[0]
    text = " ".join(words)
    for known in ("supervisord", "postgres", "redis", "valkey", "cli api", "cli up"):
        if known in text:
            return known.removeprefix("cli ")
    return words[0] if words else "gone"


def look(root: int) -> dict[str, dict[str, float]]:
    """Name -> CPU seconds, resident and proportional bytes, processes."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    top = psutil.Process(root)
    for process in (top, *top.children(recursive=True)):
        try:
            times, memory, name = process.cpu_times(), process.memory_full_info(), _name(process)
        except psutil.Error:
            continue
        row = found[name]
        row["cpu_s"] += times.user + times.system
        row["rss_bytes"] += memory.rss
        row["pss_bytes"] += memory.pss
        row["processes"] += 1
    return found


def measure(home: Path, settle_s: float, seconds: float) -> dict[str, Any]:
    """Start the fleet, let it settle, look twice, stop it."""
    environment = {**kept_environment(), "SCENEFLEET_HOME": str(home), "API_PORT": "0"}
    command = [sys.executable, "-m", "cli"]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment}
    subprocess.run([*command, "up", "--detach"], check=True, timeout=300, **options)
    try:
        run = json.loads((home / "run.json").read_text())
        time.sleep(settle_s)
        before, began = look(run["pid"]), time.monotonic()
        time.sleep(seconds)
        after, passed_s = look(run["pid"]), time.monotonic() - began
    finally:
        subprocess.run([*command, "down"], check=True, timeout=120, **options)
    return {
        name: {**row, "percent": 100 * (row["cpu_s"] - before.get(name, row)["cpu_s"]) / passed_s}
        for name, row in after.items()
    }


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(title="Idle lite fleet")
    for column in ("process", "number", "% of a core", "RSS MB", "PSS MB"):
        table.add_column(column, justify="left" if column == "process" else "right")

    def row(name: str, rows: list[dict[str, float]], **options: str) -> None:
        sums = {
            key: sum(one[key] for one in rows) for key in ("processes", "percent", "rss_bytes", "pss_bytes")
        }
        table.add_row(name, f"{sums['processes']:.0f}", f"{sums['percent']:.2f}", f"{sums['rss_bytes'] / 1e6:.0f}",
                      f"{sums['pss_bytes'] / 1e6:.0f}", **options)  # fmt: skip

    for name, one in sorted(found.items(), key=lambda item: -item[1]["percent"]):
        row(name, [one])
    row("together", list(found.values()), style="bold")
    console.print(table)


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two seconds only: does everything run?")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=OUT / "idle.json")
    options = parser.parse_args()
    if sys.platform != "linux":
        print("bench.idle reads the CPU time of processes in /proc, which only Linux has")
        return 1
    with tempfile.TemporaryDirectory(prefix="scenefleet-idle-") as folder:
        Path(folder).chmod(0o700)
        settle_s, seconds = (0.0, 2.0) if options.quick else (_SETTLE_S, options.seconds)
        found = measure(Path(folder) / "home", settle_s, seconds)
    show(found, Console())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
