"""What is found in good files, and the one sentence that is said of bad ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from shared.errors import BadMedia, LimitExceeded
from tests.support.clips import Encoding, Shot, Sound, make_clip, picture, write_video
from tests.support.hostile_files import remux
from tests.unit.media.conftest import Split

SHOT = (Shot(seed=71, frames=50),)


def test_describes_a_file(tmp_path: Path, split_file: Split) -> None:
    make_clip(tmp_path / "a.mp4", SHOT, Encoding(rotation_deg=-90), Sound())
    info = split_file(tmp_path / "a.mp4").info
    assert "mp4" in info.container.split(",")
    assert info.duration_s == pytest.approx(2.0, abs=0.1)
    assert info.size_bytes == (tmp_path / "a.mp4").stat().st_size
    assert info.streams == 2
    assert (info.video.codec, info.video.width, info.video.height) == ("h264", 320, 180)
    assert (info.video.rotation_deg, info.video.avg_fps, info.video.pix_fmt) == (90, 25.0, "yuv420p")
    assert info.audio is not None
    assert (info.audio.codec, info.audio.sample_rate_hz, info.audio.channels) == ("aac", 44_100, 2)
    assert info.audio.language is None


def test_prefers_the_moving_picture_and_the_default_audio(tmp_path: Path, split_file: Split) -> None:
    """A cover picture is no video; of two audio streams the default one is taken."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 640, 640, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        video: Any = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
        tracks: list[Any] = []
        for language, disposition in (("deu", Disposition(0)), ("eng", Disposition.default)):
            track: Any = container.add_stream("aac", rate=48_000)
            track.metadata["language"], track.disposition = language, disposition
            tracks.append(track)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(1, 640, 640), format="rgb24")))
        for _ in range(25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(2, 320, 180), format="rgb24")))
        for track in tracks:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 96_000), np.int16), format="s16", layout="stereo")
            frame.sample_rate = 48_000
            container.mux(track.encode(frame))
        for stream in (cover, video, *tracks):
            container.mux(stream.encode(None))
    info = split_file(path).info
    assert (info.video.codec, info.video.width) == ("h264", 320)
    assert info.audio is not None and info.audio.language == "eng"
    assert info.streams == 4


def without_index(path: Path) -> None:
    """An MP4 whose moov box, at the end, was never received."""
    make_clip(path, SHOT)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])


def audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.int16), format="s16", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def pictures(path: Path, side_px: int, pix_fmt: str, count: int) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = side_px, side_px, pix_fmt
        stream.codec_context.open()
        container.start_encoding()
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame(side_px, side_px, pix_fmt)))
        container.mux(stream.encode(None))


UNKNOWN = "damaged or in no video format we accept"
BAD: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "empty": (b"", r"^The file is empty \(0 bytes\); upload it again$"),
    "text": (b"This is a shopping list.\nMilk, bread, a hot drink.\n" * 40, UNKNOWN),
    "random": (np.random.default_rng(1).bytes(50_000), UNKNOWN),
    "subtitles": (b"1\n00:00:01,000 --> 00:00:02,000\nHello\n\n" * 20, UNKNOWN),
    "concat": (b"ffconcat version 1.0\nfile /etc/passwd\n", "a concat list, which only names other files"),
    "hls": (b"#EXTM3U\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n", "an HLS playlist, which only names other files"),
    "dash": (
        b'<?xml version="1.0"?><MPD type="static"><Period/></MPD>', "a DASH manifest, which only names other files",
    ),
    "without index": (without_index, "without its index.*truncated.*upload it again"),
    "audio only": (audio_only, "no video stream"),
    "no picture": (
        lambda path: pictures(path, 320, "yuv420p", 0), "No picture of the ffv1 video stream|no video format we accept",
    ),
    "one pixel": (lambda path: pictures(path, 1, "yuv444p", 10), "1x1 pixels, the smallest usable side is 16"),
}  # fmt: skip


def write_bad(path: Path, kind: str) -> None:
    content, _ = BAD[kind]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_gives_one_sentence(tmp_path: Path, split_file: Split, kind: str) -> None:
    path = tmp_path / "upload.mp4"
    write_bad(path, kind)
    with pytest.raises(BadMedia, match=BAD[kind][1]) as caught:
        split_file(path)
    message = str(caught.value)
    assert not message.endswith(".") and "\n" not in message and len(message) < 250
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_video_bytes": 1000}, r"bytes, the limit is 1000"),
        ({"max_video_duration_s": 1.0}, r"duration of 2 s, the limit is 1 s"),
        ({"max_video_side_px": 256}, r"320x180 pixels, the limit is 256 a side"),
        ({"max_video_fps": 24.0}, r"25 frames a second, the limit is 24"),
        ({"max_video_streams": 1}, r"2 streams, the limit is 1"),
    ],
)
def test_each_limit_has_its_sentence(
    tmp_path: Path, split_file: Split, limits: dict[str, float], says: str
) -> None:
    make_clip(tmp_path / "a.mp4", SHOT, sound=Sound())
    with pytest.raises(LimitExceeded, match=says):
        split_file(tmp_path / "a.mp4", **limits)


def test_absurd_duration_header(tmp_path: Path, split_file: Split) -> None:
    """The segment header says 50 days: refused before decoding, although the content is 2 s."""
    make_clip(tmp_path / "a.mkv", SHOT)
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    at = data.index(b"\x44\x89\x88")  # the Duration element: 8 bytes of float, in milliseconds
    data[at + 3 : at + 11] = struct.pack(">d", 50 * 86_400_000.0)
    (tmp_path / "a.mkv").write_bytes(data)
    with pytest.raises(LimitExceeded, match="duration of 4320000 s, the limit is 43200 s"):
        split_file(tmp_path / "a.mkv")


def test_one_wild_timestamp_is_not_believed(tmp_path: Path, split_file: Split) -> None:
    """A last picture that claims to be shown a day later is placed right after the one before it."""
    times_s = (*(0.04 * i for i in range(49)), 90_000.0)
    make_clip(tmp_path / "a.ts", SHOT, Encoding(times_s=times_s))
    assert split_file(tmp_path / "a.ts").info.duration_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_truncated_content_is_told_with_both_times(tmp_path: Path, split_file: Split, name: str) -> None:
    """The header says 8 s, the file was cut at half its bytes."""
    encoding = Encoding(codec="mpeg4", options={"b": "1M"}) if name.endswith("avi") else Encoding()
    path = tmp_path / name
    make_clip(path, (Shot(seed=72, frames=200, move="pan"),), encoding)
    if name.endswith("mp4"):
        path = tmp_path / "faststart.mp4"
        remux(tmp_path / name, path, {"movflags": "faststart"})  # its moov box comes first
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        BadMedia, match=r"truncated: the header says 8\.\d s, content ends at [2-6]\.\d s; upload"
    ):
        split_file(path)


def test_isolated_damage_is_tolerated(tmp_path: Path, split_file: Split) -> None:
    """A few bytes overwritten in the middle of the pictures cost those pictures, not the video."""
    base = picture(73, 320, 180)
    encoding = Encoding(codec="mjpeg", pix_fmt="yuvj420p", options={})
    write_video(tmp_path / "a.avi", (np.roll(base, 3 * i, axis=1) for i in range(100)), encoding)
    data = bytearray((tmp_path / "a.avi").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "a.avi").write_bytes(data)
    result = split_file(tmp_path / "a.avi")
    assert result.info.duration_s == pytest.approx(4.0, abs=0.2)
    assert len(result.scenes) >= 1
