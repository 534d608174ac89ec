"""Scenes with texts shown briefly and people who come late, for the benchmark of the keyframes.

Each scene is one shot of 8 to 90 s, drawn from a seed: a film, a drawn picture that a camera moves over or that trembles and loses its
focus, or slides that are built line by line. What is shown in it, where and when is known.
"""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Photo, ImageDraw, ImageFont

from bench import OUT
from bench.films.truth import MEDIA
from bench.ocr import TEXTS
from tests.support.clips import Camera, Encoding, Image, Shot, write_video

SIZE, FPS = (960, 540), 25
CLIPS = OUT.parent / "clips"
#: Films without a cut, for scenes that the choice was tuned on and for those it was not.
FILMS = (
    ("basketball.mp4", "pool-handheld.mp4", "silent-film.mp4", "pancake.mkv", "carphone_pristine.mp4"),
    ("closeup.avi", "traffic-camera.mp4", "vtest.avi", "bigbuckbunny.mp4", "tree.avi"),
)
#: Photographs of one face each: file, and where head and shoulders are in it, in shares of its width and height.
FACES = {"biden": (0.14, 0.02, 0.86, 0.75), "obama": (0.14, 0.02, 0.86, 0.75)}
KINDS = ("film", "film", "moved", "trembling", "slides")


@dataclass(frozen=True)
class Shown:
    """A text or a person; from ``from_s`` to ``to_s`` it is there, wholly and at rest or nearly so."""

    what: str
    is_person: bool
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Scene:
    path: Path
    kind: str
    length_s: float
    shown: tuple[Shown, ...]


def make(seed: int) -> Scene:
    """Return the scene of a seed (odd ones are held out), rendered once; raises FileNotFoundError without the films or photographs."""
    rng = random.Random(seed)
    kind = KINDS[seed // 2 % len(KINDS)]
    length_s = round(8 * math.exp(rng.random() * math.log(90 / 8)), 1)
    path = CLIPS / f"shown-{seed}.mp4"
    facts = path.with_suffix(".json")
    if not facts.exists():
        CLIPS.mkdir(exist_ok=True)
        canvas = _Slides(rng, length_s) if kind == "slides" else _Overlaid(rng, kind, seed, length_s)
        images = (canvas.view(index / FPS) for index in range(round(length_s * FPS)))
        options = {"preset": "veryfast", "crf": "25"}
        write_video(path, images, Encoding(size=SIZE, options=options))
        facts.write_text(json.dumps([asdict(one) for one in canvas.shown]))
    return Scene(path, kind, length_s, tuple(Shown(**one) for one in json.loads(facts.read_text())))


class _Slides:
    """Lines that appear one after the other; longer scenes have a second slide."""

    def __init__(self, rng: random.Random, length_s: float) -> None:
        self._dark = rng.random() < 0.4
        texts = rng.sample([text for text in TEXTS if len(text) > 4], 10)
        letter_px = rng.choice((20, 26, 34))
        slides = 1 if length_s < 20 else 2
        self.shown: list[Shown] = []
        self._labels: list[tuple[Shown, _Label]] = []
        for slide in range(slides):
            start_s, end_s = length_s * slide / slides, length_s * (slide + 1) / slides
            lines = rng.randint(3, 5)
            # The last line stays for a moment.
            last_s = end_s - rng.uniform(1.0, 3.0)
            for line in range(lines):
                from_s = start_s + (last_s - start_s) * line / max(1, lines - 1)
                one = Shown(texts.pop(), False, from_s, end_s)
                ink = 235 if self._dark else 25
                self._labels.append(
                    (one, _Label(one.what, letter_px, ink, (90, 70 + line * 2 * letter_px + 10 * line)))
                )
                self.shown.append(one)

    def view(self, at_s: float) -> Image:
        image = np.full((SIZE[1], SIZE[0], 3), 35 if self._dark else 240, np.uint8)
        image[:40] = (40, 70, 120)
        for one, label in self._labels:
            if one.from_s <= at_s < one.to_s:
                label.paste(image, 1.0)
        return image


class _Overlaid:
    """A film, or a drawn picture before a camera, with texts over it and people in it."""

    def __init__(self, rng: random.Random, kind: str, seed: int, length_s: float) -> None:
        self._kind = kind
        if kind == "film":
            self._film = _film(rng.choice(FILMS[seed % 2]))
        else:
            move = rng.choice(("pan", "zoom", "shake", "objects")) if kind == "moved" else "shake"
            shot = Shot(
                seed=seed,
                frames=round(length_s * FPS),
                move=move,
                noise=rng.choice((0, 0, 2)),
                speed=rng.uniform(0.3, 1),
            )  # type: ignore[arg-type]
            self._camera = Camera(shot, SIZE)
        #: When the focus is lost, each time for about a second.
        self._blurred_s = (
            [rng.uniform(0, length_s) for _ in range(int(length_s / 4))] if kind == "trembling" else []
        )
        self.shown: list[Shown] = []
        self._labels: list[tuple[Shown, _Label]] = []
        self._faces: list[tuple[Shown, _Face]] = []
        count = rng.randint(2, 3) if length_s >= 12 else 1
        slots_s = sorted(
            rng.sample(range(1, int(length_s) - 4, 4), min(count, len(range(1, int(length_s) - 4, 4))))
        )
        names = rng.sample(list(FACES), len(FACES))
        for slot_s in slots_s:
            from_s = slot_s + rng.random()
            if names and from_s > 0.3 * length_s and rng.random() < 0.5:
                one = Shown(names.pop(), True, from_s, min(length_s, from_s + rng.uniform(1.5, 6)))
                self._faces.append((one, _Face(rng, one)))
            else:
                one = Shown(
                    rng.choice(TEXTS), False, from_s, from_s + rng.uniform(1, min(4, length_s - from_s))
                )
                self._labels.append((one, _Label.drawn(rng, one.what)))
            self.shown.append(one)

    def view(self, at_s: float) -> Image:
        if self._kind == "film":
            frames = self._film
            # Forwards and backwards, so that no cut comes into it.
            at = int(at_s * FPS) % (2 * len(frames) - 2)
            image = np.ascontiguousarray(cv2.resize(frames[min(at, 2 * len(frames) - 2 - at)], SIZE))
        else:
            image = self._camera.view(int(at_s * FPS))
        for one, face in self._faces:
            face.paste(image, at_s - one.from_s, one.to_s - at_s)
        if any(abs(at_s - blurred_s) < 0.6 for blurred_s in self._blurred_s):
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), 4), np.uint8)
        for one, label in self._labels:
            # Half of them fade in and out.
            label.paste(image, min(1.0, 5 * (at_s - one.from_s + 0.2), 5 * (one.to_s + 0.2 - at_s)))
        return np.asarray(image, np.uint8)


