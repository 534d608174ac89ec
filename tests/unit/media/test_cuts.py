"""How proposals become cuts: fades, certainty, and the network's say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.clips import Encoding, Image, Shot, make_clip, picture, write_video
from tests.unit.media.conftest import Split
from worker.media import judge, verdict
from worker.media.cuts import CutFinder
from worker.media.planes import Thumb
from worker.media.transnet import SIZE

TWO_SHOTS = (Shot(seed=1, frames=40, move="pan"), Shot(seed=2, frames=40, move="zoom"))


def scaled(image: Image, gain: float) -> Image:
    return (image * gain).astype(np.uint8)


def test_a_fade_in_at_the_start_is_no_cut(tmp_path: Path, split_file: Split) -> None:
    shown = picture(41, 320, 180)
    black = [scaled(shown, 0.0)] * 30
    images = [*black, *(scaled(shown, step / 25) for step in range(25)), *[shown] * 60]
    write_video(tmp_path / "a.mp4", iter(images), Encoding())
    (scene,) = split_file(tmp_path / "a.mp4").scenes
    assert scene.start_s == 0.0 and scene.cut_confidence == 1.0
    assert all(keyframe.ts_s > 30 / 25 for keyframe in scene.keyframes)


def test_black_at_the_start_and_a_hard_cut_from_it_are_one_scene(tmp_path: Path, split_file: Split) -> None:
    shown = picture(42, 320, 180)
    write_video(tmp_path / "a.mp4", iter([scaled(shown, 0.0)] * 20 + [shown] * 60), Encoding())
    assert len(split_file(tmp_path / "a.mp4").scenes) == 1


def test_black_between_two_scenes_is_no_keyframe(tmp_path: Path, split_file: Split) -> None:
    before, after = picture(43, 320, 180), picture(44, 320, 180)
    fall = [scaled(before, 1 - step / 15) for step in range(15)]
    rise = [scaled(after, step / 15) for step in range(15)]
    images = [*[before] * 60, *fall, *[scaled(before, 0.0)] * 20, *rise, *[after] * 60]
    write_video(tmp_path / "a.mp4", iter(images), Encoding())
    first, second = split_file(tmp_path / "a.mp4").scenes
    assert second.kind == "gradual" and 75 / 25 <= second.start_s <= 95 / 25
    assert all(keyframe.ts_s <= 62 / 25 for keyframe in first.keyframes)
    assert all(keyframe.ts_s >= 108 / 25 for keyframe in second.keyframes)


def test_what_is_less_certain_than_the_minimum_is_no_cut(tmp_path: Path, split_file: Split) -> None:
    truth = make_clip(tmp_path / "a.mp4", TWO_SHOTS)
    first, second = split_file(truth.path).scenes
    assert first.cut_confidence == 1.0 and 0.5 <= second.cut_confidence <= 1.0
    assert len(split_file(truth.path, min_confidence=1.0).scenes) == 1


@pytest.mark.parametrize(("says", "scenes"), [(0.999, 2), (0.0001, 1)])
def test_the_network_decides_what_is_doubtful(
    tmp_path: Path, split_file: Split, monkeypatch: pytest.MonkeyPatch, says: float, scenes: int
) -> None:
    """With a network that always says the same, and everything doubtful."""

    class Network:
        def __init__(self, path: Path) -> None:
            pass

        def judge(self, frames: np.ndarray) -> np.ndarray:
            assert frames.shape[1:] == (SIZE[1], SIZE[0], 3) and frames.dtype == np.uint8
            return np.full((len(frames), 2), says, np.float32)

    monkeypatch.setattr(judge, "TransNet", Network)
    monkeypatch.setattr(verdict.Verdict, "is_doubtful", lambda self, cheap: cheap > 0.5)
    monkeypatch.setattr(verdict.Verdict, "jointly", lambda self, cheap, network: network)
    truth = make_clip(tmp_path / "a.mp4", TWO_SHOTS)
    result = split_file(truth.path, weights=tmp_path / "weights.pth")
    assert len(result.scenes) == scenes and result.version == "onepass-4-exact"
    fast = split_file(truth.path, weights=tmp_path / "weights.pth", mode="fast")
    assert len(fast.scenes) == 2 and fast.version == "onepass-4-fast"


@pytest.mark.parametrize("start_s", [0.0, 7200.0])
def test_a_film_that_flickers_asks_the_network_now_and_then(
    monkeypatch: pytest.MonkeyPatch, start_s: float
) -> None:
    """Each question costs a quarter of a CPU second, and every picture may be doubtful; where a pass begins changes nothing."""
    asked: list[float] = []

    class Counting(judge.Judge):
        def ask(self, from_s: float, to_s: float) -> judge.Opinion:
            asked.append(from_s)
            return judge.Opinion(0.5, from_s)

    monkeypatch.setattr(verdict.Verdict, "is_doubtful", lambda self, cheap: True)
    finder = CutFinder(Counting(Path("weights.pth"), every=False))
    seconds, rate = 65, 10
    rng = np.random.default_rng(5)
    thumbs = []
    for number in range(seconds * rate):
        # Another picture every third frame, a little brighter in each.
        if number % 3 == 0:
            y = rng.integers(0, 250, (9, 16), np.uint8).repeat(10, 0).repeat(10, 1)
            u, v = (rng.integers(0, 255, (45, 80), np.uint8) for _ in range(2))
        y = y + np.uint8(1)
        thumbs.append(Thumb(y, u, v, float(y.mean()), float(y.std())))
    for number, thumb in enumerate(thumbs):
        finder.feed(start_s + number / rate, thumb)
    finder.flush()
    times_s = [time_s - start_s for time_s in asked]
    assert 60 <= len(times_s) <= 66 and times_s[0] < 3 and times_s[-1] > 62
    assert all(later - earlier > 1 for earlier, later in zip(times_s, times_s[3:], strict=False))


def test_the_models_know_the_features_they_were_fitted_to() -> None:
    with pytest.raises(ValueError, match="fit it again"):
        verdict.load("hard", ("another",))
