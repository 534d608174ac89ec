"""What the split stage costs beside plain decoding, on films as they are and on long ones joined of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av

from bench.films.truth import Film
from bench.split import run_child

#: Runs of each program whose CPU time is measured; the least counts, as the machine may be busy.
_RUNS = 3
#: Films that are joined to a long one of each size, of 25 frames a second: their fixed costs and their few cuts
#: weigh less in it.
JOINED = ("music-video.mp4", "bikes.mp4", "Megamind.avi", "bigbuckbunny.mp4", "sintel-16s.mp4")


def cpu_ratio(path: Path, weights: Path | None) -> float:
    """Return the CPU time of exact mode over that of decoding picture and sound with the same library."""
    command = [sys.executable, "-m", "bench.films"]
    split_it = [*command, "cost", str(path), *([str(weights)] if weights else [])]
    plain = min(run_child([*command, "decode", str(path)])[0].cpu_s for _ in range(_RUNS))
    return min(run_child(split_it)[0].cpu_s for _ in range(_RUNS)) / plain


def decode(path: Path) -> None:
    """Decode all pictures and all sound, and do nothing with them."""
    with av.open(str(path)) as container:
        for stream in container.streams.video:
            stream.thread_type = "AUTO"
        for packet in container.demux(*container.streams.video[:1], *container.streams.audio[:1]):
            packet.decode()


def cost(work: Callable[[], object]) -> dict[str, float]:
    """Return what a piece of work took in this process."""
    before = os.times()
    work()
    after = os.times()
    return {
        "cpu_s": after.user + after.system - before.user - before.system,
        "wall_s": after.elapsed - before.elapsed,
    }


def join(films: Sequence[Film], size: tuple[int, int], path: Path) -> None:
    """Write the films one after another as H.264, without sound."""
    width, height = size
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "21"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        count = 0
        for film in films:
            with av.open(str(film.path)) as source:
                for frame in source.decode(video=0):
                    scaled = frame.reformat(width=width, height=height, format="yuv420p")
                    scaled.pts, scaled.time_base, scaled.pict_type = count, Fraction(1, 25), 0
                    count += 1
                    target.mux(stream.encode(scaled))
        target.mux(stream.encode(None))
