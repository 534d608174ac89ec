"""How much of what a scene shows is on its keyframes: the choice by content beside the one that it replaced.

``python -m bench.keyframes [--quick]``: scenes with texts shown for 1 to 4 s, slides built line by line and people who come late
(``bench/shown.py``), those that the choice was tuned on and those held out, and the sample. A text is read if the product's reader finds it
letter for letter on a keyframe of the scene, a person is found if the product's face model matches a keyframe with their photograph. "before"
takes the sharpest frame of each equal part of the scene. It may repeat itself here, and so never has fewer keyframes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench import OUT, shown
from bench.ocr import plain
from bench.shown import Scene, Shown
from worker.media.keyframes import Recent, SceneFrames
from worker.media.planes import fine_size, sharpness, thumb_size
from worker.media.sampling import Look, Sampler
from worker.models.catalog import load_catalog
from worker.models.face import FaceAnalyser
from worker.models.ocr import TextReader
from worker.models.providers.face_dlib import DlibFaceAnalyser
from worker.models.providers.ocr_rapid import RapidReader

#: Even seeds: tuned on; odd ones: held out.
FULL, QUICK = range(32), (8, 16, 9, 1)
SAMPLE = Path(__file__).parents[1] / "samples"
_HELD, _STRIDE_S, _LONGER_S = 16, 0.2, (1.5, 4.0, 9.0)


class Before:
    """The choice before: frames thinned by doubling the stride, the sharpest of each equal part of the scene."""

    def __init__(self) -> None:
        self._held: list[Look] = []
        self._stride_s = _STRIDE_S

    def add(self, look: Look) -> None:
        if self._held and look.ts_s - self._held[-1].ts_s < self._stride_s - 1e-6:
            return
        self._held.append(look)
        if len(self._held) > _HELD:
            self._held = self._held[::2]
            self._stride_s = min(b.ts_s - a.ts_s for a, b in zip(self._held, self._held[1:], strict=False))

    def choose(self, start_s: float, end_s: float) -> list[Look]:
        visible = [look for look in self._held if not look.thumb.blank] or self._held
        parts = 1 + sum(end_s - start_s >= limit_s for limit_s in _LONGER_S)
        groups = groupby(
            visible, lambda c: min(parts - 1, int((c.ts_s - start_s) / (end_s - start_s) * parts))
        )
        return [max(group, key=lambda look: sharpness(look.frame)) for _, group in groups]


def looks(path: Path, start_s: float, end_s: float) -> Iterator[Look]:
    """Yield the looks that the split stage takes at a part of a file."""
    sampler: Sampler | None = None
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            sampler = sampler or Sampler(thumb_size(frame.width, frame.height))
            yield from (
                look for look in sampler.feed(float(frame.time or 0), frame) if start_s <= look.ts_s < end_s
            )
            if (frame.time or 0) > end_s + 1:
                return
        yield from sampler.flush() if sampler else ()


def choose(path: Path, start_s: float, end_s: float) -> dict[str, list[Look]]:
    """Return the keyframes of one scene by both choices."""
    recent, before = Recent(), Before()
    after: SceneFrames[Look] = SceneFrames()
    for look in looks(path, start_s, end_s):
        before.add(look)
        recent.offer(look)
        for settled in recent.take_until(look.ts_s - 4.0):
            after.add(settled, fine_size(settled.frame.width, settled.frame.height))
    for settled in recent.take_rest():
        after.add(settled, fine_size(settled.frame.width, settled.frame.height))
    return {"before": before.choose(start_s, end_s), "by content": after.choose(start_s, end_s, None, None)}


@cache
def reader() -> TextReader:
    (spec,) = (spec for spec in load_catalog().specs if spec.provider == "rapidocr")
    model = RapidReader(spec, threads=os.cpu_count() or 1)
    model.load()
    return model


@cache
def analyser() -> FaceAnalyser:
    (spec,) = (spec for spec in load_catalog().specs if spec.provider == "dlib")
    model = DlibFaceAnalyser(spec, threads=os.cpu_count() or 1)
    model.load()
    return model


@cache
def known(name: str) -> Any:
    """The vector of the face in somebody's photograph."""
    photo = Image.open(Path(os.environ["SCENEFLEET_TEST_ASSETS"]) / f"{name}.jpg").convert("RGB")
    photo.thumbnail((1000, 1000))
    ((face, *_),) = analyser().analyse([np.asarray(photo)])
    return face.vec


