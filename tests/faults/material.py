"""Short clips of the sample: each with words, a cut and, some of them, the astronaut's face, so that results matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.excerpt import Span, write_excerpt

#: Each span holds at least one cut; those around 8.6..17.7 s show a face.
SPANS: tuple[Span, ...] = (
    (6.2, 11.4), (14.0, 19.6), (23.2, 28.8), (30.2, 36.0), (39.0, 44.6), (10.0, 18.4),
)  # fmt: skip
#: The same in three seconds each, for the compact run.
SHORT_SPANS: tuple[Span, ...] = (
    (7.2, 10.4), (16.0, 19.2), (24.8, 28.0), (31.6, 34.8), (40.6, 43.8), (56.6, 59.8),
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A video to be sent: the file and whose it is."""

    video_id: str
    user_id: str
    path: Path
    priority: int = 0


def cut_clips(sample: Path, folder: Path, spans: Sequence[Span] = SPANS) -> list[Path]:
    """Write spans of the sample into files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = [folder / f"clip{number}.mp4" for number in range(len(spans))]
    for path, span in zip(clips, spans, strict=True):
        write_excerpt(sample, path, pictures=[span], sound=span, size=(640, 360))
    return clips


def sources(clips: Sequence[Path], count: int, users: int = 3) -> list[Source]:
    """``count`` videos of several users over the clips, one in five of them urgent."""
    return [
        Source(f"video{n:02d}", f"user{n % users}", clips[n % len(clips)], priority=5 if n % 5 == 4 else 0)
        for n in range(count)
    ]
