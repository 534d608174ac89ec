"""How much memory a stream's decoder takes, by its header; which codecs are decoded; whose fault an error is."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from shared.errors import BadMedia, LimitExceeded
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.hostile_files import encode, grey
from tests.unit.media.conftest import Split
from worker.media import codecs, h264
from worker.media.boundary import media_errors
from worker.media.limits import MediaLimits
from worker.media.memory import choose_threads, frame_bytes


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
@pytest.mark.parametrize(("profile", "references"), [("high", 1), ("high", 5), ("baseline", 3), ("high", 16)])
def test_reference_frames_are_read(tmp_path: Path, name: str, profile: str, references: int) -> None:
    """From both ways to carry a parameter set."""
    options = {"preset": "medium", "profile": profile, "x264-params": f"ref={references}:bframes=0"}
    encode(tmp_path / name, "libx264", [grey((64, 48))] * 30, **options)
    with av.open(str(tmp_path / name)) as container:
        assert h264.reference_frames(container.streams.video[0].codec_context.extradata) == references


@pytest.mark.parametrize(
    "data", [None, b"", b"\1", b"\1" * 7, bytes(40), b"\0\0\1\x67", b"\0\0\1\x67" + bytes(20)]
)
def test_what_is_no_parameter_set_says_nothing(data: bytes | None) -> None:
    assert h264.reference_frames(data) is None


def test_bytes_of_a_picture() -> None:
    assert frame_bytes(1920, 1080, "yuv420p") == 1920 * 1080 * 3 // 2
    assert frame_bytes(1920, 1080, "yuv420p10le") == 1920 * 1080 * 3
    assert frame_bytes(100, 100, "rgba64le") == 80_000
    assert frame_bytes(100, 100, None) == frame_bytes(100, 100, "no such format") == 15_000


def test_threads_give_way_to_memory(tmp_path: Path) -> None:
    options = {"preset": "ultrafast", "x264-params": "ref=3:bframes=2:b-adapt=0:rc-lookahead=3:threads=1"}
    encode(tmp_path / "a.mp4", "libx264", [grey((1920, 1080))] * 3, **options)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        counts = [
            choose_threads(stream, MediaLimits(media_memory_mb=mb, media_threads=8))
            for mb in (768, 400, 340, 330, 290)
        ]
        assert counts == sorted(counts, reverse=True) and counts[:2] == [8, 8] and counts[-1] < 4
        with pytest.raises(
            LimitExceeded, match=r"1920x1080 pixels of h264 .*limit is 128 MB .MEDIA_MEMORY_MB"
        ):
            choose_threads(stream, MediaLimits(media_memory_mb=128))


def test_large_usual_videos_fit(tmp_path: Path) -> None:
    """3840x2160 as encoders write it, with the limits that ship."""
    options = {"preset": "ultrafast", "x264-params": "ref=4:bframes=3:b-adapt=0:rc-lookahead=4:threads=1"}
    encode(tmp_path / "a.mp4", "libx264", [grey((3840, 2160))] * 5, **options)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert choose_threads(container.streams.video[0], MediaLimits(media_threads=8)) >= 4


def test_other_codecs_are_named(tmp_path: Path, split_file: Split) -> None:
    encode(tmp_path / "a.mov", "png", [grey((64, 48), "rgb24")] * 3)
    with pytest.raises(BadMedia, match=r"uses the codec png, which is not accepted; convert it to H\.264"):
        split_file(tmp_path / "a.mov")
    make_clip(tmp_path / "b.mkv", (Shot(seed=1, frames=20),), Encoding(size=(64, 48)), Sound(codec="wavpack"))
    with pytest.raises(BadMedia, match="The sound uses the codec wavpack, which is not accepted"):
        split_file(tmp_path / "b.mkv")


def test_every_codec_has_a_decoder() -> None:
    """So that none of the lists names what this FFmpeg does not know."""
    known = {av.codec.Codec(name, "r").canonical_name for name in codecs.decoders()}
    assert known == codecs.VIDEO | codecs.AUDIO


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("not done"),
        av.error.ArgumentError(22, "Invalid argument"),
        av.error.NotImplementedError(38, "Function not implemented"),
        ValueError("cannot reshape"),
        av.error.EOFError(541478725, "End of file"),
    ],
)
def test_what_libraries_raise_is_the_files_fault(error: Exception) -> None:
    says = rf"can't be decoded \({type(error).__name__}"
    with pytest.raises(BadMedia, match=says), media_errors(MediaLimits()):
        raise error


@pytest.mark.parametrize("error", [MemoryError(), av.error.MemoryError(12, "Cannot allocate memory")])
def test_want_of_memory_names_the_limit(error: Exception) -> None:
    with pytest.raises(LimitExceeded, match=r"768 MB \(MEDIA_MEMORY_MB\)"), media_errors(MediaLimits()):
        raise error


def test_a_class_nobody_named_is_told_by_where_it_comes_from() -> None:
    """A KeyError of PyAV is the file's, one of ours is a mistake."""
    with pytest.raises(BadMedia, match="KeyError"), media_errors(MediaLimits()):
        av.VideoFrame(16, 16, "yuv420p").side_data["NO_SUCH"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), LimitExceeded("x"), KeyboardInterrupt()]
)
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, media_errors(MediaLimits()):
        raise error
    assert passed.value is error
