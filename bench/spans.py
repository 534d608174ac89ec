"""One long video on two media processes, in spans, against one pass in one of them.

``python -m bench.spans [--minutes N] [--span-s N] [--runs N] [--threads N]``. The file is a drawn 720p clip of a minute, its packets copied
behind each other. Both ways go through real worker processes of one fleet, in turn; no other stage has a node. The time of a split
runs from the claim of its first part to the end of its last one, by Postgres's clock. Memory is the largest resident set that any
decoding process reached in a way. Decoders have one thread, unless ``--threads`` says otherwise: with more, one pass takes several
cores, too, and two media processes need twice as many.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import psutil
from rich.console import Console
from rich.table import Table

from bench import OUT
from bench.servers import servers
from bench.split import SIZES
from bench.storyboard import make
from shared.settings import Settings
from tests.support.fleet import Fleet, eventually, fleet_over

#: One pass over spans must take at least so many times as long.
TARGET = 1.7
_CLIP_S = 60.0
_LOOK_S = 0.2

_STATE = """
    SELECT count(*) AS parts, count(*) FILTER (WHERE state = 'done') AS done, count(*) FILTER (WHERE state = 'failed') AS failed,
        extract(epoch FROM max(finished_at) - min(started_at))::float AS seconds, sum(device_seconds) AS device_s
    FROM jobs WHERE stage = 'split' AND video_id IN (SELECT video_id FROM videos WHERE external_id = %s)
"""
_PARTS = """
    SELECT coalesce(payload->>'does', 'plan') AS does, array_agg(extract(epoch FROM finished_at - started_at)::float ORDER BY part) AS seconds
    FROM jobs WHERE stage = 'split' AND video_id IN (SELECT video_id FROM videos WHERE external_id = %s) GROUP BY 1
"""
_SCENES = "SELECT start_s, end_s, kind, keyframes FROM scenes JOIN videos USING (video_id) WHERE external_id = %s ORDER BY idx"


def lengthen(source: Path, path: Path, times: int) -> None:
    """Write a file with the packets of ``source`` so many times behind each other."""
    with av.open(str(path), "w") as new:
        streams: list[Any] = []
        offset_s = 0.0
        for _ in range(times):
            with av.open(str(source)) as old:
                streams = streams or [new.add_stream_from_template(stream) for stream in old.streams]
                for packet in old.demux():
                    if packet.dts is None or packet.pts is None or packet.time_base is None:
                        continue
                    shift = round(offset_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.index]
                    new.mux(packet)
                # Sound in whole packets, so that its clock goes on.
                offset_s += (old.duration or 0) / 1e6 + 0.02


@contextmanager
def watched(fleet: Fleet) -> Iterator[dict[int, int]]:
    """The largest resident set of each decoding process meanwhile, bytes."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            for child in fleet.nodes["media"].children:
                try:
                    for process in child.children():
                        peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def measure(fleet: Fleet, nodes: int, span_s: float, path: Path, video_id: str) -> dict[str, Any]:
    """Split the video once on so many media processes; what it took."""
    fleet.start("media", concurrency=nodes, SPLIT_SPAN_S=str(span_s))
    fleet.wait_ready()
    began = time.monotonic()
    with watched(fleet) as peaks:
        fleet.process(path, video_id)

        def ended() -> bool:
            (row,) = fleet.rows(_STATE, video_id)
            if row["failed"]:
                raise RuntimeError(f"a part of {video_id} failed")
            others = fleet.rows(
                "SELECT FROM jobs JOIN videos USING (video_id) WHERE external_id = %s AND stage <> 'split'",
                video_id,
            )
            return bool(others)

        eventually(ended, within_s=3 * 3600, what=f"{video_id} is split", every_s=0.5)
    wall_s = time.monotonic() - began
    (row,) = fleet.rows(_STATE, video_id)
    took = fleet.rows(_PARTS, video_id)
    fleet.stop("media")
    return {
        "parts": row["parts"],
        "parts_s": {part["does"]: [round(one, 1) for one in part["seconds"]] for part in took},
        "split_s": row["seconds"],
        "device_s": float(row["device_s"]),
        "wall_s": wall_s,
        "peak_mb": max(peaks.values()) / 1e6,
    }


