"""Sound: the WAV file (format, clock, gaps), its windows, and excerpts, which are the same stretch, found fast."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import BadMedia, LimitExceeded
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.unit.media.conftest import Split
from worker.media.audio import HEADER_BYTES, AudioTrack, Windows
from worker.media.limits import MediaLimits
from worker.media.resampling import RATE_HZ, Samples
from worker.media.results import SplitResult
from worker.media.sound import extract_audio, read_excerpt

SHOTS = (Shot(seed=41, frames=75),)


SplitWith = Callable[..., SplitResult]


@pytest.fixture
def split_with(tmp_path: Path, split_file: Split) -> SplitWith:
    """Split a clip with this sound."""

    def run(sound: Sound | None, name: str = "a.mp4", part_s: float = 120.0) -> SplitResult:
        return split_file(make_clip(tmp_path / name, SHOTS, sound=sound).path, part_s=part_s)

    return run


def read(path: Path) -> NDArray[np.int16]:
    """Return the samples, by the documented layout: sample n at byte 44 + 2n."""
    return np.frombuffer(path.read_bytes()[HEADER_BYTES:], "<i2")


def loud_s(samples: NDArray[np.int16]) -> tuple[float, float]:
    """Return the first and last time in seconds at which something is heard."""
    heard = np.flatnonzero(np.abs(samples.astype(np.int32)) > 3000)
    return heard[0] / RATE_HZ, heard[-1] / RATE_HZ


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("a.mp4", Sound()),
        ("mono.mp4", Sound(channels=1, rate_hz=48_000)),
        ("pcm.mov", Sound(codec="pcm_s16le", rate_hz=8_000, channels=1)),
        ("mp3.avi", Sound(codec="libmp3lame")),
        ("opus.mkv", Sound(codec="libopus", rate_hz=48_000)),
        ("flac.mkv", Sound(codec="flac", rate_hz=96_000)),
    ],
)
def test_wav_is_mono_16_khz_with_a_44_byte_header(split_with: SplitWith, name: str, sound: Sound) -> None:
    result = split_with(sound, name)
    assert result.audio is not None and result.info.audio is not None
    with wave.open(str(result.audio)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        assert file.getnframes() == (result.audio.stat().st_size - HEADER_BYTES) // 2
        assert file.getnframes() / RATE_HZ == pytest.approx(3.0, abs=0.1)
    samples = read(result.audio).astype(np.float64)
    assert samples.std() / 32767 == pytest.approx(0.4 / 2**0.5, rel=0.1)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * RATE_HZ / samples.size == pytest.approx(440, abs=3)


def test_no_audio(tmp_path: Path, split_with: SplitWith) -> None:
    result = split_with(None)
    assert (result.audio, result.windows, result.info.audio) == (None, (), None)
    assert not (tmp_path / "out" / "audio.wav").exists()
    with pytest.raises(BadMedia, match="has no sound"):
        excerpt(tmp_path / "a.mp4", tmp_path, 0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "sound", "first_s", "last_s"),
    [
        ("a.mkv", Sound(offset_s=1.5, duration_s=1.0), 1.5, 2.5),
        ("a.mp4", Sound(silences_s=((0.0, 1.0), (2.0, 3.0))), 1.0, 2.0),
    ],
    ids=["offset stream", "silence between"],
)
def test_sound_is_heard_when_the_file_has_it(
    split_with: SplitWith, name: str, sound: Sound, first_s: float, last_s: float
) -> None:
    result = split_with(sound, name)
    assert result.audio is not None
    assert loud_s(read(result.audio)) == (pytest.approx(first_s, abs=0.05), pytest.approx(last_s, abs=0.08))


def test_windows_are_cut_where_it_is_silent(split_with: SplitWith) -> None:
    sound = Sound(duration_s=10.0, silences_s=((2.6, 2.9), (5.4, 5.7), (8.1, 8.4)))
    result = split_with(sound, part_s=3.0)
    assert len(result.windows) == 4
    for (_, border_s), silence_s in zip(result.windows, sound.silences_s, strict=False):
        assert silence_s[0] <= border_s <= silence_s[1]
    check_windows(result.windows, 3.0, 10.0)


def test_extracted_alone_it_is_the_same(tmp_path: Path, split_with: SplitWith) -> None:
    """Repeating speech recognition alone must hear the same bytes and windows as the split gave."""
    sound = Sound(duration_s=7.0, silences_s=((2.6, 2.9), (5.4, 5.7)))
    result = split_with(sound, part_s=3.0)
    audio, windows = extract_audio(tmp_path / "a.mp4", tmp_path / "alone", limits=MediaLimits(), part_s=3.0)
    assert audio is not None and result.audio is not None
    assert audio.read_bytes() == result.audio.read_bytes()
    assert windows == result.windows


def check_windows(windows: tuple[tuple[float, float], ...], part_s: float, duration_s: float) -> None:
    assert windows[0][0] == 0.0
    assert windows[-1][1] == pytest.approx(duration_s, abs=0.05)
    for (start_s, end_s), after in zip(windows, (*windows[1:], None), strict=True):
        assert 0 < end_s - start_s <= part_s + 1e-9
        assert after is None or after[0] == end_s


@pytest.mark.parametrize("chunk", [500, 777, 16_000, 500_000])
def test_silent_audio_gives_full_windows_however_it_is_fed(chunk: int) -> None:
    windows = Windows(part_s=10.0)
    for start in range(0, 30 * RATE_HZ, chunk):
        windows.feed(np.zeros(min(chunk, 30 * RATE_HZ - start), np.int16))
    windows.finish(30 * RATE_HZ)
    check_windows(tuple(windows.spans_s), 10.0, 30.0)
    assert len(windows.spans_s) <= 4


def test_made_silence_equals_fed_silence() -> None:
    fed, made = Windows(part_s=2.0), Windows(part_s=2.0)
    noise = np.random.default_rng(5).integers(-9000, 9000, 12_345).astype(np.int16)
    for windows in (fed, made):
        windows.feed(noise)
    fed.feed(np.zeros(100_001, np.int16))
    made.feed_silence(100_001)
    for windows in (fed, made):
        windows.feed(noise)
        windows.finish(2 * noise.size + 100_001)
    assert fed.spans_s == made.spans_s


@pytest.mark.parametrize(
    ("rate_hz", "says"), [(RATE_HZ, "past 1 s"), (50, "has 50 samples a second, the least is 4000")]
)
def test_decoded_audio_over_a_limit(tmp_path: Path, rate_hz: int, says: str) -> None:
    """The limits hold for what is decoded, not only for the header, and the file stays valid."""
    path = tmp_path / "audio.wav"
    with (
        pytest.raises(LimitExceeded, match=says),
        AudioTrack(path, MediaLimits(max_video_duration_s=1.0), part_s=10.0) as track,
    ):
        for _ in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
            frame.sample_rate = rate_hz
            track.feed(frame, None)
    assert int.from_bytes(path.read_bytes()[40:44], "little") == path.stat().st_size - HEADER_BYTES


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s with a tone that is silent now and then."""
    path = tmp_path_factory.mktemp("clip") / f"clip.{request.param}"
    sound = Sound(silences_s=((2.0, 3.0), (7.0, 9.5)))
    return make_clip(path, [Shot(seed=1, frames=300)], Encoding(size=(64, 48)), sound).path


