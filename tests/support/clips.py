"""Video clips with known scene changes, rendered and encoded here, so that no test needs the ffmpeg program.

A clip is a list of shots. Each shot shows its own picture, still or moved, and says how it is joined to the shot
before: so the true cuts are known by construction and returned with the file as ``Truth``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Move = Literal["still", "pan", "zoom", "shake", "objects", "jerk"]
Join = Literal["cut", "dissolve", "fade"]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """``frames`` pictures of scene ``seed``; joins of ``join_frames`` overlap the end of the shot before."""

    seed: int
    frames: int
    move: Move = "still"
    join: Join = "cut"
    join_frames: int = 0
    #: Grain, as standard deviation in grey levels.
    noise: float = 0.0
    #: Frames of this shot that are washed out by a flash.
    flashes: tuple[int, ...] = ()
    #: Movement relative to the default.
    speed: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of a clip; times in seconds."""

    path: Path
    fps: float
    duration_s: float
    #: First frame of each scene that a hard cut begins.
    cuts_s: tuple[float, ...]
    #: (start, end) of each dissolve or fade.
    gradual_s: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A tone, silent in the given (start, end) spans of seconds."""

    hz: float = 440.0
    rate_hz: int = 44_100
    channels: int = 2
    silences_s: tuple[tuple[float, float], ...] = ()
    #: Length; None: that of the video.
    duration_s: float | None = None
    #: Where the stream starts on the container's clock.
    offset_s: float = 0.0
    codec: str = "aac"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a clip is stored."""

    size: tuple[int, int] = (320, 180)
    fps: Fraction = Fraction(25)
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "veryfast", "crf": "23"})
    #: Degrees the display matrix turns the picture counter-clockwise.
    rotation_deg: int = 0
    #: A pixel's width over its height.
    pixel_aspect: Fraction = Fraction(1)
    #: Times of the frames in seconds, one for each; None: at the frame rate.
    times_s: tuple[float, ...] | None = None


