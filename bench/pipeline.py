"""What the fleet adds to the work itself: a video's wall time over the sum of its critical path's stage times.

Rule: one video at a time through real worker processes, models warm. Wall time runs from the acceptance to the end of
the run, both by Postgres's clock. A stage's time is what its jobs took (claim to finish, summed over the parts, which
one worker of the queue does one after the other). Critical path: split, then the longest of asr + text, face and ocr, then
sidecar. The ratio is 1.0 when nothing is ever waited for. Printed: the median of the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import OUT
from bench.servers import servers
from tests.support.fleet import ROOT, Fleet, fleet_over

_TIMES = """
    SELECT stage, sum(extract(epoch FROM finished_at - started_at))::float AS seconds FROM jobs
    WHERE video_id IN (SELECT video_id FROM videos WHERE external_id = %s) AND state = 'done' AND started_at IS NOT NULL AND stage NOT IN ('sweep', 'erase') GROUP BY stage
"""
_WALL = (
    "SELECT extract(epoch FROM indexed_at - created_at)::float AS seconds FROM videos WHERE external_id = %s"
)


def measure(fleet: Fleet, video: Path, video_id: str) -> dict[str, Any]:
    """One video: its stage times, critical path and wall time in seconds."""
    fleet.process(video, video_id)
    status = fleet.wait_ended([video_id], within_s=900)[video_id]
    if status.state != "indexed":
        raise RuntimeError(f"{video_id} ended {status.state}: {status.error}")
    stages = {row["stage"]: row["seconds"] for row in fleet.rows(_TIMES, video_id)}
    spoken = stages.get("asr", 0.0) + stages.get("text", 0.0)
    seen = [stages.get(name, 0.0) for name in ("face", "ocr")]
    critical_s = stages["split"] + max(spoken, *seen) + stages["sidecar"]
    wall_s = fleet.rows(_WALL, video_id)[0]["seconds"]
    return {"stages_s": stages, "critical_s": critical_s, "wall_s": wall_s, "ratio": wall_s / critical_s}


def run(video: Path, runs: int) -> dict[str, Any]:
    """Start a fleet with production settings, index the video ``runs`` times after a warm-up."""
    production = {"LEASE_S": "60", "HEARTBEAT_S": "15", "RECONCILE_S": "3"}
    with (
        servers() as (postgres, redis, folder),
        fleet_over(postgres, redis, folder / "home", **production) as fleet,
    ):
        fleet.start()
        fleet.wait_ready()
        measure(fleet, video, "warm-up")
        results = [measure(fleet, video, f"run-{n}") for n in range(runs)]
    return {
        "video": video.name,
        "runs": results,
        "ratio": statistics.median(result["ratio"] for result in results),
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"Pipeline of {result['video']}: wall time over critical path")
    for column in (
        "run",
        "split s",
        "asr s",
        "text s",
        "face s",
        "ocr s",
        "sidecar s",
        "critical path s",
        "wall s",
        "ratio",
    ):
        table.add_column(column, justify="right")
    for n, measured in enumerate(result["runs"], 1):
        stages = measured["stages_s"]
        names = ("split", "asr", "text", "face", "ocr", "sidecar")
        cells = [f"{stages.get(name, 0.0):.2f}" for name in names]
        table.add_row(
            str(n),
            *cells,
            f"{measured['critical_s']:.2f}",
            f"{measured['wall_s']:.2f}",
            f"{measured['ratio']:.3f}",
        )
    console.print(table)
    console.print(f"median ratio {result['ratio']:.3f} (at most 1.2 wanted)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--video", type=Path, default=ROOT / "samples" / "demo.mp4")
    parser.add_argument("--runs", type=int, help="default 3, quick 1")
    parser.add_argument("--quick", action="store_true", help="one run")
    arguments = parser.parse_args()
    result = run(arguments.video, arguments.runs or (1 if arguments.quick else 3))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "pipeline.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result, Console())


if __name__ == "__main__":
    main()