def count(found: Counter[str], scene: Sequence[Shown], chosen: Sequence[Look]) -> None:
    """Add what is seen on a scene's keyframes."""
    pictures = [_pixels(look.frame) for look in chosen]
    texts, people = [one for one in scene if not one.is_person], [one for one in scene if one.is_person]
    lines = [plain(line.text) for image in pictures for line in reader().read([image])[0]] if texts else []
    faces = [face.vec for image in analyser().analyse(pictures) for face in image] if people else []
    near = analyser().same_person if people else 0.0
    found["keyframes"] += len(chosen)
    found["texts"] += len(texts)
    found["read"] += sum(plain(one.what) in lines for one in texts)
    found["people"] += len(people)
    found["found"] += sum(
        any(np.linalg.norm(vec - known(one.what)) < near for vec in faces) for one in people
    )
    found["in time"] += sum(any(one.from_s <= look.ts_s < one.to_s for look in chosen) for one in scene)


def of_sample() -> Iterator[tuple[Path, float, float]]:
    truth = json.loads((SAMPLE / "truth.json").read_text())
    for scene in truth["scenes"]:
        yield SAMPLE / "demo.mp4", scene["start_s"], scene["end_s"]


def _pixels(frame: VideoFrame) -> Any:
    return frame.to_ndarray(format="rgb24")


def measure(seeds: Sequence[int], console: Console) -> dict[str, dict[str, Counter[str]]]:
    """Return the sums by part and choice."""
    rows: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    scenes: list[tuple[str, Path, float, float, Sequence[Shown]]] = [
        ("sample", path, start_s, end_s, ()) for path, start_s, end_s in of_sample()
    ]
    for seed in seeds:
        scene: Scene = shown.make(seed)
        part = "held out" if seed % 2 else "tuned on"
        scenes.append((part, scene.path, 0.0, scene.length_s, scene.shown))
    for part, path, start_s, end_s, there in scenes:
        chosen = choose(path, start_s, end_s)
        sharp = {name: np.mean([sharpness(look.frame) + 1 for look in kept]) for name, kept in chosen.items()}
        for name, kept in chosen.items():
            found = rows[part][name]
            count(found, there, kept)
            found["scenes"] += 1
            found["log sharpness"] += float(np.log(sharp[name] / sharp["before"]))  # type: ignore[assignment]
        console.print(f"{path.name} {start_s:g} s", style="dim")
    return rows


def show(rows: dict[str, dict[str, Counter[str]]], console: Console) -> None:
    table = Table(title="what scenes show, on their keyframes")
    for column in (
        "scenes",
        "choice",
        "keyframes",
        "texts read",
        "people found",
        "keyframe while shown",
        "sharpness",
    ):
        table.add_column(column)
    for part, ways in rows.items():
        for name, n in ways.items():
            shares = (
                f"{n[a]}/{b}" if b else ""
                for a, b in (
                    ("read", n["texts"]),
                    ("found", n["people"]),
                    ("in time", n["texts"] + n["people"]),
                )
            )
            sharp = f"{np.exp(n['log sharpness'] / n['scenes']):.2f}"
            table.add_row(f"{part} ({n['scenes']})", name, str(n["keyframes"]), *shares, sharp)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="the sample and four scenes")
    parser.add_argument("--seeds", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    console = Console(width=140)
    try:
        rows = measure(options.seeds or (QUICK if options.quick else FULL), console)
    except FileNotFoundError as error:
        console.print(
            f"{error.filename} is missing: run `python -m bench.films fetch`, and set SCENEFLEET_TEST_ASSETS"
        )
        return 0
    show(rows, console)
    OUT.mkdir(exist_ok=True)
    (OUT / "keyframes.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