def picture(seed: int, width: int, height: int) -> Image:
    """Return a photograph-like RGB picture [height, width, 3]: noise with a 1/f spectrum, and some objects."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    cells = 3
    while cells < width:
        grain = rng.normal(0, 1, (max(2, cells * height // width), cells, 3)).astype(np.float32)
        grain = 0.8 * grain.mean(axis=2, keepdims=True) + 0.35 * grain
        total += cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC) * (3.0 / cells) ** 0.7
        cells *= 2
    base, contrast = rng.uniform(60, 190, 3), rng.uniform(25, 55)
    image = np.clip(base + contrast * total, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(3, 9)):
        color = tuple(int(c) for c in rng.uniform(0, 255, 3))
        center = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        axes = (int(rng.uniform(0.03, 0.2) * width), int(rng.uniform(0.03, 0.2) * height))
        cv2.ellipse(image, center, axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
    return image


class Camera:
    """Shows one shot: ``view(i)`` is frame i, uint8 RGB [height, width, 3]."""

    def __init__(self, shot: Shot, size: tuple[int, int]) -> None:
        self._shot, self._size = shot, size
        self._source = picture(shot.seed, int(size[0] * 1.6), int(size[1] * 1.6))
        rng = np.random.default_rng(shot.seed + 10_000)
        self._angle = rng.uniform(0, 2 * math.pi)
        self._zoom_in = bool(rng.integers(2))
        self._shakes = np.cumsum(rng.normal(0, 0.004, (4096, 2)), axis=0) * 0.9
        self._jerk_at = int(rng.integers(8, max(9, shot.frames - 8)))
        self._noise = rng

    def view(self, index: int) -> Image:
        width, height = self._size
        shift, scale = self._position(index)
        left = 0.8 * width + shift[0] * width - scale * width / 2
        top = 0.8 * height + shift[1] * width - scale * height / 2
        matrix = np.array([[scale, 0, left], [0, scale, top]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(self._source, matrix, self._size, flags=flags, borderMode=cv2.BORDER_REFLECT)
        if self._shot.move == "objects":
            self._draw_objects(image, index)
        return self._spoil(image, index)

    def _position(self, index: int) -> tuple[tuple[float, float], float]:
        """Return the shift (in widths) and the scale of what is shown."""
        done = self._shot.speed * index / max(1, self._shot.frames)
        direction = (math.cos(self._angle), math.sin(self._angle))
        match self._shot.move:
            case "pan":
                return (direction[0] * 0.25 * (done - 0.5), direction[1] * 0.25 * (done - 0.5)), 1.0
            case "zoom":
                return (0.0, 0.0), (1.3 - 0.3 * done if self._zoom_in else 1.0 + 0.3 * done)
            case "shake":
                x, y = self._shakes[index % 4096] * self._shot.speed
                return (float(x), float(y)), 1.0
            case "jerk":
                return ((0.06 if index >= self._jerk_at else 0.0), 0.0), 1.0
        return (0.0, 0.0), 1.0

    def _draw_objects(self, image: Image, index: int) -> None:
        width, height = self._size
        for number in range(3):
            phase = self._angle + number * 2.1 + 0.11 * self._shot.speed * index
            center = (int(width * (0.5 + 0.45 * math.sin(phase))), int(height * (0.3 + 0.2 * number)))
            color = (60 + 60 * number, 220 - 70 * number, 40 + 90 * number)
            cv2.circle(image, center, height // 7, color, -1, cv2.LINE_AA)

    def _spoil(self, image: Image, index: int) -> Image:
        if index in self._shot.flashes:
            image = np.clip(image.astype(np.float32) * 0.4 + 170, 0, 255).astype(np.uint8)
        if self._shot.noise:
            grain = self._noise.normal(0, self._shot.noise, image.shape[:2]).astype(np.float32)
            image = np.clip(image + grain[:, :, None], 0, 255).astype(np.uint8)
        return image


def render(shots: Sequence[Shot], size: tuple[int, int]) -> Iterator[Image]:
    """Yield the frames of all shots in order, joins blended."""
    tail: list[Image] = []
    for number, shot in enumerate(shots):
        camera = Camera(shot, size)
        overlap = shots[number + 1].join_frames if number + 1 < len(shots) else 0
        for index in range(shot.frames):
            image = camera.view(index)
            if index < shot.join_frames and tail:
                image = _blend(tail[index], image, (index + 1) / (shot.join_frames + 1), shot.join)
            if index >= shot.frames - overlap:
                if index == shot.frames - overlap:
                    tail = []
                tail.append(image)
            else:
                yield image


def timeline(shots: Sequence[Shot]) -> tuple[int, list[int], list[tuple[int, int]]]:
    """Return the number of frames, the first frames of hard cuts, and (first, last+1) of gradual joins."""
    at, cuts, gradual = 0, [], []
    for number, shot in enumerate(shots):
        if number:
            if shot.join == "cut":
                cuts.append(at)
            else:
                at -= shot.join_frames
                gradual.append((at, at + shot.join_frames))
        at += shot.frames
    return at, cuts, gradual


def make_clip(
    path: Path, shots: Sequence[Shot], encoding: Encoding | None = None, sound: Sound | None = None
) -> Truth:
    """Render, encode and store a clip at ``path`` (container by suffix); return what is true of it."""
    encoding = encoding or Encoding()
    frames, cuts, gradual = timeline(shots)
    write_video(path, render(shots, encoding.size), encoding, sound, frames / float(encoding.fps))
    times_s = encoding.times_s or tuple(i / float(encoding.fps) for i in range(frames + 1))
    times_s = (*times_s, times_s[-1])
    return Truth(
        path=path,
        fps=float(encoding.fps),
        duration_s=frames / float(encoding.fps),
        cuts_s=tuple(times_s[i] for i in cuts),
        gradual_s=tuple((times_s[a], times_s[b]) for a, b in gradual),
    )


def write_video(
    path: Path,
    images: Iterator[Image],
    encoding: Encoding,
    sound: Sound | None = None,
    duration_s: float = 0.0,
) -> None:
    """Encode RGB images, and a tone of ``duration_s`` seconds, into one file."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(encoding.codec, rate=encoding.fps, options=encoding.options)
        video.width, video.height = encoding.size
        video.pix_fmt = encoding.pix_fmt
        tick_s = Fraction(1, 90_000) if encoding.times_s else 1 / encoding.fps
        video.codec_context.time_base = tick_s
        video.codec_context.sample_aspect_ratio = encoding.pixel_aspect
        if encoding.rotation_deg:
            video.set_display_rotation(encoding.rotation_deg)
        if sound is not None:
            audio: Any = container.add_stream(sound.codec, rate=sound.rate_hz)
            audio.layout = "stereo" if sound.channels == 2 else "mono"
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            time_s = encoding.times_s[index] if encoding.times_s else Fraction(index) / encoding.fps
            frame.pts, frame.time_base = round(time_s / tick_s), tick_s
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            for packet in _tone(audio, sound, sound.duration_s or duration_s):
                container.mux(packet)


def _tone(stream: Any, sound: Sound, duration_s: float) -> Iterator[Any]:
    total = int(duration_s * sound.rate_hz)
    times_s = np.arange(total) / sound.rate_hz
    wave = 0.4 * np.sin(2 * np.pi * sound.hz * times_s)
    for start_s, end_s in sound.silences_s:
        wave[int(start_s * sound.rate_hz) : int(end_s * sound.rate_hz)] = 0
    samples = (wave * 32767).astype(np.int16)
    offset = round(sound.offset_s * sound.rate_hz)
    resampler = av.AudioResampler(
        format=stream.codec_context.format.name, layout=stream.layout, rate=sound.rate_hz
    )
    for start in range(0, total, 1024):
        chunk = np.repeat(samples[None, start : start + 1024], sound.channels, axis=0)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(chunk.T.reshape(1, -1)), format="s16", layout=stream.layout.name
        )
        frame.sample_rate, frame.pts = sound.rate_hz, start + offset
        frame.time_base = Fraction(1, sound.rate_hz)
        for converted in resampler.resample(frame):
            yield from stream.encode(converted)
    yield from stream.encode(None)


def _blend(old: Image, new: Image, weight: float, join: Join) -> Image:
    if join == "fade":
        source, share = (old, 1 - 2 * weight) if weight < 0.5 else (new, 2 * weight - 1)
        return (source * max(0.0, share)).astype(np.uint8)
    return cv2.addWeighted(old, 1 - weight, new, weight, 0)