class _Label:
    """A text with what is behind it."""

    def __init__(self, text: str, letter_px: int, ink: int, at: tuple[int, int], style: str = "bare") -> None:
        font = ImageFont.load_default(letter_px)
        left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
        margin = letter_px // 2
        size = (right - left + 2 * margin, bottom - top + 2 * margin)
        mask = Photo.new("L", size)
        ImageDraw.Draw(mask).text((margin - left, margin - top), text, fill=255, font=font)
        letters = np.asarray(mask, np.float32)[:, :, None] / 255
        behind = np.ones_like(letters) if style == "box" else np.zeros_like(letters)
        if style == "outline":
            behind = cv2.dilate(letters, np.ones((5, 5), np.uint8))[:, :, None]
        self._alpha = np.maximum(letters, behind)
        self._colour = letters * ink + (1 - letters) * (255 - ink)
        self._at = (min(at[0], SIZE[0] - size[0]), min(at[1], SIZE[1] - size[1]))

    @classmethod
    def drawn(cls, rng: random.Random, text: str) -> _Label:
        at = rng.randint(20, SIZE[0] * 2 // 3), rng.choice((rng.randint(20, 430), rng.randint(400, 470)))
        return cls(
            text,
            rng.choice((18, 22, 28, 36, 48, 64)),
            rng.choice((10, 245)),
            at,
            rng.choice(("box", "outline")),
        )

    def paste(self, image: Image, weight: float) -> None:
        if weight <= 0 or min(self._at) < 0:
            return
        x, y = self._at
        part = image[y : y + self._alpha.shape[0], x : x + self._alpha.shape[1]]
        alpha = self._alpha * weight
        part[:] = (part * (1 - alpha) + self._colour * alpha).astype(np.uint8)


class _Face:
    """Somebody who comes in from the side and nearer."""

    def __init__(self, rng: random.Random, one: Shown) -> None:
        self._photo = _head(one.what)
        self._x, self._from_left = rng.uniform(0.2, 0.8), rng.random() < 0.5
        self._height, self._nearer = rng.uniform(200, 330), rng.uniform(1.0, 1.5)
        self._length_s = one.to_s - one.from_s

    def paste(self, image: Image, since_s: float, left_s: float) -> None:
        # Half a second to come and to go.
        away = max(-since_s, -left_s, 0.0) / 0.5
        if away >= 1:
            return
        scale = self._height * (1 + (self._nearer - 1) * since_s / self._length_s) / self._photo.shape[0]
        photo = cv2.resize(self._photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        height, width = photo.shape[:2]
        middle = self._x * SIZE[0]
        middle += away * ((-width - middle) if self._from_left else (SIZE[0] + width - middle))
        x, y = int(middle - width / 2), max(0, SIZE[1] - height)
        left, right = max(0, x), min(SIZE[0], x + width)
        if left >= right:
            return
        part = photo[: SIZE[1] - y, left - x : right - x]
        alpha = part[:, :, 3:].astype(np.float32) / 255
        under = image[y : y + part.shape[0], left:right]
        under[:] = (under * (1 - alpha) + part[:, :, :3] * alpha).astype(np.uint8)


@cache
def _head(name: str) -> NDArray[np.uint8]:
    """Head and shoulders, RGBA, without the corners of the photograph."""
    photo = Photo.open(Path(os.environ.get("SCENEFLEET_TEST_ASSETS", "/nowhere")) / f"{name}.jpg").convert(
        "RGB"
    )
    left, top, right, bottom = FACES[name]
    photo = photo.crop(
        (
            int(left * photo.width),
            int(top * photo.height),
            int(right * photo.width),
            int(bottom * photo.height),
        )
    )
    photo.thumbnail((600, 600))
    mask = Photo.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse((0, -photo.height // 8, photo.width, photo.height * 2), fill=255)
    photo.putalpha(mask)
    return np.asarray(photo)


@cache
def _film(name: str) -> list[Image]:
    """Up to 10 s of a film, at the clips' rate and no larger than they are."""
    frames: list[Image] = []
    with av.open(str(MEDIA / name)) as container:
        for frame in container.decode(video=0):
            while len(frames) / FPS <= float(frame.time or 0) and len(frames) < 10 * FPS:
                height = min(frame.height, SIZE[1])
                frames.append(
                    frame.to_ndarray(
                        format="rgb24", width=height * SIZE[0] // SIZE[1] // 2 * 2, height=height
                    )
                )
            if len(frames) >= 10 * FPS:
                break
    return frames
