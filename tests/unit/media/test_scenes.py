"""Scenes against clips whose cuts are known: every container and pixel format, every kind of transition."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from shared.errors import LeaseLost
from tests.support.clips import Encoding, Shot, Sound, Truth, make_clip
from tests.unit.media.conftest import Split
from worker.media.results import SplitResult

pytestmark = pytest.mark.video

THREE_SHOTS = (
    Shot(seed=1, frames=30, move="pan"),
    Shot(seed=2, frames=34, move="zoom"),
    Shot(seed=3, frames=26, move="objects"),
)


def starts_s(result: SplitResult, kind: str) -> list[float]:
    return [scene.start_s for scene in result.scenes if scene.kind == kind]


def assert_cuts(result: SplitResult, truth: Truth) -> None:
    """Every hard cut within one frame, every gradual one inside its transition, and nothing else."""
    assert starts_s(result, "cut") == pytest.approx(list(truth.cuts_s), abs=1.01 / truth.fps)
    found = starts_s(result, "gradual")
    assert len(found) == len(truth.gradual_s)
    for at_s, (start_s, end_s) in zip(found, truth.gradual_s, strict=True):
        assert start_s <= at_s <= end_s


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("a.mp4", Encoding()),
        ("a.mkv", Encoding(pix_fmt="yuv420p10le")),
        (
            "a.webm",
            Encoding(
                codec="libvpx", options={"deadline": "realtime", "cpu-used": "8", "b": "1M"}, size=(160, 90)
            ),
        ),
        ("a.avi", Encoding(codec="mpeg4", options={"b": "2M", "bf": "2"})),
        ("a.mov", Encoding(codec="mjpeg", pix_fmt="yuvj422p", options={})),
        ("a.ts", Encoding(codec="mpeg2video", options={"b": "2M"})),
        ("a.mpg", Encoding(codec="mpeg2video", options={"b": "2M"})),
        ("a.flv", Encoding(codec="flv", options={"b": "2M"})),
        ("rgb.mkv", Encoding(codec="ffv1", pix_fmt="bgr0", options={}, size=(160, 90))),
        ("gray.mkv", Encoding(codec="ffv1", pix_fmt="gray", options={}, size=(160, 90))),
        ("palette.mov", Encoding(codec="qtrle", pix_fmt="rgb24", options={}, size=(160, 90))),
        ("odd.mkv", Encoding(size=(321, 181), pix_fmt="yuv444p")),
        ("portrait.mp4", Encoding(size=(180, 320))),
        ("tiny.mp4", Encoding(size=(32, 18))),
        ("ntsc.mp4", Encoding(fps=Fraction(30_000, 1001))),
        ("interlaced.mp4", Encoding(options={"preset": "veryfast", "flags": "+ildct+ilme"})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hard_cuts_within_one_frame(tmp_path: Path, split_file: Split, name: str, encoding: Encoding) -> None:
    truth = make_clip(tmp_path / name, THREE_SHOTS, encoding)
    result = split_file(truth.path)
    assert_cuts(result, truth)
    assert result.version == "onepass-4-exact-cheap"
    assert result.info.duration_s == pytest.approx(truth.duration_s, abs=2 / truth.fps)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_transitions(tmp_path: Path, split_file: Split, mode: str) -> None:
    """Cut, dissolve, cut, fade through black, cut."""
    shots = (
        Shot(seed=11, frames=60, move="pan"),
        Shot(seed=12, frames=60, move="still"),
        Shot(seed=13, frames=90, move="zoom", join="dissolve", join_frames=20),
        Shot(seed=14, frames=90, move="objects"),
        Shot(seed=15, frames=80, move="pan", join="fade", join_frames=30),
        Shot(seed=16, frames=40, move="still"),
    )
    truth = make_clip(tmp_path / "a.mp4", shots)
    result = split_file(truth.path, mode=mode)
    assert_cuts(result, truth)
    assert result.version == ("onepass-4-fast" if mode == "fast" else "onepass-4-exact-cheap")


@pytest.mark.parametrize(
    "shot",
    [
        Shot(seed=21, frames=100, flashes=(30, 31, 60, 61, 62), move="still"),
        Shot(seed=22, frames=100, flashes=(40, 41), move="pan"),
        Shot(seed=23, frames=100, move="pan", speed=2),
        Shot(seed=24, frames=100, move="zoom", speed=2),
        Shot(seed=25, frames=100, move="shake", speed=2),
        Shot(seed=26, frames=100, move="objects", speed=2),
        Shot(seed=27, frames=100, move="jerk"),
        Shot(seed=28, frames=100, noise=25),
    ],
    ids=["flash", "flash-pan", "pan", "zoom", "shake", "objects", "jerk", "noise"],
)
def test_one_scene_stays_one(tmp_path: Path, split_file: Split, shot: Shot) -> None:
    """Flashes, camera moves, moving objects and grain are no cuts."""
    truth = make_clip(tmp_path / "a.mp4", [shot])
    result = split_file(truth.path)
    assert [(s.idx, s.kind) for s in result.scenes] == [(0, "start")]


def test_times_come_from_timestamps(tmp_path: Path, split_file: Split) -> None:
    """With a variable frame rate, frame index over rate would be seconds off."""
    steps_s = [0.02] * 30 + [0.15] * 34 + [0.04] * 26
    times_s = tuple(sum(steps_s[:i]) for i in range(len(steps_s)))
    truth = make_clip(tmp_path / "a.mkv", THREE_SHOTS, Encoding(times_s=times_s))
    result = split_file(truth.path)
    assert starts_s(result, "cut") == pytest.approx([times_s[30], times_s[64]], abs=0.002)


def test_slide_show(tmp_path: Path, split_file: Split) -> None:
    """One frame in five seconds: every picture is its own scene, with its own keyframe."""
    shots = [Shot(seed=s, frames=1) for s in range(30, 36)]
    times_s = tuple(5.0 * i for i in range(6))
    truth = make_clip(tmp_path / "a.mkv", shots, Encoding(times_s=times_s, fps=Fraction(1)))
    result = split_file(truth.path)
    assert [s.start_s for s in result.scenes] == pytest.approx(list(times_s), abs=0.01)
    assert [[k.ts_s for k in s.keyframes] for s in result.scenes] == [
        [pytest.approx(t, abs=0.01)] for t in times_s
    ]


def test_scenes_have_no_gaps_and_cover_an_audio_tail(tmp_path: Path, split_file: Split) -> None:
    truth = make_clip(tmp_path / "a.mp4", THREE_SHOTS, sound=Sound(duration_s=6.0))
    result = split_file(truth.path)
    assert result.scenes[0].start_s == 0.0
    assert all(before.end_s == after.start_s for before, after in pairwise(result.scenes))
    assert truth.duration_s < 4
    assert result.scenes[-1].end_s == pytest.approx(6.0, abs=0.1)
    assert result.info.duration_s == result.scenes[-1].end_s


def test_same_result_with_any_number_of_threads(tmp_path: Path, split_file: Split) -> None:
    truth = make_clip(tmp_path / "a.mp4", THREE_SHOTS, sound=Sound())
    results = []
    for threads in (1, 1, 3):
        scenes = split_file(truth.path, media_threads=threads).scenes
        pictures = [k.path.read_bytes() for scene in scenes for k in scene.keyframes]
        results.append((scenes, pictures))
    assert results[0] == results[1] == results[2]


def test_progress_grows_to_one_and_may_stop_the_pass(
    tmp_path: Path, split_file: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.media.packets._EVERY_S", 0.0)
    truth = make_clip(tmp_path / "a.mp4", THREE_SHOTS, sound=Sound())
    told: list[float] = []
    split_file(truth.path, on_progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 10

    def stop(fraction: float) -> None:
        if fraction > 0.4:
            raise LeaseLost

    with pytest.raises(LeaseLost):
        split_file(truth.path, on_progress=stop)
    # The audio file was closed with a header that fits what it holds.
    wav = (tmp_path / "out" / "audio.wav").read_bytes()
    assert int.from_bytes(wav[40:44], "little") == len(wav) - 44
