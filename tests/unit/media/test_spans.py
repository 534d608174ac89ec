"""A file split in spans gives the scenes, keyframes and sprites of one pass, or says that it can't."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from bench.storyboard import draw_shots
from shared.errors import BadMedia, LimitExceeded
from tests.support.clips import Encoding, Join, Shot, Sound, make_clip, picture, write_video
from worker.media.cuts import CutFinder
from worker.media.limits import MediaLimits
from worker.media.results import THUMBS_NAME, SpansDiffer, SplitResult
from worker.media.sound import extract_audio
from worker.media.spans import CHECK_S, SpanResult, join_spans, load, plan_spans, store
from worker.media.split import split, split_span

pytestmark = pytest.mark.video

LIMITS = MediaLimits(media_threads=1)
#: A key picture at each second, and nowhere else.
ENCODING = Encoding(
    size=(128, 72), fps=Fraction(30), options={"preset": "veryfast", "g": "30", "sc_threshold": "0"}
)
#: Clips of this length have seams at 9 and 18 s.
LENGTH_S, SPAN_S = 26, 9.0


def find_spans(
    path: Path, folder: Path, span_s: float = SPAN_S, limits: MediaLimits = LIMITS, **options: Any
) -> list[SpanResult]:
    """Split each span; what is found goes through its files."""
    found = []
    for number, span in enumerate(plan_spans(path, limits, span_s)):
        out_dir = folder / str(number)
        result = store(split_span(path, out_dir, span=span, limits=limits, **options), out_dir)
        (out_dir / "span.json").write_text(json.dumps(result, default=str))
        found.append(load(number, out_dir / "span.json", out_dir / THUMBS_NAME))
    return found


def join(path: Path, folder: Path, found: Sequence[SpanResult], limits: MediaLimits = LIMITS) -> SplitResult:
    _, windows = extract_audio(path, folder / "sound", limits=limits)
    return join_spans(found, folder, limits=limits, sound_s=windows[-1][1] if windows else 0.0)


def outline(result: SplitResult, folder: Path, seams_s: Sequence[float]) -> dict[str, Any]:
    """All that must be the same, with the bytes of the pictures; of scenes across a seam other pictures may be chosen."""
    scenes = []
    for scene in result.scenes:
        pictures = [{**asdict(k), "path": (folder / k.path).read_bytes()} for k in scene.keyframes]
        assert pictures and all(scene.start_s <= picture["ts_s"] < scene.end_s for picture in pictures)
        crosses = any(scene.start_s < seam_s < scene.end_s for seam_s in seams_s)
        scenes.append({**asdict(scene), "keyframes": [] if crosses else pictures})
    sprites = [path.read_bytes() for path in (result.sprites.index, *result.sprites.sheets)]
    return {"scenes": scenes, "sprites": sprites, "info": result.info, "version": result.version}


def assert_same(path: Path, folder: Path, span_s: float = SPAN_S, **options: Any) -> SplitResult:
    """Compare with one pass, which is returned."""
    one = split(path, folder / "one", limits=LIMITS, **options)
    found = find_spans(path, folder, span_s, **options)
    assert len(found) >= 2
    seams_s = [each.span.from_s for each in found[1:]]
    assert outline(join(path, folder, found), folder, seams_s) == outline(one, folder / "one", seams_s)
    return one


def joined_at(joins: Sequence[tuple[Join, int, int]]) -> list[Shot]:
    """Shots with joins of (kind, first frame, frames)."""
    shots, at = [], 0
    for number, (_, first, length) in enumerate([*joins, ("cut", LENGTH_S * 30, 0)]):
        before = joins[number - 1] if number else ("cut", 0, 0)
        move: Any = ("pan", "still", "objects")[number % 3]
        shots.append(
            Shot(seed=300 + number + first, frames=first + length - at, move=move, join=before[0], join_frames=before[2])
        )  # fmt: skip
        at = first
    return shots


#: 9 s is frame 270, 18 s is 540.
AT_SEAMS: tuple[list[tuple[Join, int, int]], ...] = (
    [("cut", 270, 0), ("cut", 540, 0)],
    [("cut", 269, 0), ("cut", 541, 0)],
    [("cut", 266, 0), ("cut", 276, 0), ("cut", 535, 0), ("cut", 546, 0)],
    [("dissolve", 255, 30), ("dissolve", 525, 30)],
    [("dissolve", 245, 30), ("dissolve", 536, 40)],
    [("dissolve", 268, 60), ("dissolve", 482, 60)],
    [("fade", 255, 30), ("fade", 530, 20)],
    [("fade", 240, 60), ("fade", 545, 40)],
    [("cut", 100, 0), ("dissolve", 263, 15), ("cut", 300, 0), ("fade", 500, 60)],
    # The middle span has no cut.
    [("cut", 150, 0), ("dissolve", 600, 20)],
    # Nor has any.
    [],
)


@pytest.mark.parametrize("joins", AT_SEAMS)
def test_transitions_at_the_seams(tmp_path: Path, joins: list[tuple[Join, int, int]]) -> None:
    truth = make_clip(tmp_path / "a.mp4", joined_at(joins), ENCODING)
    assert [span.from_s for span in plan_spans(truth.path, LIMITS, SPAN_S)] == [0.0, 9.0, 18.0]
    assert len(assert_same(truth.path, tmp_path).scenes) == len(joins) + 1


@pytest.mark.parametrize("seed", range(400, 409))
def test_drawn_clips(tmp_path: Path, seed: int) -> None:
    """With key pictures where the encoder wants them."""
    encoding = replace(ENCODING, options={"preset": "veryfast", "g": "60"})
    shots = draw_shots(seed, LENGTH_S)
    truth = make_clip(tmp_path / "a.mp4", shots, encoding)
    assert len(assert_same(truth.path, tmp_path).scenes) > 3


@pytest.mark.parametrize("name", ["sintel-16s.mp4", "traffic-camera.mp4"])
def test_real_films(tmp_path: Path, assets: Path, name: str) -> None:
    assert_same(assets / "films" / name, tmp_path, 8.0)


def test_sound_that_outlasts_the_pictures(tmp_path: Path) -> None:
    """The last scene ends with it, and its keyframes are spread over as much."""
    truth = make_clip(tmp_path / "a.mp4", joined_at(AT_SEAMS[0]), ENCODING, Sound(duration_s=LENGTH_S + 3.0))
    assert assert_same(truth.path, tmp_path).scenes[-1].end_s > LENGTH_S + 2.5


@pytest.mark.parametrize("suffix", ["mkv", "mov", "ts", "fragments.mp4", "open.mp4", "60fps.mp4"])
def test_containers_and_group_structures(tmp_path: Path, suffix: str) -> None:
    """Without an index, too: FFmpeg searches MPEG-TS by its times."""
    path, encoding = tmp_path / f"a.{suffix}", ENCODING
    match suffix:
        case "open.mp4":
            encoding = replace(ENCODING, options={"x264-params": "open-gop=1:keyint=30:bframes=3"})
        case "60fps.mp4":
            encoding = replace(ENCODING, fps=Fraction(60), options={"preset": "veryfast", "g": "60"})
    shots = joined_at(AT_SEAMS[8])
    if suffix == "60fps.mp4":
        shots = [replace(s, frames=2 * s.frames, join_frames=2 * s.join_frames) for s in shots]
    if suffix == "fragments.mp4":
        made = make_clip(tmp_path / "whole.mp4", shots, encoding)
        copy(made.path, path, movflags="frag_keyframe+empty_moov")
    else:
        make_clip(path, shots, encoding)
    assert_same(path, tmp_path)


def copy(source: Path, path: Path, shift: Callable[[int], int] = lambda ticks: ticks, **options: str) -> None:
    """Copy the packets of the pictures, with other times."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = shift(packet.pts), shift(packet.dts), stream
                new.mux(packet)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", joined_at(AT_SEAMS[3]), ENCODING).path


