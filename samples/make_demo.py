"""Makes ``demo.mp4`` and ``truth.json``: a short narrated video of which everything is known beforehand.

The demo and the end-to-end tests need real input (moving pictures, speech, a face) whose true cuts and words are
known. So it is made here, from freely licensed pictures that ship inside the scikit-image wheel (``README.md``
credits them) and from a synthetic voice, with nothing to download.

Needs ``pip install av numpy pillow scikit-image`` and Debian's ``flite``. Imports nothing of scenefleet.

    python samples/make_demo.py                                  # samples/demo.mp4, voice rms
    python samples/make_demo.py --voice slt --out /tmp/slt       # the same video, told by the second voice
    python -m samples.measure_demo samples /tmp/slt --record     # error rates -> samples/truth.json
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from PIL import Image

WIDTH_PX, HEIGHT_PX = 960, 540
FPS = 25
SPEECH_RATE_HZ = 16_000  # what flite's rms and slt speak at
AUDIO_RATE_HZ = 48_000
#: The narration starts this long after its scene, so that each scene's words lie well inside it.
LEAD_IN_S = 1.0
#: And it has to end this long before the scene (or before a dissolve's first mixed frame).
TAIL_S = 0.4
DISSOLVE_FRAMES = 25
DISSOLVE_BEFORE = DISSOLVE_FRAMES // 2
DISSOLVE_AFTER = DISSOLVE_FRAMES - DISSOLVE_BEFORE


class DemoError(Exception):
    """The demo can't be made: a picture or a program is missing, or a narration doesn't fit its scene."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A 16:9 window on a picture: its centre and its width, as fractions of the picture's width and height."""

    x: float
    y: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture, the move over it and what is said meanwhile."""

    picture: str  # file name inside skimage/data
    frames: int
    start: View
    end: View
    narration: str
    dissolve_in: bool = False  # else it begins with a hard cut


SCENES = (
    Scene(
        picture="rocket.jpg",
        frames=215,
        start=View(x=0.50, y=0.55, width=1.00),
        end=View(x=0.50, y=0.60, width=0.80),
        narration="The rocket is standing between four tall towers. "
        "In a few minutes the rocket will fly into space.",
    ),
    Scene(
        picture="astronaut.png",
        frames=228,
        start=View(x=0.50, y=0.30, width=1.00),
        end=View(x=0.45, y=0.27, width=0.78),
        narration="She was the first woman to command the space shuttle. "
        "She wears an orange suit and she smiles at the camera.",
    ),
    Scene(
        picture="camera.png",
        frames=212,
        start=View(x=0.42, y=0.30, width=0.72),
        end=View(x=0.50, y=0.33, width=1.00),
        narration="The man with the camera is standing in the park. "
        "He is waiting for the right moment to take a picture.",
    ),
    Scene(
        picture="coffee.png",
        frames=173,
        start=View(x=0.50, y=0.46, width=1.00),
        end=View(x=0.49, y=0.44, width=0.80),
        narration="There is a cup of coffee on the table. It smells good in the morning.",
    ),
    Scene(
        picture="hubble_deep_field.jpg",
        frames=222,
        start=View(x=0.32, y=0.70, width=0.60),
        end=View(x=0.62, y=0.62, width=0.50),
        narration="Every point of light is a galaxy with billions of stars. "
        "Some of them are thirteen billion years old.",
    ),
    Scene(
        picture="chelsea.png",
        frames=176,
        start=View(x=0.58, y=0.46, width=0.70),
        end=View(x=0.50, y=0.44, width=1.00),
        narration="This is a young cat. She has big green eyes and very soft hair.",
    ),
    Scene(
        picture="coins.png",
        frames=225,
        start=View(x=0.36, y=0.27, width=0.68),
        end=View(x=0.62, y=0.62, width=0.68),
        narration="This money is two thousand years old. "
        "It was found under the city and now it is in a museum.",
        dissolve_in=True,
    ),
    Scene(
        picture="retina.jpg",
        frames=174,
        start=View(x=0.48, y=0.50, width=0.78),
        end=View(x=0.52, y=0.51, width=0.60),
        narration="This is the inside of the human eye. The doctor can see the blood in it.",
    ),
)
FACES = ({"scene": 1, "who": "astronaut"},)
SEARCHES = (
    {"query": "rocket", "mode": "keyword", "scene": 0},
    {"query": "a hot drink", "mode": "semantic", "scene": 3},
)


def split_words(text: str) -> list[str]:
    """The words of ``text`` as a recogniser is scored on them: lower case, no punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def load_picture(name: str) -> Image.Image:
    """A picture that ships inside the scikit-image wheel, as RGB.

    Raises DemoError when scikit-image is not installed or has no such file.
    """
    # Found, not imported: skimage.data would try the network for what the wheel lacks.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DemoError("scikit-image is not installed; run: pip install scikit-image")
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise DemoError(f"scikit-image has no picture {name!r} at {path}; install scikit-image 0.26")
    return Image.open(path).convert("RGB")


