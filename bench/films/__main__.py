"""Cuts on real films: what the split stage finds, beside PySceneDetect and TransNetV2 alone, and what it costs.

``python -m bench.films``: the table; ``fetch`` first gets the films; ``fit`` fits the models, and ``validate`` then counts the cuts when
each film is judged by models that were fitted to the others (minutes each).

A hard cut counts as found within one frame, a gradual transition where a cut is inside it (0.2 s of slack); any other
cut is false, also one of a kind that is not asked for. Films of part ``held`` took no part in fitting.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import OUT
from bench.env import ensure_env
from bench.films import costs, fit, streams, truth
from bench.films.sheets import probabilities, read as read_film
from bench.films.streams import Stream
from bench.films.truth import Film
from bench.split import SIZES, run_child
from bench.storyboard import Score, score
from worker.media.limits import MediaLimits
from worker.media.split import split
from worker.media.transnet import TransNet

Way = Callable[[Film, Stream], list[float]]
#: What the models were fitted to last.
_PROPOSED, _ASKED = OUT / "films-proposed.json", OUT / "films-asked.json"


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


def show(
    rows: dict[tuple[str, str], Score], films: Sequence[Film], names: Sequence[str], console: Console
) -> None:
    table = Table(title="found/true hard cuts, found/true gradual transitions (~), false cuts")
    for column in ("film", "part", *names):
        table.add_column(column)
    for film in films:
        table.add_row(film.file, film.part, *(cell(rows[film.file, name]) for name in names))
    for part in ("fit", "seen", "held"):
        sums = {n: sum((rows[f.file, n] for f in films if f.part == part), Score()) for n in names}
        cells = (f"{cell(s)} F1 {s.f1:.3f} {s.gradual_f1:.3f}~" for s in sums.values())
        table.add_row(f"all {part}", "", *cells, style="bold")
    console.print(table)


def fit_all(weights: Path) -> None:
    """Fit the cheap models, ask the network about what is doubtful by them, fit what its answers add, and save both."""
    proposed = fit.propose()
    cheap = fit.fit_cheap(proposed)
    asked = fit.ask(weights, cheap)
    fit.store(proposed, _PROPOSED)
    fit.store(asked, _ASKED)
    fit.save(fit.fit_joined(cheap, asked))


def show_validated(scores: dict[str, Score], console: Console) -> None:
    table = Table(title="each film judged by models fitted to the others; F1 counts every false cut")
    for column in ("film", "found", "F1 of hard cuts", "F1 of gradual transitions"):
        table.add_column(column)
    films = sum((one for name, one in scores.items() if name != "composed"), Score())
    for name, one in [*scores.items(), ("all films", films)]:
        table.add_row(name, cell(one), f"{one.f1:.3f}", f"{one.gradual_f1:.3f}" if one.gradual_true else "")
    console.print(table)


def measure_costs(films: Sequence[Film], weights: Path | None, console: Console) -> dict[str, float]:
    """Print and return the CPU time of large films, and of long ones joined of all kinds, over that of plain decoding."""
    OUT.mkdir(exist_ok=True)
    paths = []
    for film in films:
        with av.open(str(film.path)) as container:
            if container.streams.video[0].height >= 700:
                paths.append(film.path)
    parts = [film for name in costs.JOINED for film in films if film.file == name]
    for size in SIZES.values():
        paths.append(OUT / f"joined-{size[1]}p.mp4")
        if not paths[-1].exists():
            costs.join(parts, size, paths[-1])
    ratios = {}
    for path in paths:
        ratios[path.name] = costs.cpu_ratio(path, weights)
        console.print(f"{path.name}: {ratios[path.name]:.2f} times the CPU of plain decoding")
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "what", nargs="?", choices=("table", "fetch", "fit", "validate", "cost", "decode"), default="table"
    )
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="no costs")
    options = parser.parse_args()
    if options.what == "decode":
        print(json.dumps(costs.cost(lambda: costs.decode(options.paths[0]))))
        return 0
    if options.what == "cost":
        film, weights = options.paths[0], options.paths[1] if options.paths[1:] else None
        with tempfile.TemporaryDirectory() as folder:
            cv2.setNumThreads(1)  # as in a decoding process
            work = partial(split, film, Path(folder), limits=MediaLimits(), weights=weights)
            print(json.dumps(costs.cost(work)))
        return 0
    if options.what == "fetch":
        truth.fetch()
        return 0
    weights = truth.WEIGHTS if truth.WEIGHTS.exists() else None
    console = Console(width=200)
    if options.what in ("fit", "validate"):
        if weights is None:
            parser.error("the network's weights are not here: run `python -m bench.films fetch`")
        if options.what == "fit":
            fit_all(weights)
        else:
            show_validated(fit.cross_validate(weights, fit.load(_PROPOSED), fit.load(_ASKED)), console)
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
                slack_s=fit.SLACK_S,
                ambiguous_s=stream.ambiguous_s,
            )
    show(rows, films, list(ways), console)
    ratios = {} if options.quick else measure_costs(films, weights, console)
    OUT.mkdir(exist_ok=True)
    found = {f"{file} {name}": vars(row) for (file, name), row in rows.items()}
    (OUT / "films.json").write_text(json.dumps({"rows": found, "cpu": ratios}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
