"""Lines read off pictures without text, and what the rule against them costs true text.

``python -m bench.ocr PATH... [--fonts FOLDER]... [--frames-s S] [--every N] [--threads N] [--seed N]
[--list]``. PATHs are pictures, videos
(a frame every S seconds) and folders of them, all without text: the caller has looked. Half of the files, by a hash of their
names, are those on which the rule was tuned; the other half is held out. Then texts of known wording are written over the
same pictures, in the fonts of the folders and one of OpenCV's, in sizes, colours, slants and qualities drawn at random.

Per half: pictures; lines and pictures with a line, for the recogniser's own score alone (from 0.5, RapidOCR's own default; from
`MIN_SCORE`) and after the rule (`worker/models/providers/ocr_rule.py`); and of the texts written, the share read letter for letter.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, UnidentifiedImageError
from rich.console import Console
from rich.table import Table

from worker.models.base import Uint8
from worker.models.catalog import load_catalog
from worker.models.ocr import Line
from worker.models.providers.ocr_rapid import MAX_SIDE_PX, MIN_SCORE, RapidReader
from worker.models.providers.ocr_rule import is_text

#: RapidOCR's own default of the least score.
ENGINE_SCORE = 0.5
VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm")
#: Written over the pictures: captions, names, figures, and what looks most like what is read off textures.
TEXTS = (
    "Rocket launch delayed", "Mission control, Houston", "BREAKING NEWS", "Ann Lee", "Dr. Eileen Collins, astronaut", "Chapter 6",
    "2000", "1000", "100", "00:42", "10:00", "0 - 0", "90%", "CO2", "GO", "OK", "EXIT", "COCOA", "Cocoon", "Oooh!", "Q3 2026", "007",
    "666", "9900", "Part 9", "Good", "Dogs", "SALE", "Zoo", "eBay", "La Décadence", "Größe und Gewicht", "Thank you", "The End",
    "www.example.org", "+49 30 901820", "Room C", "B12", "Gate 8", "No. 5", "Figure 3: mean latency (ms)", "Total 1,234.50",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    name: str
    #: Name of the file it is from: all pictures of one file are in one half.
    source: str
    pixels: Uint8

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(self.source.encode()).digest()[0] % 2 == 1


@dataclass
class Found:
    pictures: int = 0
    lines: list[int] = field(default_factory=lambda: [0, 0, 0])
    with_lines: list[int] = field(default_factory=lambda: [0, 0, 0])
    written: int = 0
    read: list[int] = field(default_factory=lambda: [0, 0, 0])


def pictures(paths: Sequence[Path], frames_s: float) -> Iterator[Picture]:
    """Every picture under the paths, no larger than a keyframe."""
    for path in paths:
        if path.is_dir():
            yield from pictures(sorted(path.iterdir()), frames_s)
        elif path.suffix.lower() in VIDEOS:
            yield from frames(path, frames_s)
        else:
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (UnidentifiedImageError, OSError):
                continue
            yield Picture(path.name, path.name, shrink(pixels))
            height_px, width_px = pixels.shape[:2]
            if min(height_px / 720, width_px / 1280) >= 1.5:
                top, left = (height_px - 720) // 2, (width_px - 1280) // 2
                yield Picture(f"{path.name} detail", path.name, pixels[top : top + 720, left : left + 1280])


def frames(path: Path, every_s: float) -> Iterator[Picture]:
    due_s = 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= due_s:
                yield Picture(
                    f"{path.name} at {due_s:g} s", path.name, shrink(frame.to_ndarray(format="rgb24"))
                )
                due_s += every_s


def shrink(pixels: Uint8) -> Uint8:
    height_px, width_px = pixels.shape[:2]
    scale = min(1.0, MAX_SIDE_PX / max(height_px, width_px))
    if scale == 1:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    return cast(Uint8, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def write(rng: random.Random, pixels: Uint8, fonts: Sequence[Path], text: str) -> Uint8 | None:
    """The picture with a text on it, as captions, titles and signs are; None where it does not fit."""
    image = Image.fromarray(pixels)
    letter_px = rng.choice((16, 20, 24, 32, 44, 64, 90))
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    font = (
        ImageFont.truetype(str(rng.choice(fonts)), letter_px) if fonts else ImageFont.load_default(letter_px)
    )
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    width_px, height_px, margin_px = right - left, bottom - top, letter_px // 2
    if width_px + 2 * margin_px > image.width or height_px + 2 * margin_px > image.height:
        return None
    x = rng.randint(margin_px, image.width - width_px - margin_px)
    y = rng.randint(margin_px, image.height - height_px - margin_px)
    under = np.asarray(image.crop((x, y, x + width_px, y + height_px)).convert("L"))
    ink = 255 if under.mean() < 128 else 0
    label = Image.new("L", image.size, 0)
    ImageDraw.Draw(label).text((x - left, y - top), text, fill=255, font=font)
    style = rng.choice(("box", "outline", "bare"))
    if style != "bare":
        # Captions have a bar or an edge where what is below is uneven.
        behind = Image.new("L", image.size, 0)
        if style == "box":
            edge = (x - margin_px, y - margin_px, x + width_px + margin_px, y + height_px + margin_px)
            ImageDraw.Draw(behind).rectangle(edge, fill=255)
        else:
            behind = label.filter(ImageFilter.MaxFilter(5))
        image.paste((255 - ink,) * 3, mask=behind)
    elif float(np.abs(under.astype(np.float32) - ink).min()) < 60:
        return None
    image.paste((ink,) * 3, mask=label)
    if rng.random() < 0.3:
        image = image.rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC, center=(x, y))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, letter_px / 24)))
    return np.asarray(image)


def kept(lines: Sequence[Line]) -> tuple[list[Line], list[Line], list[Line]]:
    """By the engine's default score, by ours, by ours and the rule."""
    ours = [line for line in lines if line.score >= MIN_SCORE]
    return (
        [line for line in lines if line.score >= ENGINE_SCORE],
        ours,
        [line for line in ours if is_text(line)],
    )


