"""Costs of the ledger at its designed size: ``python -m bench.ledger [--quick]``.

Prints the 95th percentile of each frequent statement over 2 million jobs, 20,000 waiting users, 200,000 deferred jobs and
200,000 people, and over a tenth of the ended jobs; the longest transactions of a video of 50,000 scenes; and the grouping of a
stranger among 20,000. A target that is missed is printed as missed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import OUT
from bench.ledger import costs, long_video, strangers
from bench.servers import DATABASE, servers
from shared.settings import Settings, get_settings
from tests.support.large_ledger import Size, fill
from worker.runtime import Runtime

#: Targets.
STATEMENT_MS, TRANSACTION_S, STRANGERS_MS = 10.0, 2.0, 100.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the sizes")
    share = 20 if parser.parse_args().quick else 1
    missed: list[str] = []
    figures: dict[str, object] = {"share": share}

    def judge(name: str, value: float, most: float, unit: str) -> None:
        verdict = "" if value <= most else "   MISSED"
        print(f"  {name:<44} {value:10.2f} {unit} (at most {most:g}){verdict}", flush=True)
        if verdict:
            missed.append(name)

    with servers() as (postgres, _, _), tempfile.TemporaryDirectory(prefix="scenefleet-bench-") as home:
        os.environ["SCENEFLEET_HOME"] = home
        get_settings.cache_clear()

        def database(name: str) -> str:
            postgres.execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE}")
            return postgres.url(name)

        found: dict[str, dict[str, float]] = {}
        for name, ended in (("young", 178_000), ("old", 1_780_000)):
            size = Size(
                ended_jobs=ended // share,
                waiting_users=20_000 // share,
                deferred_jobs=200_000 // share,
                people=200_000 // share,
            )
            url = database(name)
            fill(url, size)
            found[name] = costs.measure(url, 20 if share > 1 else 100)
        figures["statements_ms"] = found
        print(f"95th percentile of statements with {1_780_000 // share:,} ended jobs; with a tenth of them")
        for name, value in found["old"].items():
            judge(f"{name} ({found['young'][name]:.2f})", value, STATEMENT_MS, "ms")

        scenes = 50_000 // share
        runtime = Runtime(Settings())
        runtime.storage.ensure_buckets()
        with costs.sessions_on(database("long")):
            long = long_video.measure(runtime, Path(home), scenes)
        figures["long_video_s"] = {stage: asdict(one) for stage, one in long.items()}
        print(f"A video of {scenes:,} scenes")
        for stage, one in long.items():
            judge(f"{stage}: longest transaction", one.longest_transaction_s, TRANSACTION_S, "s")
            judge(f"{stage}: longest renewal of the lease", one.longest_beat_s, long_video.LEASE_S, "s")

        count = 20_000 // share
        with costs.sessions_on(database("strangers")):
            grouped = strangers.measure(count)
        figures["strangers_ms"] = asdict(grouped)
        print(f"A stranger among {count:,}: looked up in {grouped.look_up_ms:.1f} ms, without a lock")
        judge("transaction that groups it", grouped.transaction_ms, STRANGERS_MS, "ms")
    OUT.mkdir(exist_ok=True)
    (OUT / "ledger.json").write_text(json.dumps(figures, indent=2))
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
