"""Streams of frames with their truth: the films, and new ones composed of their shots.

There are few labelled films, and fewer transitions other than hard cuts. So shots of the films (mirrored, cropped, with
other light) are joined in all ways that editors use, and disturbed in all ways that are no cut: flashes, shakes, changes
of light, titles, things that pass before the camera, fades at the start.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from bench.films.truth import Film
from bench.storyboard import draw_shots
from tests.support.clips import render, timeline
from worker.media.planes import thumb_size
from worker.media.sampling import Look, Sampler

Image = NDArray[np.uint8]
#: Size of the pictures of composed films, that of thumbs.
_SIZE = (160, 90)


@dataclass
class Stream:
    """Frames and their truth, in seconds."""

    name: str
    #: Cross-validation leaves out one fold at a time: what a stream is made of is in no stream of another fold. A long film
    #: has a fold for each part of its time.
    folds: tuple[int, ...]
    frame_s: float
    hard_s: list[float]
    gradual_s: list[tuple[float, float]]
    #: Those of ``gradual_s`` that go through black or white.
    fades_s: list[tuple[float, float]] = field(default_factory=list)
    ambiguous_s: list[tuple[float, float]] = field(default_factory=list)
    film: Film | None = None
    images: list[Image] = field(default_factory=list)
    length_s: float = 0.0

    def fold_at(self, ts_s: float) -> int:
        """Return the fold that a moment belongs to."""
        place = int(ts_s / max(self.length_s, 1e-6) * len(self.folds))
        return self.folds[min(max(place, 0), len(self.folds) - 1)]

    def looks(self) -> Iterator[Look]:
        """Yield what the detectors of the split stage would be fed."""
        sampler: Sampler | None = None
        for ts_s, frame in self._frames():
            sampler = sampler or Sampler(thumb_size(frame.width, frame.height))
            yield from sampler.feed(ts_s, frame)
        yield from sampler.flush() if sampler else ()

    def _frames(self) -> Iterator[tuple[float, Any]]:
        if self.film is None:
            for index, image in enumerate(self.images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                yield index * self.frame_s, frame.reformat(format="yuv420p")
            return
        last_s, start_s = -1.0, None
        with av.open(str(self.film.path)) as container:
            for frame in container.decode(video=0):
                at_s = float(frame.pts * frame.time_base) if frame.pts is not None else last_s + self.frame_s
                start_s = at_s if start_s is None else start_s
                if at_s - start_s > last_s:
                    last_s = at_s - start_s
                    yield last_s, frame


def of_film(film: Film, folds: tuple[int, ...] = (0,)) -> Stream:
    """Return a film as a stream: its frames become times."""
    with av.open(str(film.path)) as container:
        times: list[float] = []
        for frame in container.decode(video=0):
            times.append(float(frame.pts * frame.time_base) if frame.pts is not None else len(times) * 0.04)
    times_s = [time - times[0] for time in times]
    frame_s = float(np.median(np.diff(times_s)))

    def at(index: int) -> float:
        return times_s[min(index, len(times_s) - 1)]

    return Stream(
        name=film.file,
        folds=folds,
        frame_s=frame_s,
        hard_s=[at(index) for index in film.hard],
        gradual_s=[(at(g["first"]), at(g["last"])) for g in film.gradual],
        fades_s=[(at(g["first"]), at(g["last"])) for g in film.gradual if g["kind"] == "fade"],
        ambiguous_s=[(at(a), at(b)) for a, b in film.ambiguous],
        film=film,
        length_s=times_s[-1] + frame_s,
    )


def made(seed: int, seconds: float, fold: int) -> Stream:
    """Return a stream of drawn pictures of several sizes, as ``bench.split`` uses them, not encoded."""
    shots = draw_shots(seed, seconds)
    _, cuts, gradual = timeline(shots)
    size = ((160, 90), (32, 18), (120, 160), (160, 90))[seed // 4 % 4]
    return Stream(
        name=f"drawn {seed}",
        folds=(fold,),
        frame_s=1 / 30,
        hard_s=[cut / 30 for cut in cuts],
        gradual_s=[(first / 30, end / 30) for first, end in gradual],
        images=list(render(shots, size)),
    )


def shots_of(film: Film, parts: int = 1) -> list[list[list[Image]]]:
    """Return the shots that begin in each part of the film's time, as pictures of composed films, without those too short for that."""
    shots: list[list[Image]] = [[]]
    begun = [0]
    starts = set(film.hard)
    shown = [(g["first"], g["last"]) for g in film.gradual] + list(film.ambiguous)
    with av.open(str(film.path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            mixed = any(first - 1 <= index <= last + 1 for first, last in shown)
            if index in starts or mixed:
                shots.append([])
                begun.append(index)
            if not mixed:
                shots[-1].append(_cover(frame.to_ndarray(format="rgb24"), *_SIZE))
    found: list[list[list[Image]]] = [[] for _ in range(parts)]
    for start, shot in zip(begun, shots, strict=True):
        if len(shot) >= 20:
            found[start * parts // (index + 1)].append(shot)
    return found


def compose(name: str, fold: int, shots: Sequence[list[Image]], seed: int, count: int = 9) -> Stream:
    """Return a stream of ``count`` of the shots, joined and disturbed at random."""
    rng = random.Random(seed)
    images: list[Image] = []
    stream = Stream(name, (fold,), 0.04, [], [])
    # No shot beside itself: that would be no transition.
    picked = (
        rng.sample(range(len(shots)), count)
        if len(shots) >= count
        else rng.choices(range(len(shots)), k=count)
    )
    chosen = [_take(shots[place], rng) for place in picked]
    for number, shot in enumerate(chosen):
        shot = _disturb(shot, rng, chosen[number - 1])
        if not images:
            if rng.random() < 0.3:
                over = rng.choice([8, 14, 24])
                shot = [_scale(image, min(1.0, i / over)) for i, image in enumerate(shot)]
            images = shot
            continue
        join = rng.choices(["cut", "dissolve", "fade", "wipe"], [0.5, 0.28, 0.12, 0.1])[0]
        length = min(rng.choice([6, 9, 12, 18, 25, 40]), len(images) - 12, len(shot) - 8)
        if join == "cut" or length < 5:
            stream.hard_s.append(len(images) * 0.04)
            images = images + shot
            continue
        if length < 12 and join == "fade":
            join = "dissolve"
        first = len(images) - length
        mixed = [_mix(join, images[first + i], shot[i], (i + 1) / (length + 1)) for i in range(length)]
        stream.gradual_s.append((first * 0.04, len(images) * 0.04))
        if join == "fade":
            stream.fades_s.append(stream.gradual_s[-1])
        images = images[:first] + mixed + shot[length:]
    if rng.random() < 0.3:  # a fade-out at the end
        alone_s = max([0.0, *stream.hard_s, *(end_s for _, end_s in stream.gradual_s)])
        over = min(rng.choice([8, 14, 24]), len(images) - round(alone_s / 0.04))
        images[-over:] = [_scale(image, 1 - (i + 1) / over) for i, image in enumerate(images[-over:])]
    if rng.random() < 0.2:  # black and white
        images = [cv2.cvtColor(cv2.cvtColor(i, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for i in images]  # type: ignore[misc]
    stream.images = images
    stream.length_s = len(images) * 0.04
    return stream


def _take(shot: list[Image], rng: random.Random) -> list[Image]:
    """Return a piece of the shot as if another camera had taken it."""
    length = min(len(shot), rng.randint(24, 80))
    start = rng.randrange(len(shot) - length + 1)
    if rng.random() < 0.6:  # as it is: shots of one film have much in common
        return shot[start : start + length]
    zoom, x, y = rng.uniform(1.0, 1.5), rng.random(), rng.random()
    gain, offset, mirrored = rng.uniform(0.7, 1.2), rng.uniform(-15, 15), rng.random() < 0.5
    colours = np.array([rng.uniform(0.85, 1.15) for _ in range(3)]) * gain
    width, height = _SIZE
    w, h = int(width / zoom), int(height / zoom)
    left, top = int(x * (width - w)), int(y * (height - h))
    taken = []
    for image in shot[start : start + length]:
        part = cv2.resize(image[top : top + h, left : left + w], _SIZE, interpolation=cv2.INTER_LINEAR)
        part = np.clip(part * colours + offset, 0, 255).astype(np.uint8)
        taken.append(np.ascontiguousarray(part[:, ::-1]) if mirrored else part)
    return taken


def _disturb(shot: list[Image], rng: random.Random, other: list[Image]) -> list[Image]:
    """Return the shot with something that is no cut."""
    how = rng.choice(["", "", "", "flash", "shake", "light", "title", "object", "jump", "pan"])
    at, count = rng.randrange(8, len(shot) - 8), len(shot)
    match how:
        case "flash":
            lit = range(at, at + rng.randint(1, 4))
            return [_light(image, 0.4, 150) if i in lit else image for i, image in enumerate(shot)]
        case "shake":
            x, y = np.cumsum(
                np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0.5, 4), (2, count)), axis=1
            )
            return [_shift(image, x[i] % 24 - 12, y[i] % 16 - 8) for i, image in enumerate(shot)]
        case "pan":
            speed = rng.uniform(0.5, 3)
            return [_shift(image, speed * min(i, 40) - 20, 0) for i, image in enumerate(shot)]
        case "light":
            gain, over = rng.uniform(0.3, 1.8), rng.choice([2, 6, 20, 45])
            return [
                _scale(image, 1 + (gain - 1) * min(1, max(0, (i - at) / over)))
                for i, image in enumerate(shot)
            ]
        case "title":
            over, x, y = rng.choice([1, 8, 20]), rng.randint(5, 60), rng.randint(20, 80)
            return [_title(image, x, y, min(1, max(0, (i - at) / over))) for i, image in enumerate(shot)]
        case "object":
            patch = cv2.resize(other[0], (rng.randint(40, 130), rng.randint(40, 90)))
            speed, top = (
                rng.choice([8, 20, 40, 70]) * rng.choice([-1, 1]),
                rng.randint(0, 90 - patch.shape[0]),
            )
            return [_paste(image, patch, (i - at) * speed + 40, top) for i, image in enumerate(shot)]
        case "jump":  # frames are missing
            return shot[:at] + shot[min(count - 4, at + rng.randint(2, 6)) :]
    return shot


def _mix(join: str, old: Image, new: Image, weight: float) -> Image:
    if join == "fade":
        return _scale(old, 1 - 2 * weight) if weight < 0.5 else _scale(new, 2 * weight - 1)
    if join == "wipe":
        border = int(weight * old.shape[1])
        return np.concatenate([new[:, :border], old[:, border:]], axis=1)
    return np.asarray(cv2.addWeighted(old, 1 - weight, new, weight, 0), np.uint8)


def _cover(image: Image, width: int, height: int) -> Image:
    """Return the middle of the picture, filling the size."""
    scale = max(width / image.shape[1], height / image.shape[0])
    size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(small[top : top + height, left : left + width], np.uint8)


def _light(image: Image, gain: float, offset: float) -> Image:
    return np.asarray(np.clip(image * gain + offset, 0, 255), np.uint8)


def _scale(image: Image, gain: float) -> Image:
    return _light(image, max(0.0, gain), 0)


def _shift(image: Image, x: float, y: float) -> Image:
    matrix = np.array([[1.25, 0, -20 + x], [0, 1.25, -11 + y]], np.float32)
    return np.asarray(cv2.warpAffine(image, matrix, _SIZE, borderMode=cv2.BORDER_REFLECT), np.uint8)


def _title(image: Image, x: int, y: int, weight: float) -> Image:
    written = image.copy()
    cv2.putText(written, "A film by", (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (250, 250, 240), 2)
    return _mix("dissolve", image, written, weight)


def _paste(image: Image, patch: Image, left: int, top: int) -> Image:
    pasted = image.copy()
    start, end = max(0, left), min(image.shape[1], left + patch.shape[1])
    if start < end:
        pasted[top : top + patch.shape[0], start:end] = patch[:, start - left : end - left]
    return pasted
