"""Renditions of real small files: copied where browsers play the codecs, encoded where they don't, nothing where they play all."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from shared.errors import BadMedia, LimitExceeded
from tests.support.clips import Encoding, Shot, Sound, make_clip, render, write_video
from worker.media.limits import MediaLimits
from worker.media.probe import describe, open_media
from worker.media.rendition import make_rendition
from worker.media.results import MediaInfo, Rendition
from worker.media.split import split

pytestmark = pytest.mark.video

LIMITS = MediaLimits()
SHOTS = [Shot(seed=1, frames=40, move="pan"), Shot(seed=2, frames=35)]
VP9 = Encoding(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
HEVC = Encoding(codec="libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"})
OPUS, MP3 = Sound(codec="libopus", rate_hz=48_000), Sound(codec="libmp3lame")
Make = Callable[..., tuple[Path, Rendition]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def run(name: str, encoding: Encoding, sound: Sound | None) -> tuple[Path, Rendition]:
        path = make_clip(tmp_path / name, SHOTS, encoding, sound).path
        return path, make_rendition(path, tmp_path / "out", limits=LIMITS)

    return run


def probe(path: Path) -> MediaInfo:
    with open_media(path, LIMITS) as container:
        return describe(container, path, LIMITS)


def packets(path: Path) -> list[tuple[str, bytes]]:
    with av.open(str(path)) as container:
        return [(packet.stream.type, bytes(packet)) for packet in container.demux() if packet.size]


def add_faststart(source: Path, target: Path, flags: str = "+faststart") -> Path:
    with av.open(str(source)) as given, av.open(str(target), "w", options={"movflags": flags}) as made:
        streams = {one.index: made.add_stream_from_template(one, opaque=True) for one in given.streams}
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                made.mux(packet)
    return target


def cuts(path: Path, folder: Path) -> list[float]:
    return [scene.start_s for scene in split(path, folder, limits=LIMITS).scenes]


def test_a_good_mp4_and_a_webm_are_left_alone(make: Make, tmp_path: Path) -> None:
    _, webm = make("a.webm", VP9, OPUS)
    late = make_clip(tmp_path / "late.mp4", SHOTS, Encoding(), Sound()).path
    mp4 = make_rendition(add_faststart(late, tmp_path / "good.mp4"), tmp_path / "out", limits=LIMITS)
    for found in (webm, mp4):
        assert found == Rendition(how="original", reason="", path=None, size=None)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["at the end", "in fragments"])
def test_an_index_in_the_wrong_place_is_moved_and_the_packets_stay(
    make: Make, tmp_path: Path, kind: str
) -> None:
    source = make_clip(tmp_path / "late.mp4", SHOTS, Encoding(), Sound()).path
    if kind == "in fragments":
        source = add_faststart(source, tmp_path / "parts.mp4", "frag_keyframe+empty_moov")
    found = make_rendition(source, tmp_path / "out", limits=LIMITS)
    assert (found.how, found.reason) == ("remux", f"its index (moov) is {kind}")
    assert found.path is not None and probe(found.path).index == "start"
    assert sorted(packets(found.path)) == sorted(packets(source))
    assert cuts(found.path, tmp_path) == cuts(source, tmp_path)


@pytest.mark.parametrize(
    ("name", "encoding", "sound", "turned"),
    [
        ("a.mkv", Encoding(rotation_deg=90), Sound(offset_s=0.3), 270),
        ("a.avi", Encoding(), MP3, 0),
        ("a.ts", Encoding(), Sound(), 0),
        ("a.flv", Encoding(), Sound(), 0),
        ("a.mov", Encoding(), Sound(), 0),
        ("silent.mkv", Encoding(), None, 0),
        ("vp9.mkv", VP9, OPUS, 0),
    ],
)
def test_another_container_keeps_pictures_times_and_rotation(
    make: Make, tmp_path: Path, name: str, encoding: Encoding, sound: Sound | None, turned: int
) -> None:
    source, found = make(name, encoding, sound)
    assert found.how == "remux" and found.path is not None and found.size is None
    before, after = (split(path, tmp_path / "split", limits=LIMITS) for path in (source, found.path))
    assert (after.info.flavour, after.info.index) == ("mp4", "start")
    assert after.info.video.codec == before.info.video.codec
    assert (before.info.video.rotation_deg, after.info.video.rotation_deg) == (turned, turned)
    assert [scene.start_s for scene in after.scenes] == pytest.approx(
        [scene.start_s for scene in before.scenes], abs=0.001
    )
    assert after.info.duration_s == pytest.approx(before.info.duration_s, abs=0.03)
    assert (after.audio is None) == (sound is None)


@pytest.mark.parametrize(
    ("name", "encoding", "sound", "size"),
    [
        ("hevc.mp4", HEVC, Sound(), (320, 180)),
        ("divx.avi", Encoding(codec="mpeg4", options={}), MP3, (320, 180)),
        ("prores.mov", Encoding(codec="prores_ks", pix_fmt="yuv422p10le", options={}), Sound(codec="pcm_s16le"), (320, 180)),
        ("ten.mp4", Encoding(pix_fmt="yuv420p10le", rotation_deg=90), Sound(), (180, 320)),
        ("wide.mpg", Encoding(codec="mpeg2video", options={}, size=(352, 288), pixel_aspect=Fraction(16, 11)),
         Sound(codec="mp2", offset_s=0.5), (512, 288)),
        ("rgb.mov", Encoding(codec="qtrle", pix_fmt="rgb24", options={}), None, (320, 180)),
        ("gap.mkv", Encoding(pix_fmt="yuv420p10le", times_s=tuple(i / 25 + (2 if i > 30 else 0) for i in range(75))),
         Sound(codec="ac3", rate_hz=48_000, channels=1), (320, 180)),
    ],
)  # fmt: skip
def test_other_codecs_become_h264_and_aac_on_the_same_clock(
    make: Make, tmp_path: Path, name: str, encoding: Encoding, sound: Sound | None, size: tuple[int, int]
) -> None:
    source, found = make(name, encoding, sound)
    assert (found.how, found.size) == ("transcode", size) and found.path is not None
    before, after = (split(path, tmp_path / "split", limits=LIMITS) for path in (source, found.path))
    info = after.info
    assert (info.flavour, info.index, info.video.codec, info.video.pix_fmt) == (
        "mp4",
        "start",
        "h264",
        "yuv420p",
    )
    if sound is not None:
        assert info.audio is not None and info.audio.codec in ("aac", "mp3float")
    assert [scene.start_s for scene in after.scenes] == pytest.approx(
        [scene.start_s for scene in before.scenes], abs=0.02
    )
    assert info.duration_s == pytest.approx(before.info.duration_s, abs=0.05)
    for one, other in zip(before.scenes, after.scenes, strict=True):
        shown = one.keyframes[0], other.keyframes[0]
        assert (shown[0].width, shown[0].height) == (shown[1].width, shown[1].height)


def loud_spans(path: Path, folder: Path) -> np.ndarray[Any, Any]:
    """Whether each tenth of a second is loud, by the audio that the split writes."""
    audio = split(path, folder, limits=LIMITS).audio
    assert audio is not None
    samples = np.frombuffer(audio.read_bytes()[44:], np.int16).astype(float)
    tenths = samples[: samples.size // 1600 * 1600].reshape(-1, 1600)
    return np.sqrt((tenths**2).mean(axis=1)) > 1000


def test_sound_stays_where_it_was(make: Make, tmp_path: Path) -> None:
    silences = ((0.5, 1.0), (2.0, 2.5))
    sound = Sound(codec="pcm_s16le", rate_hz=22_050, channels=1, silences_s=silences, offset_s=0.2)
    source, found = make("a.mov", Encoding(codec="mjpeg", pix_fmt="yuvj420p", options={}), sound)
    assert found.path is not None
    before, after = loud_spans(source, tmp_path / "1"), loud_spans(found.path, tmp_path / "2")
    length = min(before.size, after.size)
    assert length >= 29 and (before[:length] == after[:length]).mean() > 0.95


def test_large_pictures_become_1080p_and_many_become_60_a_second(tmp_path: Path) -> None:
    source = tmp_path / "large.mov"
    encoding = Encoding(codec="mjpeg", pix_fmt="yuvj420p", options={}, size=(1500, 2400), fps=Fraction(120))
    write_video(source, render([Shot(seed=1, frames=30, move="pan")], encoding.size), encoding)
    found = make_rendition(source, tmp_path / "out", limits=LIMITS)
    assert found.size == (1080, 1728) and found.path is not None
    with av.open(str(found.path)) as container:
        times_s = [frame.time for frame in container.decode(video=0)]
    assert len(times_s) == 15


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_video_side_px": 300}, "the limit is 300 a side"),
        ({"max_video_fps": 10.0}, "frames a second"),
    ],
)
def test_the_limits_of_videos_hold(tmp_path: Path, limits: dict[str, Any], says: str) -> None:
    source = make_clip(tmp_path / "a.avi", SHOTS, Encoding(codec="mpeg4", options={}), MP3).path
    with pytest.raises(LimitExceeded, match=says):
        make_rendition(source, tmp_path / "out", limits=MediaLimits(**limits))


def test_a_rendition_has_no_more_bytes_than_a_video_may_have(tmp_path: Path) -> None:
    poor = {"preset": "ultrafast", "x265-params": "log-level=none:qp=51"}
    source = make_clip(tmp_path / "a.mp4", SHOTS, Encoding(codec="libx265", options=poor)).path
    with pytest.raises(LimitExceeded, match=r"The rendition has more than \d+ bytes, the limit"):
        make_rendition(source, tmp_path / "out", limits=MediaLimits(max_video_bytes=source.stat().st_size))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.avi", SHOTS, Encoding(codec="mpeg4", options={}), MP3).path
    data = bytearray(source.read_bytes())
    data[6_000 : len(data) * 9 // 10] = bytes(len(data) * 9 // 10 - 6_000)
    source.write_bytes(data)
    with pytest.raises(BadMedia):
        make_rendition(source, tmp_path / "out", limits=LIMITS)