def crop_view(picture: Image.Image, view: View) -> tuple[float, float, float, float]:
    """The view's box in the picture's pixels (left, top, right, bottom), not rounded.

    Raises DemoError if it leaves the picture, as the frame would then show what isn't there.
    """
    width_px = view.width * picture.width
    height_px = width_px * HEIGHT_PX / WIDTH_PX
    left, top = view.x * picture.width - width_px / 2, view.y * picture.height - height_px / 2
    right, bottom = left + width_px, top + height_px
    slack = 1e-6
    if left < -slack or top < -slack or right > picture.width + slack or bottom > picture.height + slack:
        raise DemoError(f"{view} leaves the {picture.width}x{picture.height} picture; move or narrow it")
    return max(left, 0.0), max(top, 0.0), min(right, picture.width), min(bottom, picture.height)


def render_frame(picture: Image.Image, scene: Scene, position: float) -> NDArray[np.uint8]:
    """The scene at ``position`` (0 its first frame, 1 its last): uint8 [HEIGHT_PX, WIDTH_PX, 3] RGB.

    The box moves by fractions of a pixel and the picture is resampled from it each time, so the move is smooth.
    """
    first, last = crop_view(picture, scene.start), crop_view(picture, scene.end)
    left, top, right, bottom = (a + (b - a) * position for a, b in zip(first, last, strict=True))
    frame = picture.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS, (left, top, right, bottom))
    return np.asarray(frame)


def render_frames(scenes: tuple[Scene, ...] = SCENES) -> Iterator[NDArray[np.uint8]]:
    """All frames in order; the first half of a dissolve's frames lies before its scenes' boundary."""
    pictures = [load_picture(scene.picture) for scene in scenes]
    edges = lay_out(scenes)

    def render(index: int, number: int) -> NDArray[np.uint8]:
        first, end = edges[index]
        # A scene beside a dissolve is on screen for longer than its own frames; its move covers those too.
        if scenes[index].dissolve_in:
            first -= DISSOLVE_BEFORE
        if index + 1 < len(scenes) and scenes[index + 1].dissolve_in:
            end += DISSOLVE_AFTER
        return render_frame(pictures[index], scenes[index], (number - first) / (end - 1 - first))

    for index, (first, end) in enumerate(edges):
        for number in range(first, end):
            older, boundary = index - 1, first
            if index + 1 < len(scenes) and number >= end - DISSOLVE_BEFORE:
                older, boundary = index, end
            newer = older + 1
            step = number - (boundary - DISSOLVE_BEFORE)
            if scenes[newer].dissolve_in and step < DISSOLVE_FRAMES:
                share = (step + 1) / (DISSOLVE_FRAMES + 1)
                yield mix_frames(render(older, number), render(newer, number), share)
            else:
                yield render(index, number)


