"""The demo video is what truth.json says it is: end-to-end tests and the demo measure themselves against that file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from samples import make_demo

pytestmark = pytest.mark.video

SAMPLES = Path(__file__).parents[2] / "samples"
VIDEO = SAMPLES / "demo.mp4"
MAX_BYTES = 3_000_000
TRUTH: dict[str, Any] = json.loads((SAMPLES / "truth.json").read_text())
SCENES, CUTS = TRUTH["scenes"], TRUTH["cuts"]


@pytest.fixture(scope="module")
def decoded() -> SimpleNamespace:
    """What one decode of the whole video found; ``luma`` is float32 [frames, 54, 96], every tenth pixel."""
    times, frames, size = [], [], (0, 0)
    with av.open(str(VIDEO)) as container:
        for picture in container.decode(video=0):
            assert picture.time is not None
            times.append(picture.time)
            size = (picture.width, picture.height)
            frames.append(picture.to_ndarray(format="gray")[5::10, 5::10].astype(np.float32))
    with av.open(str(VIDEO)) as container:
        codecs = [stream.codec_context.name for stream in container.streams]
        blocks = list(container.decode(audio=0))
    return SimpleNamespace(
        codecs=codecs, times_s=times, size_px=size, luma=np.stack(frames),
        audio_s=sum(block.samples / block.sample_rate for block in blocks),
        audio_peak=max(float(np.abs(block.to_ndarray()).max()) for block in blocks),
    )  # fmt: skip


def test_content_codecs_size_rate_and_duration_are_true(decoded: SimpleNamespace) -> None:
    content = VIDEO.read_bytes()
    assert hashlib.sha256(content).hexdigest() == TRUTH["sha256"]
    assert len(content) < MAX_BYTES, "small enough to commit"
    assert decoded.codecs == ["h264", "aac"]
    assert decoded.size_px == (TRUTH["width"], TRUTH["height"])
    assert len(decoded.times_s) == TRUTH["frames"]
    assert TRUTH["duration_s"] == pytest.approx(TRUTH["frames"] / TRUTH["fps"])
    expected_s = np.arange(TRUTH["frames"]) / TRUTH["fps"]
    assert np.abs(np.array(decoded.times_s) - expected_s).max() < 1e-3
    assert decoded.audio_s == pytest.approx(TRUTH["duration_s"], abs=0.1)
    assert 0.3 < decoded.audio_peak < 1.0


def test_scenes_follow_each_other_and_cuts_stand_between_them() -> None:
    assert SCENES[0]["start_s"] == 0
    assert SCENES[-1]["end_s"] == TRUTH["duration_s"]
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(SCENES))
    assert [cut["time_s"] for cut in CUTS] == [scene["start_s"] for scene in SCENES[1:]]
    assert all(cut["frame"] == round(cut["time_s"] * TRUTH["fps"]) for cut in CUTS)
    assert [cut["length_s"] for cut in CUTS if cut["kind"] == "dissolve"] == [1.0]
    assert {cut["length_s"] for cut in CUTS if cut["kind"] == "hard"} == {0.0}
    assert all(5 <= scene["end_s"] - scene["start_s"] <= 10 for scene in SCENES)


def test_hard_cuts_are_where_the_picture_jumps_and_nowhere_else(decoded: SimpleNamespace) -> None:
    change = np.abs(np.diff(decoded.luma, axis=0)).mean(axis=(1, 2))
    jumps = (np.flatnonzero(change > 20) + 1).tolist()
    assert jumps == [cut["frame"] for cut in CUTS if cut["kind"] == "hard"]
    # No frame is black or blank.
    assert decoded.luma.mean(axis=(1, 2)).min() > 10 and decoded.luma.std(axis=(1, 2)).min() > 5
    # Elsewhere the move is slow: nothing comes near a cut.
    assert np.delete(change, [frame - 1 for frame in jumps]).max() < 10


def test_the_dissolve_blends_its_two_scenes(decoded: SimpleNamespace) -> None:
    (cut,) = [cut for cut in CUTS if cut["kind"] == "dissolve"]
    before = int(cut["length_s"] * TRUTH["fps"]) // 2
    first, last = cut["frame"] - before - 1, cut["frame"] + before + 1
    ends = (decoded.luma[first] + decoded.luma[last]) / 2
    middle = decoded.luma[cut["frame"]]
    # The pictures move a little meanwhile, so the blend is near the mean, and much nearer than either end.
    assert np.abs(middle - ends).mean() < 0.3 * np.abs(decoded.luma[first] - decoded.luma[last]).mean()


def test_narration_lies_inside_its_scene_and_clear_of_the_dissolve() -> None:
    for scene in SCENES:
        assert scene["start_s"] + 0.5 < scene["speech_start_s"] < scene["speech_end_s"] < scene["end_s"]
    for cut in CUTS:
        begin, end = cut["time_s"] - cut["length_s"] / 2, cut["time_s"] + cut["length_s"] / 2
        assert all(s["speech_end_s"] < begin or s["speech_start_s"] > end for s in SCENES)


def test_searches_have_one_right_answer() -> None:
    for scene in SCENES:
        assert scene["words"] == make_demo.split_words(scene["narration"])
    for search in TRUTH["searches"]:
        words = set(make_demo.split_words(search["query"])) - {"a"}
        holders = [i for i, scene in enumerate(SCENES) if words & set(scene["words"])]
        # A keyword stands in its scene alone; a search by meaning must not be answerable by its words.
        assert holders == ([search["scene"]] if search["mode"] == "keyword" else [])


def test_script_and_truth_agree_and_every_picture_is_credited() -> None:
    edges = make_demo.lay_out()
    assert [(s["start_s"], s["end_s"]) for s in SCENES] == [(a / 25, b / 25) for a, b in edges]
    assert [s["narration"] for s in SCENES] == [s.narration for s in make_demo.SCENES]
    assert [s["picture"] for s in SCENES] == [s.picture for s in make_demo.SCENES]
    credits_text = (SAMPLES / "README.md").read_text()
    assert [s["picture"] for s in SCENES if s["picture"] not in credits_text] == []


def test_a_view_that_leaves_the_picture_is_refused() -> None:
    picture = make_demo.Image.new("RGB", (160, 90))
    whole = make_demo.View(x=0.5, y=0.5, width=1.0)
    assert make_demo.crop_view(picture, whole) == pytest.approx((0, 0, 160, 90))
    with pytest.raises(make_demo.DemoError, match="leaves the 160x90 picture"):
        make_demo.crop_view(picture, replace(whole, x=0.6))


def test_moves_are_smooth_below_one_pixel() -> None:
    ramp = np.tile(np.linspace(0, 255, 320, dtype=np.float32), (180, 1))
    picture = make_demo.Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    start = make_demo.View(x=0.4, y=0.5, width=0.6)
    scene = replace(make_demo.SCENES[0], start=start, end=replace(start, x=0.5))
    means = [make_demo.render_frame(picture, scene, step / 64).mean() for step in range(65)]
    steps = np.diff(means)
    # A 32-pixel move in 64 steps: each moves half a pixel, none stands still and none jumps a whole one.
    assert steps.min() > 0.2 * steps.mean()
    assert steps.max() < 1.8 * steps.mean()


@pytest.mark.parametrize(
    ("program", "message"), [(FileNotFoundError(), "apt-get install flite"), (None, "not 16 kHz mono")]
)
def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, program: Exception | None, message: str
) -> None:
    def run(command: list[str], **_: object) -> None:
        if program is not None:
            raise program
        with make_demo.wave.open(command[-1], "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)

    monkeypatch.setattr(make_demo.subprocess, "run", run)
    with pytest.raises(make_demo.DemoError, match=message):
        make_demo.speak("hello", "rms")
