"""Splits a long file in spans, each decoded by another process, and joins them so that the scenes are those of one pass.

A span begins ``WARM_S`` after a key picture, from which it is decoded: by then the detectors know as much as in a pass from
the beginning. It ends as soon as the cuts a little after it are settled, so that it and the next one find the same cuts around
the seam between them; where these differ, ``SpansDiffer`` says so, and the file is split in one pass. Of a scene that crosses a
seam each span stores the candidates for keyframes that it holds, and the join chooses among all of them: as in one pass, unless a
span had to let some go (``keyframes.HELD``). Sprites are those of one pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .boundary import media_errors
from .cuts import MEMORY_S
from .guard import Counts, Guard
from .hardcuts import Cut
from .keyframes import Candidate, SceneFrames
from .limits import MediaLimits
from .packets import read_packets
from .planes import Plane, Thumb, fine_size, thumb_size
from .probe import describe, open_media
from .results import (
    THUMBS_NAME,
    AudioStream,
    Keyframe,
    MediaInfo,
    SceneCut,
    Span,
    SpansDiffer,
    SplitResult,
    VideoStream,
)
from .scenes import SceneCount, Stored, make_scene
from .sprites import SpriteBuilder

#: Around a seam both spans must have found the same cuts.
CHECK_S = 1.0
#: Decoded before a span begins, seconds and pictures: the network reads six pictures before a short proposal, however far apart they are.
WARM_S, _WARM_PICTURES = MEMORY_S + CHECK_S, 40
#: Files whose pictures are further apart are split in one pass: their clock may leap.
_LEAP_S = 10.0
#: So much earlier than a picture another one may be shown that comes after it.
_REORDERED_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SpanResult:
    """What the pass over a span found."""

    span: Span
    #: By the header, with the rotation of the first picture decoded.
    info: MediaInfo
    pixel_aspect: float
    version: str
    #: In the span, and up to ``CHECK_S`` before and after it.
    cuts: tuple[Cut, ...]
    #: Those between two cuts in the span.
    scenes: tuple[SceneCut, ...]
    #: Candidates before the first cut in the span, or all if it has none, and after the last one.
    head: tuple[Candidate[Stored], ...]
    tail: tuple[Candidate[Stored], ...]
    tiles: tuple[tuple[float, Thumb], ...]
    #: Time of the last picture decoded, whether it is the file's last, and how long it is shown.
    last_s: float
    is_end: bool
    frame_s: float
    counts: Counts
    #: End of everything that the container holds, as far as it was read.
    content_s: float
    keyframes: int
    keyframe_bytes: int


def plan_spans(path: Path, limits: MediaLimits, span_s: float) -> tuple[Span, ...]:
    """Return spans of about ``span_s`` seconds; none for a file that is shorter, or that is split in one pass.

    That is one whose clock leaps, or whose pictures have no times, or too few key pictures. Reads the whole file, decodes nothing.
    Raises as ``split.split``.
    """
    with media_errors(limits), open_media(path, limits) as container:
        info = describe(container, path, limits)
        if info.duration_s <= span_s:
            return ()
        count = max(2, round(info.duration_s / span_s))
        length_s = info.duration_s / count
        stream = container.streams[info.video.index]
        tick_s, start_s = float(stream.time_base or 0), (container.start_time or 0) / 1e6
        guard, unreadable = Guard(info, limits), False

        def note_unreadable() -> None:
            nonlocal unreadable
            unreadable = True

        begins: list[tuple[float, int]] = []
        #: Where the next span may begin: (seconds, ticks of the key picture before), and pictures since.
        key: tuple[float, int] | None = None
        pictures, last_s = 0, 0.0
        for packet in read_packets(container, [], note_unreadable):
            if packet.stream is not stream:
                continue
            if packet.pts is None:
                return ()
            ts_s = packet.pts * tick_s - start_s
            if not last_s - _REORDERED_S <= ts_s <= last_s + _LEAP_S:
                return ()
            last_s = max(last_s, ts_s)
            guard.budget.reach(ts_s)
            pictures += 1
            wanted_s = max((len(begins) + 1) * length_s, begins[-1][0] + length_s / 2 if begins else 0.0)
            if key is None and packet.is_keyframe and ts_s >= wanted_s - WARM_S:
                key, pictures = (ts_s + WARM_S, packet.pts), 0
            elif key is not None and ts_s >= key[0]:
                if pictures >= _WARM_PICTURES and len(begins) < count - 1:
                    begins.append(key)
                key = None
    if unreadable or not begins:
        return ()
    edges: list[tuple[float, int | None]] = [(0.0, None), *begins]
    ends = [*(from_s for from_s, _ in begins), None]
    return tuple(
        Span(from_s=from_s, to_s=to_s, key_pts=pts) for (from_s, pts), to_s in zip(edges, ends, strict=True)
    )


def join_spans(
    found: Sequence[SpanResult], out_dir: Path, *, limits: MediaLimits, sound_s: float
) -> SplitResult:
    """Return what one pass over the file would have found, and write its sprites into ``out_dir``.

    Args:
        found: of all spans, in order. Of their thumbs one span's at a time are used.
        sound_s: the length of the sound, which may outlast the pictures.

    The sound is not in it. Raises SpansDiffer, and as ``split.split`` for limits on the whole file.
    """
    first, last = found[0], found[-1]
    for one, other in pairwise(found):
        _check_seam(one, other, last)
    guard = Guard(first.info, limits)
    guard.content_s = max(one.content_s for one in found)
    guard.add(_total([one.counts for one in found]), last.last_s)
    guard.check_complete()
    end_s = max(last.last_s + last.frame_s, sound_s)
    info = replace(first.info, duration_s=end_s, audio=first.info.audio if sound_s else None)
    return SplitResult(
        info=info,
        scenes=_join_scenes(found, end_s, SceneCount(limits)),
        audio=None,
        windows=(),
        version=first.version,
        sprites=_join_sprites(found).finish(
            out_dir, end_s, rotation_deg=info.video.rotation_deg, pixel_aspect=first.pixel_aspect
        ),
    )


def _check_seam(one: SpanResult, other: SpanResult, last: SpanResult) -> None:
    """Make sure that two neighbours agree on what they both have decoded; raises SpansDiffer."""
    if (one.version, one.info, one.pixel_aspect) != (other.version, other.info, other.pixel_aspect):
        raise SpansDiffer("they were split in different ways")
    if one.is_end and one.last_s != last.last_s:
        raise SpansDiffer(f"one ends at {one.last_s:.3f} s, the last one at {last.last_s:.3f} s")
    seam_s = other.span.from_s
    mine, others = (
        [(cut.ts_s, cut.kind) for cut in each.cuts if abs(cut.ts_s - seam_s) < CHECK_S]
        for each in (one, other)
    )
    if mine != others:
        raise SpansDiffer(f"around {seam_s:.3f} s one has the cuts {mine}, the next one {others}")


def _total(counts: Sequence[Counts]) -> Counts:
    return Counts(**{name: sum(getattr(one, name) for one in counts) for name in asdict(counts[0])})


def _join_scenes(found: Sequence[SpanResult], end_s: float, count: SceneCount) -> tuple[SceneCut, ...]:
    scenes: list[SceneCut] = []
    begins: Cut | None = None
    candidates: SceneFrames[Stored] = SceneFrames()

    def close(to_s: float, ends: Cut | None) -> None:
        start_s = 0.0 if begins is None else begins.ts_s
        chosen = candidates.choose(start_s, to_s, begins, ends)
        scenes.append(make_scene(len(scenes), begins, to_s, (one.keyframe for one in chosen)))
        count.add_scene(to_s)

    for one in found:
        count.add_keyframes(one.keyframes, one.keyframe_bytes, one.last_s)
        own = [cut for cut in one.cuts if one.span.has(cut.ts_s)]
        candidates.join(one.head)
        if not own:
            continue
        close(own[0].ts_s, own[0])
        for scene in one.scenes:
            count.add_scene(scene.end_s)
            scenes.append(replace(scene, idx=len(scenes)))
        begins, candidates = own[-1], SceneFrames()
        candidates.join(one.tail)
    close(end_s, None)
    return tuple(scenes)


def _join_sprites(found: Sequence[SpanResult]) -> SpriteBuilder:
    builder = SpriteBuilder()
    for one in found:
        for ts_s, thumb in one.tiles:
            builder.feed(ts_s, thumb)
    return builder


def store(found: SpanResult, out_dir: Path) -> dict[str, Any]:
    """Write the thumbs of a result, and what its candidates are compared by, into ``out_dir``; return the rest as JSON."""
    ends = {"head": found.head, "tail": found.tail}
    planes = [plane for _, thumb in found.tiles for plane in (thumb.y, thumb.u, thumb.v)]
    for one in (*found.head, *found.tail):
        planes += [one.shown.thumb.y, one.shown.thumb.u, one.shown.thumb.v, one.luma, one.lasting]
    with (out_dir / THUMBS_NAME).open("wb") as file:
        for plane in planes:
            file.write(plane.tobytes())
    return {
        **asdict(replace(found, tiles=(), head=(), tail=())),
        "tiles": [(ts_s, thumb.mean, thumb.std) for ts_s, thumb in found.tiles],
        **{
            name: [
                (asdict(one.keyframe), one.sharpness, one.thumb.mean, one.thumb.std)
                for one in (candidate.shown for candidate in end)
            ]
            for name, end in ends.items()
        },
    }


def load(number: int, result: Path, thumbs: Path) -> SpanResult:
    """Return the stored result of the span ``number``, whose thumbs are read when they are used.

    The paths of its pictures become ``number/name``.
    """
    known = json.loads(result.read_text())
    info = known["info"]
    video, audio = info["video"], info["audio"]
    width, height = thumb_size(video["width"], video["height"])
    sizes = (height, width), (height // 2, width // 2), (height // 2, width // 2)
    fine_width, fine_height = fine_size(video["width"], video["height"])
    stored, place = np.memmap(thumbs, np.uint8, "r"), 0

    def next_plane(height: int, width: int) -> Plane:
        nonlocal place
        place += height * width
        return stored[place - height * width : place].reshape(height, width)

    def next_thumb(mean: float, std: float) -> Thumb:
        y, u, v = (next_plane(*size) for size in sizes)
        return Thumb(y=y, u=u, v=v, mean=mean, std=std)

    def keyframe(value: dict[str, Any]) -> Keyframe:
        return Keyframe(**{**value, "path": Path(str(number), Path(value["path"]).name)})

    def scene(value: dict[str, Any]) -> SceneCut:
        return SceneCut(**{**value, "keyframes": tuple(map(keyframe, value["keyframes"]))})

    def candidate(picture: dict[str, Any], sharpness: float, *of_thumb: float) -> Candidate[Stored]:
        stored = Stored(keyframe(picture), sharpness, next_thumb(*of_thumb))
        return Candidate(stored, next_plane(fine_height, fine_width), next_plane(fine_height, fine_width))

    # In the order of what is stored.
    tiles = tuple((ts_s, next_thumb(mean, std)) for ts_s, mean, std in known["tiles"])
    head, tail = (tuple(candidate(*one) for one in known[name]) for name in ("head", "tail"))
    return SpanResult(
        **{
            **known,
            "span": Span(**known["span"]),
            "info": MediaInfo(
                **{**info, "video": VideoStream(**video), "audio": audio and AudioStream(**audio)}
            ),
            "cuts": tuple(Cut(**cut) for cut in known["cuts"]),
            "scenes": tuple(map(scene, known["scenes"])),
            "tiles": tiles,
            "head": head,
            "tail": tail,
            "counts": Counts(**known["counts"]),
        }
    )
