"""Short clips of the sample: each with words, a cut and, some of them, the astronaut's face, so that results matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

#: (start, end) in the sample, seconds. Each span holds at least one cut; those around 8.6..17.7 s show a face.
SPANS: tuple[tuple[float, float], ...] = (
    (6.2, 11.4),
    (14.0, 19.6),
    (23.2, 28.8),
    (30.2, 36.0),
    (39.0, 44.6),
    (10.0, 18.4),
)
#: The same in three seconds each, for the compact run.
SHORT_SPANS: tuple[tuple[float, float], ...] = (
    (7.2, 10.4),
    (16.0, 19.2),
    (24.8, 28.0),
    (31.6, 34.8),
    (40.6, 43.8),
    (56.6, 59.8),
)


@dataclass(frozen=True)
class Source:
    """A video to be sent: the file and whose it is."""

    video_id: str
    user_id: str
    path: Path
    priority: int = 0


def cut_clips(sample: Path, folder: Path, spans: Sequence[tuple[float, float]] = SPANS) -> list[Path]:
    """Re-encode spans of the sample into files of their own (a stream copy could only begin at a key picture)."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number, (start_s, end_s) in enumerate(spans):
        path = folder / f"clip{number}.mp4"
        _cut(sample, path, start_s, end_s)
        clips.append(path)
    return clips


def sources(clips: Sequence[Path], count: int, users: int = 3) -> list[Source]:
    """``count`` videos of several users over the clips, one in five of them urgent."""
    return [
        Source(f"video{n:02d}", f"user{n % users}", clips[n % len(clips)], priority=5 if n % 5 == 4 else 0)
        for n in range(count)
    ]


def _cut(sample: Path, path: Path, start_s: float, end_s: float) -> None:
    with av.open(str(sample)) as source, av.open(str(path), "w") as target:
        pictures, sounds = source.streams.video[0], source.streams.audio[0]
        rate = Fraction(pictures.average_rate or 25)
        video: Any = target.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "20"})
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        audio: Any = target.add_stream("aac", rate=sounds.rate)
        audio.layout = sounds.layout.name
        shown = heard = 0
        source.seek(int(start_s * 1_000_000))
        for frame in _frames(source, start_s, end_s):
            if isinstance(frame, av.VideoFrame):
                picture = frame.reformat(640, 360, format="yuv420p")
                picture.pts, picture.time_base = shown, 1 / rate
                shown += 1
                target.mux(video.encode(picture))
            else:
                frame.pts, frame.time_base = heard, Fraction(1, frame.sample_rate)
                heard += frame.samples
                target.mux(audio.encode(frame))
        target.mux(video.encode(None))
        target.mux(audio.encode(None))


def _frames(source: Any, start_s: float, end_s: float) -> Iterator[Any]:
    for packet in source.demux(video=0, audio=0):
        # Past the end of both streams only once sound and pictures, which are interleaved, have passed it.
        if packet.pts is not None and packet.pts * packet.time_base > end_s + 2:
            return
        for frame in packet.decode():
            if frame.time is not None and start_s <= frame.time < end_s:
                yield frame
