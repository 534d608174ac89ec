"""Files that are legal and unusual: no duration in the header, pictures that change size, sound that changes shape."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from shared.errors import LimitExceeded
from tests.support.clips import Encoding, Shot, Sound, make_clip
from worker.media.audio import AudioTrack
from worker.media.limits import MediaLimits
from worker.media.probe import describe, open_media
from worker.media.resampling import RATE_HZ
from worker.media.split import split

LIMITS = MediaLimits()


class Pipe(io.RawIOBase):
    """A sink that can't be rewound, so a muxer can't fill in its header afterwards."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.data += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]


def test_header_without_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live recording: the duration is measured, and progress goes by the place in the file."""
    monkeypatch.setattr("worker.media.packets._EVERY_S", 0.0)
    truth = make_clip(tmp_path / "a.mkv", (Shot(seed=301, frames=60), Shot(seed=302, frames=60)))
    pipe = Pipe()
    with (
        av.open(str(truth.path)) as source,
        av.open(pipe, "w", format="matroska", options={"live": "1"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    path = tmp_path / "live.mkv"
    path.write_bytes(pipe.data)
    with open_media(path, LIMITS) as container:
        assert describe(container, path, LIMITS).duration_s == 0.0
    told: list[float] = []
    result = split(path, tmp_path / "out", limits=LIMITS, on_progress=told.append)
    assert result.info.duration_s == pytest.approx(4.8, abs=0.1)
    assert [s.start_s for s in result.scenes] == pytest.approx([0.0, 2.4], abs=0.01)
    assert told == sorted(told) and any(0.1 < fraction < 0.9 for fraction in told)


def two_sizes(tmp_path: Path) -> Path:
    """A transport stream whose second half is larger, as broadcasts do."""
    later_s = tuple(2.0 + 0.04 * i for i in range(50))
    options = {"b": "2M"}
    small = Encoding(codec="mpeg2video", size=(160, 90), options=options)
    large = Encoding(codec="mpeg2video", size=(320, 180), options=options)
    make_clip(tmp_path / "1.ts", (Shot(seed=303, frames=50),), small)
    with av.open(str(tmp_path / "1.ts")) as first:
        assert first.start_time is not None
    make_clip(tmp_path / "2.ts", (Shot(seed=304, frames=50),), large)
    shifted = tmp_path / "shifted.ts"
    with av.open(str(tmp_path / "2.ts")) as source, av.open(str(shifted), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None and packet.time_base is not None:
                shift = round(later_s[0] / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                target.mux(packet)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "1.ts").read_bytes() + shifted.read_bytes())
    return path


def test_pictures_that_change_size(tmp_path: Path) -> None:
    result = split(two_sizes(tmp_path), tmp_path / "out", limits=LIMITS)
    assert len(result.scenes) == 2
    assert {(k.width, k.height) for k in result.scenes[0].keyframes} == {(160, 90)}
    assert {(k.width, k.height) for k in result.scenes[1].keyframes} == {(320, 180)}


def test_pictures_that_outgrow_the_limit(tmp_path: Path) -> None:
    """The header's size is allowed; the size that comes later is not."""
    with pytest.raises(LimitExceeded, match="320x180 pixels, the limit is 200 a side"):
        split(two_sizes(tmp_path), tmp_path / "out", limits=MediaLimits(max_video_side_px=200))


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


def test_sound_that_starts_before_the_picture(tmp_path: Path) -> None:
    """The container starts with the sound, so the first picture comes later; the first scene covers both."""
    times_s = tuple(1.0 + 0.04 * i for i in range(50))
    truth = make_clip(
        tmp_path / "a.mkv", (Shot(seed=305, frames=50),), Encoding(times_s=times_s), Sound(duration_s=3.0)
    )
    result = split(truth.path, tmp_path / "out", limits=LIMITS)
    assert result.scenes[0].start_s == 0.0
    assert result.scenes[0].end_s == pytest.approx(3.0, abs=0.1)
    assert result.scenes[0].keyframes[0].ts_s >= 0.99
    assert result.windows[-1][1] == pytest.approx(3.0, abs=0.1)


def test_sound_that_can_not_be_decoded(tmp_path: Path) -> None:
    """A file is not lost for a damaged sound track: its scenes come out, without audio."""
    truth = make_clip(
        tmp_path / "a.avi",
        (Shot(seed=306, frames=50),),
        Encoding(codec="mpeg4", options={}),
        Sound(codec="ac3", rate_hz=48_000),
    )
    data = bytearray(truth.path.read_bytes())
    at = 0
    while (at := data.find(b"01wb", at + 1)) != -1:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size <= len(data) and size > 16:
            data[at + 8 : at + 8 + size] = bytes(size)
    truth.path.write_bytes(data)
    result = split(truth.path, tmp_path / "out", limits=LIMITS)
    assert len(result.scenes) == 1
    assert result.audio is None and result.windows == ()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (MediaLimits(max_video_keyframes=1), r"more than 1 keyframes, the limit \(MAX_VIDEO_KEYFRAMES\)"),
        (
            MediaLimits(max_video_keyframe_bytes=2_000),
            r"more than 2000 bytes, the limit \(MAX_VIDEO_KEYFRAME_BYTES\)",
        ),
    ],
)
def test_keyframes_over_the_limit(tmp_path: Path, limits: MediaLimits, said: str) -> None:
    truth = make_clip(tmp_path / "a.mp4", (Shot(seed=307, frames=50), Shot(seed=308, frames=50)))
    with pytest.raises(LimitExceeded, match=said):
        split(truth.path, tmp_path / "out", limits=limits)


def test_sound_of_too_few_samples(tmp_path: Path) -> None:
    """Also where the rate falls on the way."""
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 100), np.int16), format="s16", layout="mono")
    frame.sample_rate = 50
    with (
        pytest.raises(LimitExceeded, match=r"has 50 samples a second, the least is 4000"),
        AudioTrack(tmp_path / "a.wav", LIMITS, part_s=60.0) as track,
    ):
        track.feed(frame, None)
