"""Files that are legal and unusual: no duration in the header, pictures that change size, sound that changes shape."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from shared.errors import LimitExceeded
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.hostile_files import remux
from tests.unit.media.conftest import Split
from worker.media.audio import AudioTrack
from worker.media.limits import MediaLimits
from worker.media.probe import describe, open_media
from worker.media.resampling import RATE_HZ

LIMITS = MediaLimits()


def test_header_without_duration(tmp_path: Path, split_file: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live recording: the duration is measured, and progress goes by the place in the file."""
    monkeypatch.setattr("worker.media.packets._EVERY_S", 0.0)
    make_clip(tmp_path / "a.mkv", (Shot(seed=301, frames=60), Shot(seed=302, frames=60)))
    path = tmp_path / "live.mkv"
    remux(tmp_path / "a.mkv", path, {"live": "1"})
    with open_media(path, LIMITS) as container:
        assert describe(container, path, LIMITS).duration_s == 0.0
    told: list[float] = []
    result = split_file(path, on_progress=told.append)
    assert result.info.duration_s == pytest.approx(4.8, abs=0.1)
    assert [s.start_s for s in result.scenes] == pytest.approx([0.0, 2.4], abs=0.01)
    assert told == sorted(told) and any(0.1 < fraction < 0.9 for fraction in told)


def two_sizes(tmp_path: Path) -> Path:
    """A transport stream whose second half is larger, as broadcasts do."""
    options = {"b": "2M"}
    small = Encoding(codec="mpeg2video", size=(160, 90), options=options)
    large = Encoding(codec="mpeg2video", size=(320, 180), options=options)
    make_clip(tmp_path / "1.ts", (Shot(seed=303, frames=50),), small)
    make_clip(tmp_path / "2.ts", (Shot(seed=304, frames=50),), large)
    remux(tmp_path / "2.ts", tmp_path / "later.ts", shift_s=2.0)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "later.ts").read_bytes())
    return path


def test_pictures_that_change_size(tmp_path: Path, split_file: Split) -> None:
    path = two_sizes(tmp_path)
    sizes = [{(k.width, k.height) for k in scene.keyframes} for scene in split_file(path).scenes]
    assert sizes == [{(160, 90)}, {(320, 180)}]
    # The header's size is allowed; the size that comes later is not.
    with pytest.raises(LimitExceeded, match="320x180 pixels, the limit is 200 a side"):
        split_file(path, max_video_side_px=200)


def test_sound_that_changes_rate_and_channels(tmp_path: Path) -> None:
    with AudioTrack(tmp_path / "a.wav", LIMITS, part_s=60.0) as track:
        for rate_hz, layout, channels in ((8_000, "mono", 1), (44_100, "stereo", 2), (48_000, "5.1", 6)):
            for _ in range(10):
                samples = np.full((1, channels * rate_hz // 10), 8_000, np.int16)
                frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
                frame.sample_rate = rate_hz
                track.feed(frame, None)
    samples = np.frombuffer((tmp_path / "a.wav").read_bytes()[44:], "<i2")
    assert samples.size / RATE_HZ == pytest.approx(3.0, abs=0.02)
    assert (np.abs(samples[:: RATE_HZ // 4]) > 2_000).all()


def test_sound_that_starts_before_the_picture(tmp_path: Path, split_file: Split) -> None:
    """The container starts with the sound, so the first picture comes later; the first scene covers both."""
    encoding = Encoding(times_s=tuple(1.0 + 0.04 * i for i in range(50)))
    truth = make_clip(tmp_path / "a.mkv", (Shot(seed=305, frames=50),), encoding, Sound(duration_s=3.0))
    result = split_file(truth.path)
    assert result.scenes[0].start_s == 0.0
    assert result.scenes[0].end_s == pytest.approx(3.0, abs=0.1)
    assert result.scenes[0].keyframes[0].ts_s >= 0.99
    assert result.windows[-1][1] == pytest.approx(3.0, abs=0.1)


def test_sound_that_can_not_be_decoded(tmp_path: Path, split_file: Split) -> None:
    """A file is not lost for a damaged sound track: its scenes come out, without audio."""
    path = tmp_path / "a.avi"
    sound = Sound(codec="ac3", rate_hz=48_000)
    make_clip(path, (Shot(seed=306, frames=50),), Encoding(codec="mpeg4", options={}), sound)
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"01wb", at + 1)) != -1:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size <= len(data) and size > 16:
            data[at + 8 : at + 8 + size] = bytes(size)
    path.write_bytes(data)
    result = split_file(path)
    assert len(result.scenes) == 1
    assert result.audio is None and result.windows == ()


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_video_keyframes": 1}, r"more than 1 keyframes, the limit \(MAX_VIDEO_KEYFRAMES\)"),
        ({"max_video_keyframe_bytes": 2_000}, r"than 2000 bytes, the limit \(MAX_VIDEO_KEYFRAME_BYTES\)"),
        ({"max_video_scenes": 1}, "more than 1 scenes"),
    ],
)
def test_too_many_results(tmp_path: Path, split_file: Split, limits: dict[str, int], says: str) -> None:
    truth = make_clip(tmp_path / "a.mp4", (Shot(seed=307, frames=50), Shot(seed=308, frames=50)))
    with pytest.raises(LimitExceeded, match=says):
        split_file(truth.path, **limits)