def plain(text: str) -> str:
    return "".join(text.casefold().split())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ocr", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--fonts", action="append", default=[], type=Path)
    parser.add_argument("--frames-s", type=float, default=1.0)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each Nth picture")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--list", action="store_true", help="print every false line that is left, and every text lost"
    )
    options = parser.parse_args(arguments)
    fonts = sorted(
        font for folder in options.fonts for font in folder.rglob("*") if font.suffix in (".ttf", ".otf")
    )
    (spec,) = (spec for spec in load_catalog().specs if spec.provider == "rapidocr")
    reader = RapidReader(spec, threads=options.threads)
    reader.load()
    halves = {False: Found(), True: Found()}
    rng = random.Random(options.seed)
    for picture in islice(pictures(options.paths, options.frames_s), 0, None, options.every):
        half = halves[picture.held_out]
        half.pictures += 1
        for column, lines in enumerate(kept(reader.read_all(picture.pixels))):
            half.lines[column] += len(lines)
            half.with_lines[column] += bool(lines)
            if options.list and column == 2:
                for line in lines:
                    print(
                        f"false: {picture.name}: {line.text!r} {line.score:.2f} {[round(edge) for edge in line.box]}"
                    )
        text = rng.choice(TEXTS)
        written = write(rng, picture.pixels, fonts, text)
        if written is None:
            continue
        half.written += 1
        all_lines = reader.read_all(written)
        for column, lines in enumerate(kept(all_lines)):
            half.read[column] += plain(text) in map(plain, (line.text for line in lines))
        if options.list:
            for line in all_lines:
                if plain(line.text) == plain(text) and not (line.score >= MIN_SCORE and is_text(line)):
                    print(
                        f"lost: {picture.name}: {line.text!r} {line.score:.2f} {[round(edge) for edge in line.box]}"
                    )
    _print(halves)
    return 0


def _print(halves: dict[bool, Found]) -> None:
    table = Table(title="Lines read off pictures without text, and texts written over them that are read")
    for column in (
        "half",
        "pictures",
        "lines kept by",
        "false lines",
        "a picture",
        "pictures with one",
        "texts",
        "read",
    ):
        table.add_column(column, justify="left" if column in ("half", "lines kept by") else "right")
    names = (f"score {ENGINE_SCORE}", f"score {MIN_SCORE}", "the rule")
    for held_out, found in halves.items():
        for column, name in enumerate(names):
            table.add_row(
                "held out" if held_out else "tune",
                str(found.pictures),
                name,
                str(found.lines[column]),
                f"{found.lines[column] / max(1, found.pictures):.3f}",
                str(found.with_lines[column]),
                str(found.written),
                f"{found.read[column] / max(1, found.written):.3f}",
            )
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