def mix_frames(old: NDArray[np.uint8], new: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """A linear mix of two frames; ``share`` in 0..1 is the new one's."""
    mixed = old.astype(np.float32) * (1 - share) + new.astype(np.float32) * share
    return np.rint(mixed).astype(np.uint8)


def speak(text: str, voice: str) -> NDArray[np.int16]:
    """``text`` spoken by flite: int16 mono at SPEECH_RATE_HZ.

    Raises DemoError when flite is missing, has no such voice or answers at another rate.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        try:
            subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True, timeout=60)
        except FileNotFoundError:
            raise DemoError("the program flite is missing; run: apt-get install flite") from None
        except subprocess.CalledProcessError as error:
            raise DemoError(f"flite failed with voice {voice!r}; flite -lv lists the voices") from error
        with wave.open(str(path)) as sound:
            if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (SPEECH_RATE_HZ, 1, 2):
                raise DemoError(f"voice {voice!r} is not 16 kHz mono; use rms or slt")
            return np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2").astype(np.int16)


def lay_out(scenes: tuple[Scene, ...] = SCENES) -> list[tuple[int, int]]:
    """Each scene's first frame and the frame after its last."""
    edges, frame = [], 0
    for scene in scenes:
        edges.append((frame, frame + scene.frames))
        frame += scene.frames
    return edges


def narrate(voice: str) -> tuple[NDArray[np.int16], list[tuple[float, float]]]:
    """The whole sound track (int16 mono at SPEECH_RATE_HZ) and each narration's start and end in seconds.

    Raises DemoError when a narration is longer than its scene allows.
    """
    edges = lay_out()
    track = np.zeros(edges[-1][1] * SPEECH_RATE_HZ // FPS, np.int16)
    times = []
    for index, (scene, (first, end)) in enumerate(zip(SCENES, edges, strict=True)):
        sound = speak(scene.narration, voice)
        begin = first * SPEECH_RATE_HZ // FPS + round(LEAD_IN_S * SPEECH_RATE_HZ)
        dissolves = index + 1 < len(SCENES) and SCENES[index + 1].dissolve_in
        limit_s = (end - (DISSOLVE_BEFORE if dissolves else 0)) / FPS - TAIL_S
        end_s = (begin + len(sound)) / SPEECH_RATE_HZ
        if end_s > limit_s:
            raise DemoError(
                f"scene {index} is too short: its narration ends at {end_s:.2f} s, the limit is {limit_s:.2f} s;"
                " give it more frames"
            )
        track[begin : begin + len(sound)] = sound
        times.append((begin / SPEECH_RATE_HZ, end_s))
    peak = int(np.abs(track.astype(np.int32)).max())
    return (track.astype(np.float32) * (0.7 * 32767 / peak)).astype(np.int16), times


def encode(path: Path, track: NDArray[np.int16]) -> None:
    """Write frames and sound to ``path`` as H.264 and AAC in MP4, one thread each, so that it can be repeated."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        video.time_base = Fraction(1, FPS)
        # Without macroblock trees: x264's assembly for them gives other bits on each run, one thread or not.
        video.options = {"crf": "28", "preset": "slow", "threads": "1", "x264-params": "mbtree=0"}
        video.codec_context.colorspace = Colorspace.ITU709
        video.codec_context.color_primaries = video.codec_context.color_trc = 1  # BT.709
        sound = container.add_stream("aac", rate=AUDIO_RATE_HZ, layout="mono")
        sound.bit_rate = 64_000
        for number, image in enumerate(render_frames()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        resampler = AudioResampler(format="fltp", layout="mono", rate=AUDIO_RATE_HZ)
        block = av.AudioFrame.from_ndarray(track[None, :], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = SPEECH_RATE_HZ, 0, Fraction(1, SPEECH_RATE_HZ)
        for part in [*resampler.resample(block), *resampler.resample(None)]:
            container.mux(sound.encode(part))
        container.mux(sound.encode())


def describe(path: Path, voice: str, times: list[tuple[float, float]]) -> dict[str, Any]:
    """What is true of the video at ``path``, as written to truth.json (README.md explains each field)."""
    edges = lay_out()
    cuts = [
        {
            "time_s": first / FPS,
            "frame": first,
            "kind": "dissolve" if scene.dissolve_in else "hard",
            "length_s": DISSOLVE_FRAMES / FPS if scene.dissolve_in else 0.0,
        }
        for scene, (first, _) in list(zip(SCENES, edges, strict=True))[1:]
    ]
    scenes = [
        {
            "start_s": first / FPS,
            "end_s": end / FPS,
            "picture": scene.picture,
            "narration": scene.narration,
            "words": split_words(scene.narration),
            "speech_start_s": round(speech[0], 3),
            "speech_end_s": round(speech[1], 3),
        }
        for scene, (first, end), speech in zip(SCENES, edges, times, strict=True)
    ]
    flite = subprocess.run(["flite", "--version"], capture_output=True, text=True, check=False).stdout
    versions = {name: importlib.metadata.version(name) for name in ("av", "numpy", "pillow", "scikit-image")}
    versions["libavcodec"] = ".".join(map(str, av.library_versions["libavcodec"]))
    versions["flite"] = (re.findall(r"flite-[\d.]+\S*", flite) or ["unknown"])[0]
    return {
        "duration_s": edges[-1][1] / FPS,
        "fps": FPS,
        "frames": edges[-1][1],
        "width": WIDTH_PX,
        "height": HEIGHT_PX,
        "voice": voice,
        "cuts": cuts,
        "scenes": scenes,
        "faces": list(FACES),
        "searches": list(SEARCHES),
        "wer": {},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made_with": versions,
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Make demo.mp4 and truth.json.")
    parser.add_argument("--voice", default="rms", help="flite voice, rms or slt (default rms)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: this one)")
    options = parser.parse_args(arguments)
    try:
        track, times = narrate(options.voice)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "demo.mp4"
        partial = options.out / "demo.partial.mp4"
        encode(partial, track)
        partial.replace(path)
    except DemoError as error:
        print(f"make_demo: {error}", file=sys.stderr)
        return 1
    truth = describe(path, options.voice, times)
    (options.out / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
    print(f"{path}: {truth['duration_s']} s, {truth['frames']} frames, {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
