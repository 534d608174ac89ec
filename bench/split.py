"""The split stage against plain decoding and against PySceneDetect, on clips whose cuts are known.

``python -m bench.split [--quick] [--runs N]``. Every way runs on every clip in turn, N times over, so that a busy
machine hurts all of them alike; medians are compared. CPU time is user plus system, of the work alone: starting an
interpreter and importing, which a worker does once, is left out for us and for PySceneDetect alike. "Three steps" is
PySceneDetect (the cheaper detector), its save-images (three a scene), and FFmpeg writing 16 kHz mono audio.
No threshold of the detectors was tuned on these clips: that was done on other seeds and on photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import OUT
from bench.env import ensure_env
from bench.storyboard import Clip, Score, make, score_clip

ROOT = Path(__file__).parents[1]
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}

#: (name, seed, size, seconds).
FULL = (("720p a", 7001, "720p", 60.0), ("720p b", 7002, "720p", 60.0), ("1080p", 7003, "1080p", 40.0))
QUICK = (("720p", 7004, "720p", 20.0),)


@dataclass(frozen=True)
class Cost:
    """Seconds of one run."""

    cpu_s: float
    wall_s: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)


def run_program(command: Sequence[str]) -> Cost:
    """Run a program to its end; raises CalledProcessError. All of its time counts."""
    wall_s, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(cpu_s, time.perf_counter() - wall_s)


def run_child(command: Sequence[str]) -> tuple[Cost, dict[str, Any]]:
    """Run one of our measuring children; return what it measured of itself, and its answer."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
    answer = json.loads(done.stdout.splitlines()[-1])
    return Cost(answer["cpu_s"], answer["wall_s"]), answer


class Ways:
    """Each way of doing the work: called with a clip and a folder, it returns its cost and, if it finds any, cuts."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._scenedetect = [str(ensure_env()), str(Path(__file__).parent / "pyscenedetect.py")]
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"threads;{threads}"

    def decode(self, clip: Clip, folder: Path) -> tuple[Cost, list[float] | None]:
        command = ["ffmpeg", "-v", "error", "-threads", str(self._threads), "-i", str(clip.path)]
        return run_program([*command, "-map", "0:v", "-map", "0:a?", "-f", "null", "-"]), None

    def exact(self, clip: Clip, folder: Path) -> tuple[Cost, list[float] | None]:
        return self._ours("exact", clip, folder)

    def fast(self, clip: Clip, folder: Path) -> tuple[Cost, list[float] | None]:
        return self._ours("fast", clip, folder)

    def _ours(self, mode: str, clip: Clip, folder: Path) -> tuple[Cost, list[float]]:
        command = [sys.executable, "-m", "bench.split", "--child", mode, str(clip.path), str(folder)]
        cost, answer = run_child([*command, "--threads", str(self._threads)])
        return cost, answer["cuts_s"]

    def content(self, clip: Clip, folder: Path) -> tuple[Cost, list[float] | None]:
        return self._detect("content", clip)

    def adaptive(self, clip: Clip, folder: Path) -> tuple[Cost, list[float] | None]:
        return self._detect("adaptive", clip)

    def _detect(self, detector: str, clip: Clip) -> tuple[Cost, list[float]]:
        cost, answer = run_child([*self._scenedetect, "detect", detector, str(clip.path)])
        return cost, answer["cuts_s"]

    def frames(self, clip: Clip, folder: Path) -> tuple[Cost, list[float] | None]:
        """The second step, for the true scenes, so that no detector's mistakes change its work."""
        cuts = json.dumps(sorted([*clip.cuts_s, *((a + b) / 2 for a, b in clip.gradual_s)]))
        return run_child([*self._scenedetect, "frames", str(clip.path), cuts, str(folder)])[0], None

    def audio(self, clip: Clip, folder: Path) -> tuple[Cost, list[float] | None]:
        """The third step."""
        command = ["ffmpeg", "-v", "error", "-y", "-i", str(clip.path), "-vn", "-ac", "1", "-ar", "16000"]
        return run_program([*command, str(folder / "three-steps.wav")]), None


def child(mode: Any, video: Path, folder: Path, threads: int) -> dict[str, Any]:
    """Split once in this process and say what it took."""
    from worker.media.limits import MediaLimits
    from worker.media.split import split

    wall_s, before = time.perf_counter(), os.times()
    result = split(video, folder, limits=MediaLimits(media_threads=threads), mode=mode)
    after, wall_s = os.times(), time.perf_counter() - wall_s
    return {
        "cuts_s": [scene.start_s for scene in result.scenes[1:]],
        "pictures": sum(len(scene.keyframes) for scene in result.scenes),
        "cpu_s": after.user + after.system - before.user - before.system,
        "wall_s": wall_s,
    }


