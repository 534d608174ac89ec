"""A stretch of sound is the same stretch of what the split would give, found fast, whatever the file."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest

from shared.errors import BadMedia, LimitExceeded
from tests.support.clips import Encoding, Shot, Sound, make_clip
from worker.media.audio import HEADER_BYTES, AudioTrack
from worker.media.limits import MediaLimits
from worker.media.resampling import RATE_HZ, Samples
from worker.media.sound import extract_audio, read_excerpt

LIMITS = MediaLimits()
SHOTS = [Shot(seed=1, frames=300)]


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s with a tone that is silent now and then."""
    path = tmp_path_factory.mktemp("clip") / f"clip.{request.param}"
    make_clip(path, SHOTS, sound=Sound(silences_s=((2.0, 3.0), (7.0, 9.5))), encoding=Encoding(size=(64, 48)))
    return path


def excerpt(path: Path, folder: Path, start_s: float, end_s: float | None, max_s: float = 60.0) -> Samples:
    return read_excerpt(path, folder, start_s=start_s, end_s=end_s, max_s=max_s, limits=LIMITS)


def whole(path: Path, folder: Path) -> Samples:
    audio, _ = extract_audio(path, folder, limits=LIMITS)
    assert audio is not None
    return np.fromfile(audio, np.int16, offset=HEADER_BYTES)


@pytest.mark.parametrize(
    "span", [(0.0, 1.0), (0.0, None), (0.5, 4.5), (3.0, 9.9), (6.123, 8.0), (11.0, None)]
)
def test_a_stretch_is_that_of_the_whole(clip: Path, tmp_path: Path, span: tuple[float, float | None]) -> None:
    start_s, end_s = span
    found = excerpt(clip, tmp_path, start_s, end_s).astype(np.float32)
    expected = whole(clip, tmp_path)[round(start_s * RATE_HZ) :].astype(np.float32)
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


def test_a_long_file_is_not_decoded_up_to_the_stretch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_silent_film_and_other_files_are_refused(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    make_clip(silent, [Shot(seed=1, frames=20)])
    with pytest.raises(BadMedia, match="has no sound"):
        excerpt(silent, tmp_path, 0.0, 1.0)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\nhttp://127.0.0.1/secret\n")
    with pytest.raises(BadMedia, match="HLS playlist"):
        excerpt(playlist, tmp_path, 0.0, 1.0)