def scenes(fleet: Fleet, video_id: str) -> list[dict[str, Any]]:
    found = fleet.rows(_SCENES, video_id)
    for row in found:
        for keyframe in row["keyframes"]:
            del keyframe["key"]
    return found


def outline(scene: dict[str, Any]) -> dict[str, Any]:
    """A scene without its keyframes."""
    return {name: value for name, value in scene.items() if name != "keyframes"}


def run(minutes: int, span_s: float, runs: int, threads: int, console: Console) -> dict[str, Any]:
    """Both ways in turn, ``runs`` times."""
    clip = make(7001, SIZES["720p"], _CLIP_S)
    options = {"MEDIA_THREADS": str(threads), "LEASE_S": "60", "HEARTBEAT_S": "15", "RECONCILE_S": "3"}
    found: dict[str, list[dict[str, Any]]] = {"one pass": [], "spans": []}
    same, others = True, 0
    with (
        servers() as (postgres, redis, folder),
        fleet_over(postgres, redis, folder / "home", **options) as fleet,
    ):
        path = folder / "long.mp4"
        lengthen(clip.path, path, minutes)
        fleet.start("search")  # it takes requests
        for number in range(runs):
            for way, nodes, length_s in (("one pass", 1, 0.0), ("spans", 2, span_s)):
                video_id = f"{way.replace(' ', '-')}-{number}"
                found[way].append(measure(fleet, nodes, length_s, path, video_id))
                console.print(f"{way}: {found[way][-1]}", style="dim")
            one, two = (scenes(fleet, f"{way}-{number}") for way in ("one-pass", "spans"))
            same &= [outline(scene) for scene in one] == [outline(scene) for scene in two]
            apart = sum(a["keyframes"] != b["keyframes"] for a, b in zip(one, two, strict=False))
            # Only a scene that crosses a seam may have others.
            same &= apart < found["spans"][-1]["parts"]
            others = max(others, apart)
        count = len(scenes(fleet, "spans-0"))
    ratios = [one["split_s"] / spans["split_s"] for one, spans in zip(*found.values(), strict=True)]
    return {
        "minutes": minutes,
        "span_s": span_s,
        "threads": threads,
        "cores": os.cpu_count(),
        "scenes": count,
        "same_scenes": same,
        "other_keyframes": others,
        "ways": found,
        "ratio": statistics.median(ratios),
    }


def main() -> int:
    """Run the benchmark; exit status 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a video of 12 minutes")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--span-s", type=float, default=Settings().split_span_s, help="length of the spans")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each decoder, for both ways")
    chosen = parser.parse_args()
    console = Console()
    minutes = 12 if chosen.quick else chosen.minutes
    result = run(minutes, chosen.span_s, chosen.runs, chosen.threads, console)
    table = Table(title=f"a 720p video of {result['minutes']} min, {result['scenes']} scenes")
    for column in ("way", "split, s", "jobs' time, s", "largest decoding process, MB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, measured in result["ways"].items():
        medians = (
            statistics.median(one[name] for one in measured) for name in ("split_s", "device_s", "peak_mb")
        )
        table.add_row(way, *(f"{value:.0f}" for value in medians))
    console.print(table)
    met = result["ratio"] >= TARGET and result["same_scenes"]
    console.print(
        f"one pass over spans on 2 processes: {result['ratio']:.2f} (target {TARGET}); "
        f"scenes {'are the same' if result['same_scenes'] else 'DIFFER'}, "
        f"{result['other_keyframes']} that cross a seam have other keyframes"
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "spans.json").write_text(json.dumps(result, indent=2))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
