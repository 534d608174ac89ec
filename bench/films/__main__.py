"""Cuts on real films: what the split stage finds, beside PySceneDetect and TransNetV2 alone, and what it costs.

``python -m bench.films``: the table; ``fetch`` first gets the films, ``fit`` fits the cheap models, ``fit-network`` those that join the
network's answers with them, and prints what is right when each film is judged by the others (minutes each).

A hard cut counts as found within one frame, a gradual transition where a cut is inside it (0.2 s of slack); any other
cut is false, also one of a kind that is not asked for. Films of part ``held`` took no part in fitting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import OUT
from bench.env import ensure_env
from bench.films import fit, streams, truth
from bench.films.sheets import probabilities, read as read_film
from bench.films.streams import Stream
from bench.films.truth import Film
from bench.split import run_child
from bench.storyboard import Score, score
from worker.media.limits import MediaLimits
from worker.media.split import split
from worker.media.transnet import TransNet

Way = Callable[[Film, Stream], list[float]]
#: Runs of each program whose CPU time is measured; the least counts, as the machine may be busy.
_RUNS = 3
#: How far outside a gradual transition a cut is still inside it: where one begins is labelled by eye.
_SLACK_S = 0.2


def cell(score: Score) -> str:
    gradual = f" {score.gradual_found}/{score.gradual_true}~" if score.gradual_true else ""
    return f"{score.right}/{score.true}{gradual} {score.false} false"


def ours(weights: Path | None, mode: str = "exact") -> Way:
    def find(film: Film, stream: Stream) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            found = split(film.path, Path(folder), limits=MediaLimits(), mode=mode, weights=weights)  # type: ignore[arg-type]
        return [scene.start_s for scene in found.scenes[1:]]

    return find


def scenedetect(detector: str) -> Way:
    program = [str(ensure_env()), str(Path(__file__).parents[1] / "pyscenedetect.py")]

    def find(film: Film, stream: Stream) -> list[float]:
        cuts_s: list[float] = run_child([*program, "detect", detector, str(film.path)])[1]["cuts_s"]
        return cuts_s

    return find


def transnet(weights: Path) -> Way:
    """TransNetV2 as its authors use it: every frame, one cut for each run of frames over 0.5."""
    network = TransNet(weights)

    def find(film: Film, stream: Stream) -> list[float]:
        over = probabilities(network, read_film(film.path)[0])[:, 0] > 0.5
        ends = np.flatnonzero(over[:-1] & ~over[1:]) + 1
        return [float(end) * stream.frame_s for end in ends]

    return find


def cpu_ratio(film: Film, weights: Path | None) -> float:
    """Return the CPU time of exact mode over that of decoding picture and sound with the same library."""
    command = [sys.executable, "-m", "bench.films"]
    split_it = [*command, "cost", str(film.path), *([str(weights)] if weights else [])]
    plain = min(run_child([*command, "decode", str(film.path)])[0].cpu_s for _ in range(_RUNS))
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


def show(
    rows: dict[tuple[str, str], Score], films: Sequence[Film], names: Sequence[str], console: Console
) -> None:
    table = Table(title="found/true hard cuts, found/true gradual transitions (~), false cuts")
    for column in ("film", "part", *names):
        table.add_column(column)
    for film in films:
        table.add_row(film.file, film.part, *(cell(rows[film.file, name]) for name in names))
    for part in ("fit", "held"):
        sums = {n: sum((rows[f.file, n] for f in films if f.part == part), Score()) for n in names}
        table.add_row(f"all {part}", "", *(f"{cell(s)} F1 {s.f1:.3f}" for s in sums.values()), style="bold")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "what", nargs="?", choices=("table", "fetch", "fit", "fit-network", "cost", "decode"), default="table"
    )
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="no costs")
    options = parser.parse_args()
    if options.what == "decode":
        print(json.dumps(cost(lambda: decode(options.paths[0]))))
        return 0
    if options.what == "cost":
        film, weights = options.paths[0], options.paths[1] if options.paths[1:] else None
        with tempfile.TemporaryDirectory() as folder:
            work = partial(split, film, Path(folder), limits=MediaLimits(), weights=weights)
            print(json.dumps(cost(work)))
        return 0
    if options.what == "fetch":
        truth.fetch()
        return 0
    weights = truth.WEIGHTS if truth.WEIGHTS.exists() else None
    console = Console(width=200)
    if options.what == "fit":
        fit.save(fit.fit())
        return 0
    if options.what == "fit-network":
        if weights is None:
            parser.error("the network's weights are not here: run `python -m bench.films fetch`")
        asked = fit.ask(weights)
        OUT.mkdir(exist_ok=True)
        (OUT / "films-asked.json").write_text(
            json.dumps([{k: [vars(e) for e in v] for k, v in one.items()} for one in asked])
        )
        for kind in fit.KINDS:
            console.print(f"{kind}, each group by the others: {fit.cross_validate(asked, kind)}")
        fit.save(fit.fit_network(asked))
        return 0
    films = [film for film in truth.films() if film.path.exists()]
    if not films:
        console.print(f"no film is in {truth.MEDIA}: run `python -m bench.films fetch`")
        return 0
    ways: dict[str, Way] = {
        "cheap": ours(None),
        "content": scenedetect("content"),
        "adaptive": scenedetect("adaptive"),
    }
    if weights:
        ways = {
            "ours": ours(weights),
            **ways,
            "TransNetV2": transnet(weights),
            "accurate": ours(weights, "accurate"),
        }
    rows: dict[tuple[str, str], Score] = {}
    for film in films:
        stream = streams.of_film(film)
        for name, way in ways.items():
            rows[film.file, name] = score(
                way(film, stream),
                stream.hard_s,
                stream.gradual_s,
                frame_s=stream.frame_s,
                slack_s=_SLACK_S,
                ambiguous_s=stream.ambiguous_s,
            )
    show(rows, films, list(ways), console)
    costs = {}
    if not options.quick:
        for film in films:
            with av.open(str(film.path)) as container:
                high = container.streams.video[0].height >= 700
            if high:
                costs[film.file] = cpu_ratio(film, weights)
                console.print(f"{film.file}: {costs[film.file]:.2f} times the CPU of plain decoding")
    OUT.mkdir(exist_ok=True)
    found = {f"{file} {name}": vars(row) for (file, name), row in rows.items()}
    (OUT / "films.json").write_text(json.dumps({"rows": found, "cpu": costs}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