def excerpt(path: Path, folder: Path, start_s: float, end_s: float | None, max_s: float = 60.0) -> Samples:
    return read_excerpt(path, folder, start_s=start_s, end_s=end_s, max_s=max_s, limits=MediaLimits())


@pytest.mark.parametrize(
    "span", [(0.0, 1.0), (0.0, None), (0.5, 4.5), (3.0, 9.9), (6.123, 8.0), (11.0, None)]
)
def test_a_stretch_is_that_of_the_whole(clip: Path, tmp_path: Path, span: tuple[float, float | None]) -> None:
    start_s, end_s = span
    found = excerpt(clip, tmp_path, start_s, end_s).astype(np.float32)
    audio, _ = extract_audio(clip, tmp_path, limits=MediaLimits())
    assert audio is not None
    expected = read(audio)[round(start_s * RATE_HZ) :].astype(np.float32)
    if end_s is not None:
        assert len(found) == round((end_s - start_s) * RATE_HZ)
    assert abs(len(found) - len(expected[: len(found)])) <= RATE_HZ // 20
    length = min(len(found), len(expected))
    # As loud at the same times, to 20 ms.
    blocks = [np.abs(side[: length // 320 * 320].reshape(-1, 320)).mean(axis=1) for side in (found, expected)]
    assert np.mean(np.abs(blocks[0] - blocks[1])) < 0.02 * np.abs(expected).max()


def test_sound_alone_will_do(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    samples = (np.random.default_rng(0).normal(0, 3000, 3 * RATE_HZ)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    found = excerpt(path, tmp_path, 1.0, 2.0)
    assert np.array_equal(found, samples[RATE_HZ : 2 * RATE_HZ])


def test_a_long_file_is_decoded_near_the_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.mp4"
    make_clip(path, [Shot(seed=1, frames=1500)], Encoding(size=(64, 48)), Sound())
    decoded: list[float] = []
    feed = AudioTrack.feed

    def note(track: AudioTrack, frame: av.AudioFrame, ts_s: float | None) -> None:
        decoded.append(frame.samples / frame.sample_rate)
        feed(track, frame, ts_s)

    monkeypatch.setattr(AudioTrack, "feed", note)
    assert len(excerpt(path, tmp_path, 50.0, 52.0)) == 2 * RATE_HZ
    # The key picture before the stretch is where the file is read from: at most 10 s.
    assert sum(decoded) < 16


def test_what_is_too_long_or_not_there_is_said(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded, match=r"more than 5 s of sound after 1 s, the limit"):
        excerpt(clip, tmp_path, 1.0, None, max_s=5.0)
    assert len(excerpt(clip, tmp_path, 7.5, None, max_s=5.0)) > 4 * RATE_HZ
    with pytest.raises(BadMedia, match="no sound after 100 s"):
        excerpt(clip, tmp_path, 100.0, 101.0)
