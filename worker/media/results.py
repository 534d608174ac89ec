"""The results of decoding a file. Imports no decoder, for processes that let another one decode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.playback import Index

Mode = Literal["exact", "fast", "accurate"]

#: Changes whenever the same file could give another rendition than before.
RENDITION_VERSION = "rendition-1"

#: The file of the thumbs of a span's tiles and candidates: the planes of one after another.
THUMBS_NAME = "thumbs.yuv"


class SpansDiffer(Exception):
    """The spans of a file don't fit together: it has to be split in one pass. The message says why."""


@dataclass(frozen=True, kw_only=True)
class VideoStream:
    """The video stream that is used."""

    index: int
    codec: str
    #: Stored size, before rotation and before correcting non-square pixels.
    width: int
    height: int
    #: Clockwise turn that shows the picture upright: 0, 90, 180 or 270.
    rotation_deg: int
    #: Frames a second by the header; 0.0 when it does not say.
    avg_fps: float
    pix_fmt: str


@dataclass(frozen=True, kw_only=True)
class AudioStream:
    """The audio stream that is used."""

    index: int
    codec: str
    sample_rate_hz: int
    channels: int
    #: ISO 639 code as the container gives it.
    language: str | None


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What the container says; ``split`` replaces ``duration_s`` by the measured one."""

    container: str
    #: mp4, mov, webm, matroska, or FFmpeg's name of the container.
    flavour: str = ""
    #: Where an MP4 or MOV has its index (moov).
    index: Index | None = None
    #: 0.0 when the header does not say.
    duration_s: float
    size_bytes: int
    video: VideoStream
    audio: AudioStream | None
    #: Streams of every type.
    streams: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a file that one pass decodes; times in seconds."""

    from_s: float = 0.0
    #: None: the end of the file.
    to_s: float | None = None
    #: The key picture at which decoding begins, by its time in ticks; None: at the beginning of the file.
    key_pts: int | None = None

    def has(self, ts_s: float) -> bool:
        """Whether a time falls into the span; the first one also has what is shown before the file's start."""
        return (self.key_pts is None or self.from_s <= ts_s) and (self.to_s is None or ts_s < self.to_s)


@dataclass(frozen=True, kw_only=True)
class Keyframe:
    """One picture of a scene."""

    #: Seconds from the container's start.
    ts_s: float
    #: JPEG.
    path: Path
    #: As shown: turned upright, square pixels, at most 1280 a side.
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class SceneCut:
    """A scene: from one cut to the next."""

    idx: int
    start_s: float
    end_s: float
    #: What began the scene.
    kind: Literal["start", "cut", "gradual"]
    #: Probability that it begins there; 1 for the start.
    cut_confidence: float
    #: In order of time, at least one.
    keyframes: tuple[Keyframe, ...]


@dataclass(frozen=True, kw_only=True)
class Sprites:
    """Small pictures of the whole video, row by row on sheets (JPEG), for a preview on hover."""

    #: sprite-0.jpg, ...
    sheets: tuple[Path, ...]
    #: WebVTT: which part of which sheet belongs to which time.
    index: Path


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """What one pass found. Times are seconds from the container's start."""

    #: With the measured duration and rotation.
    info: MediaInfo
    #: Without gaps, from 0.0 to the end of the content.
    scenes: tuple[SceneCut, ...]
    #: WAV: mono s16le, 16 kHz, 44-byte header; None without audio.
    audio: Path | None
    #: (start, end) spans covering the audio, each at most ``part_s`` long, cut at quiet places.
    windows: tuple[tuple[float, float], ...]
    #: Algorithm and mode; "-cheap" at the end: no network judged the doubtful cuts.
    version: str
    sprites: Sprites


@dataclass(frozen=True, kw_only=True)
class SpanFiles:
    """What the pass over a span has written."""

    #: What it found, as JSON.
    found: Path
    thumbs: Path
    #: JPEG: keyframes, and candidates for those of scenes that go on beyond the span.
    pictures: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Rendition:
    """What a browser plays instead of a file."""

    #: The file itself is played (``original``); made by copying its packets, or by encoding them.
    how: Literal["original", "remux", "transcode"]
    #: Why the file itself is not played; empty: it is.
    reason: str
    #: MP4 with its index first; None: nothing was made.
    path: Path | None
    #: Size of the picture as shown (turned upright), if it was encoded.
    size: tuple[int, int] | None