def measure(clips: dict[str, Clip], runs: int, threads: int, console: Console) -> dict[str, Any]:
    """Run every way on every clip ``runs`` times, interleaved; return the medians and the scores."""
    ways = Ways(threads)
    steps: dict[str, Callable[[Clip, Path], tuple[Cost, list[float] | None]]] = {
        name: getattr(ways, name)
        for name in ("decode", "exact", "fast", "content", "adaptive", "frames", "audio")
    }
    costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    scores: dict[str, Score] = defaultdict(Score)
    for run in range(runs):
        for clip_name, clip in clips.items():
            for way, step in steps.items():
                with tempfile.TemporaryDirectory() as folder:
                    cost, cuts_s = step(clip, Path(folder))
                costs[clip_name, way].append(cost)
                if run == 0 and cuts_s is not None:
                    scores[way] += score_clip(clip, cuts_s)
        console.print(f"run {run + 1} of {runs} done", style="dim")
    medians = {
        clip_name: {
            way: Cost(
                statistics.median(c.cpu_s for c in costs[clip_name, way]),
                statistics.median(c.wall_s for c in costs[clip_name, way]),
            )
            for way in steps
        }
        for clip_name in clips
    }
    return {"medians": medians, "scores": scores}


def compare(medians: dict[str, dict[str, Cost]], scores: dict[str, Score]) -> list[dict[str, Any]]:
    """Return the targets, each with what was measured over all clips together."""
    total = {way: sum((m[way] for m in medians.values()), Cost(0, 0)) for way in next(iter(medians.values()))}
    detector = min(("content", "adaptive"), key=lambda way: total[way].cpu_s)
    three = total[detector] + total["frames"] + total["audio"]
    best = max(("content", "adaptive"), key=lambda way: scores[way].f1)
    rows = [
        ("exact: CPU over plain decoding", total["exact"].cpu_s / total["decode"].cpu_s, "<=", 1.15),
        ("three steps: CPU over exact", three.cpu_s / total["exact"].cpu_s, ">=", 2.0),
        ("three steps: wall over exact", three.wall_s / total["exact"].wall_s, ">=", 2.0),
        ("three steps: CPU over fast", three.cpu_s / total["fast"].cpu_s, ">=", 3.0),
        (f"exact: F1 of hard cuts against PySceneDetect {best}", scores["exact"].f1, ">=", scores[best].f1),
    ]
    return [
        {
            "target": name,
            "measured": round(value, 4),
            "rule": f"{sign} {bound:.4g}",
            "met": value <= bound if sign == "<=" else value >= bound,
        }
        for name, value, sign, bound in rows
    ]


def show(
    clips: dict[str, Clip], result: dict[str, Any], targets: list[dict[str, Any]], console: Console
) -> None:
    medians, scores = result["medians"], result["scores"]
    table = Table(title="split stage: median CPU s (wall s) by clip")
    for column in (
        "way",
        *(f"{name} ({clip.frames} frames)" for name, clip in clips.items()),
        "F1",
        "gradual",
    ):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way in next(iter(medians.values())):
        cells = [f"{medians[name][way].cpu_s:.2f} ({medians[name][way].wall_s:.2f})" for name in clips]
        s = scores.get(way)
        table.add_row(
            way, *cells, *((f"{s.f1:.3f}", f"{s.gradual_found}/{s.gradual_true}") if s else ("", ""))
        )
    console.print(table)
    table = Table(title="targets")
    for column in ("target", "measured", "rule", "met"):
        table.add_column(column)
    for row in targets:
        table.add_row(row["target"], f"{row['measured']:.3f}", row["rule"], "yes" if row["met"] else "NO")
    console.print(table)


def main() -> int:
    """Run the benchmark; exit status 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one short clip, one run")
    parser.add_argument("--runs", type=int, help="runs of every way on every clip (default 5, quick 1)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="decoder threads, for all ways"
    )
    parser.add_argument("--child", nargs=3, metavar=("MODE", "VIDEO", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, video, folder = options.child
        print(json.dumps(child(mode, Path(video), Path(folder), options.threads)))
        return 0
    if shutil.which("ffmpeg") is None:
        print(
            "bench.split compares with the ffmpeg program, which is not installed; install it (apt install ffmpeg)."
        )
        return 1
    console = Console()
    chosen = QUICK if options.quick else FULL
    clips = {name: make(seed, SIZES[size], seconds) for name, seed, size, seconds in chosen}
    result = measure(clips, options.runs or (1 if options.quick else 5), options.threads, console)
    targets = compare(result["medians"], result["scores"])
    show(clips, result, targets, console)
    OUT.mkdir(exist_ok=True)
    report = {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "threads": options.threads},
        "medians": {
            clip: {way: asdict(cost) for way, cost in m.items()} for clip, m in result["medians"].items()
        },
        "scores": {way: asdict(s) | {"f1": s.f1} for way, s in result["scores"].items()},
        "targets": targets,
    }
    (OUT / "split.json").write_text(json.dumps(report, indent=2))
    return 0 if all(row["met"] for row in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