def test_files_that_are_split_in_one_pass(tmp_path: Path, clip: Path) -> None:
    def spans(path: Path, span_s: float = SPAN_S) -> int:
        return len(plan_spans(path, LIMITS, span_s))

    assert spans(clip) == 3 and spans(clip, LENGTH_S + 1.0) == 0
    tick_s = 1 / 15_360  # the muxer's choice for 30 frames a second
    copy(
        clip, tmp_path / "leaps.mp4", lambda ticks: ticks + (round(20 / tick_s) if ticks * tick_s > 12 else 0)
    )
    assert spans(tmp_path / "leaps.mp4") == 0
    # Without a duration in its header, as browsers record.
    copy(clip, tmp_path / "live.mkv", live="1")
    assert spans(tmp_path / "live.mkv") == 0
    one_group = replace(ENCODING, options={"preset": "veryfast", "g": "2000", "sc_threshold": "0"})
    make_clip(tmp_path / "group.mp4", joined_at(AT_SEAMS[3]), one_group)
    assert spans(tmp_path / "group.mp4") == 0
    damaged = bytearray(clip.read_bytes())
    (tmp_path / "short.mp4").write_bytes(damaged[: len(damaged) // 3])
    with pytest.raises(BadMedia):
        spans(tmp_path / "short.mp4")


def test_a_file_that_can_not_be_read_from_the_middle(tmp_path: Path, clip: Path) -> None:
    spans = plan_spans(clip, LIMITS, SPAN_S)
    strange = replace(spans[1], key_pts=(spans[1].key_pts or 0) + 1)
    with pytest.raises(SpansDiffer, match="from the middle"):
        split_span(clip, tmp_path / "out", span=strange, limits=LIMITS)


def test_spans_that_do_not_fit_together(tmp_path: Path, clip: Path) -> None:
    found = find_spans(clip, tmp_path)
    seam_s = found[1].span.from_s
    moved = tuple(
        replace(cut, ts_s=cut.ts_s + 0.1) if abs(cut.ts_s - seam_s) < 1 else cut for cut in found[1].cuts
    )
    assert moved != found[1].cuts
    with pytest.raises(SpansDiffer, match=r"around 9\.000 s"):
        join(clip, tmp_path, [found[0], replace(found[1], cuts=moved), found[2]])
    with pytest.raises(SpansDiffer, match="different ways"):
        join(clip, tmp_path, [*found[:2], replace(found[2], version="onepass-4-exact")])
    with pytest.raises(SpansDiffer, match="one ends at"):
        join(clip, tmp_path, [replace(found[0], is_end=True), *found[1:]])


def test_a_span_that_begins_in_the_dark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Black when the decoding of the second span begins, until after the seam: it is no start of a video."""
    before, after = (picture(seed, *ENCODING.size) for seed in (501, 502))
    steps = [number / 15 for number in range(15)]
    images = [
        *[before] * 10,
        *((before * (1 - step)).astype(np.uint8) for step in steps),
        *[np.zeros_like(before)] * 330,
        *((after * step).astype(np.uint8) for step in steps),
    ]
    images += [after] * (LENGTH_S * 30 - len(images))
    write_video(tmp_path / "a.mp4", iter(images), ENCODING)
    first, second = assert_same(tmp_path / "a.mp4", tmp_path).scenes
    assert abs(second.start_s - 9.0) < CHECK_S and not first.keyframes[0].ts_s > 1.0
    real = CutFinder.__init__
    monkeypatch.setattr(CutFinder, "__init__", lambda self, *args, resumed: real(self, *args))
    with pytest.raises(SpansDiffer, match=r"around 9\.000 s"):
        assert_same(tmp_path / "a.mp4", tmp_path)


def test_limits_hold_for_the_whole(tmp_path: Path, clip: Path) -> None:
    found = find_spans(clip, tmp_path)
    assert (
        max(len(one.scenes) for one in found) < 2 and sum(one.counts.frames for one in found) == LENGTH_S * 30
    )

    def fails(says: str, **limits: Any) -> None:
        with pytest.raises(LimitExceeded, match=says):
            join(clip, tmp_path, found, replace(LIMITS, **limits))

    fails("more than 2 scenes", max_video_scenes=2)
    fails("MAX_VIDEO_KEYFRAMES", max_video_keyframes=max(one.keyframes for one in found))
    fails("MAX_VIDEO_KEYFRAME_BYTES", max_video_keyframe_bytes=max(one.keyframe_bytes for one in found))
    fails("frames a second", max_video_fps=20.0)
    costly = [replace(one, counts=replace(one.counts, cpu_s=30.0, pixels=10**12)) for one in found]
    for says, limits in (
        (r"took 90 s of CPU", {"max_video_pixels_per_s": 10**12, "max_video_pixels_per_byte": 10**12, "media_cpu_per_s": 0.1}),
        (r"MAX_VIDEO_PIXELS\)", {"max_video_pixels": 2 * 10**12}),
    ):  # fmt: skip
        with pytest.raises(LimitExceeded, match=says):
            join(clip, tmp_path, costly, replace(LIMITS, **limits))
    damaged = [replace(one, counts=replace(one.counts, errors=300)) for one in found]
    with pytest.raises(BadMedia, match="900 of 1680 pictures"):
        join(clip, tmp_path, damaged)
    claimed = [replace(one, info=replace(one.info, duration_s=60.0)) for one in found]
    with pytest.raises(BadMedia, match="truncated"):
        join(clip, tmp_path, claimed)
