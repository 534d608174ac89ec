"""Which pictures stand for a scene, and that they are upright, exact and few in memory."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.support.clips import Encoding, Image, Shot, make_clip, picture, write_video
from tests.unit.media.conftest import Split
from worker.media.keyframes import HELD, Recent, SceneFrames
from worker.media.planes import Thumb, reduce_frame
from worker.media.sampling import Look

pytestmark = pytest.mark.video


def solid(level: int) -> Image:
    return np.full((180, 320, 3), level, np.uint8)


def blurred(image: Image) -> Image:
    return cv2.GaussianBlur(image, (31, 31), 0).astype(np.uint8)


def captioned(image: Image, text: str = "Mission control") -> Image:
    written = image.copy()
    cv2.putText(written, text, (30, 160), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (250, 250, 250), 2, cv2.LINE_AA)
    return written


def look(ts_s: float, image: Image) -> Look:
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
    return Look(ts_s, frame, reduce_frame(frame, (160, 90)))


def chosen_of(images: Sequence[Image], step_s: float = 0.2) -> list[float]:
    """The times of the keyframes of a scene that shows these pictures."""
    frames: SceneFrames[Look] = SceneFrames()
    for number, image in enumerate(images):
        frames.add(look(number * step_s, image), (320, 180))
    return [chosen.ts_s for chosen in frames.choose(0.0, len(images) * step_s, None, None)]


def decoded(path: Path) -> dict[float, Image]:
    """The pictures of a file by their times."""
    with av.open(str(path)) as container:
        return {round(f.time, 3): f.to_ndarray(format="bgr24") for f in container.decode(video=0)}


def test_spread_over_the_scene_with_matching_pictures(tmp_path: Path, split_file: Split) -> None:
    shots = (Shot(seed=51, frames=250, move="pan"), Shot(seed=52, frames=20, move="pan"))
    truth = make_clip(tmp_path / "a.mp4", shots)
    result = split_file(truth.path)
    long, short = result.scenes
    assert len(long.keyframes) == 4 and len(short.keyframes) == 1
    assert all(b.ts_s - a.ts_s > 0.5 for a, b in pairwise(long.keyframes))
    frames = decoded(truth.path)
    for scene in result.scenes:
        for keyframe in scene.keyframes:
            assert scene.start_s <= keyframe.ts_s < scene.end_s
            stored = cv2.imread(str(keyframe.path))
            assert stored is not None and stored.shape == (keyframe.height, keyframe.width, 3)
            assert np.abs(stored.astype(int) - frames[round(keyframe.ts_s, 3)]).mean() < 6


def test_prefers_sharp_and_visible_pictures(tmp_path: Path, split_file: Split) -> None:
    """Two thirds of the scene are blurred, the start is black: the keyframes are neither."""
    sharp = picture(61, 320, 180)
    moved = [np.roll(sharp, 2 * i, axis=1) for i in range(120)]
    images = [solid(16)] * 20 + [blurred(m) if i % 30 < 20 else m for i, m in enumerate(moved)]
    write_video(tmp_path / "a.mp4", iter(images), Encoding())
    result = split_file(tmp_path / "a.mp4")
    for keyframe in (k for s in result.scenes if s.end_s > 1.5 for k in s.keyframes):
        stored = cv2.imread(str(keyframe.path), cv2.IMREAD_GRAYSCALE)
        assert stored is not None and stored.std() > 15
        assert cv2.Laplacian(stored, cv2.CV_64F).var() > 0.3 * cv2.Laplacian(sharp[:, :, 1], cv2.CV_64F).var()


@pytest.mark.parametrize("moves", [False, True])
def test_a_caption_shown_briefly_is_on_a_keyframe(moves: bool) -> None:
    """1.4 s of a minute, over a picture at rest and over one that a camera moves over."""
    wide = picture(71, 960, 180)
    images = []
    for number in range(300):
        left = 2 * number if moves else 0
        view = np.ascontiguousarray(wide[:, left : left + 320])
        images.append(captioned(view) if 201 <= number < 208 else view)
    times_s = chosen_of(images)
    assert any(40.2 <= time_s < 41.6 for time_s in times_s) and len(times_s) <= 4


def test_of_a_slide_built_line_by_line_the_whole_is_a_keyframe() -> None:
    slide, images = solid(235), []
    for line in range(5):
        slide = slide.copy()
        cv2.putText(
            slide,
            f"Line {line} of five",
            (20, 30 + 30 * line),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.6,
            (20, 20, 20),
            1,
        )
        # The last line is there for a second.
        images += [slide] * (5 if line == 4 else 40)
    assert chosen_of(images)[-1] >= 160 * 0.2


def test_a_camera_that_trembles_does_not_make_blurred_pictures_keyframes() -> None:
    rng = np.random.default_rng(72)
    steady, sharp_s, images = picture(72, 400, 260), set(), []
    for number in range(100):
        x, y = rng.integers(0, 12, 2)
        view = np.ascontiguousarray(steady[y : y + 180, x : x + 320])
        if number % 3:
            view = blurred(view)
        else:
            sharp_s.add(number * 0.2)
        images.append(view)
    assert sharp_s.issuperset(chosen_of(images))


def test_a_still_scene_has_one_keyframe() -> None:
    still = picture(73, 320, 180).astype(np.int16)
    rng = np.random.default_rng(73)
    images = [np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8) for _ in range(60)]
    assert len(chosen_of(images)) == 1


def test_candidates_do_not_depend_on_where_decoding_began() -> None:
    image = solid(100)
    times_s = [round(number / 24, 5) for number in range(240)]

    def held_s(from_s: float) -> list[float]:
        recent = Recent()
        for time_s in times_s:
            if time_s >= from_s:
                recent.offer(look(time_s, image))
        return [candidate.ts_s for candidate in recent.take_rest() if candidate.ts_s >= 5.0]

    assert held_s(0.0) == held_s(3.125) == held_s(4.5)


def test_a_black_video_still_has_a_keyframe(tmp_path: Path, split_file: Split) -> None:
    write_video(tmp_path / "a.mp4", iter([solid(0)] * 30), Encoding())
    result = split_file(tmp_path / "a.mp4")
    assert [len(s.keyframes) for s in result.scenes] == [1]


@pytest.mark.parametrize(("turn_deg", "clockwise_deg"), [(90, 270), (-90, 90), (180, 180)])
def test_rotation_is_applied(tmp_path: Path, split_file: Split, turn_deg: int, clockwise_deg: int) -> None:
    """A bright left half, turned by the display matrix, is where a player would show it."""
    image = solid(30)
    image[:, :160] = 220
    write_video(tmp_path / "a.mp4", iter([image] * 30), Encoding(rotation_deg=turn_deg))
    result = split_file(tmp_path / "a.mp4")
    assert result.info.video.rotation_deg == clockwise_deg
    keyframe = result.scenes[0].keyframes[0]
    stored = cv2.imread(str(keyframe.path), cv2.IMREAD_GRAYSCALE)
    assert stored is not None
    upright = np.rot90(image[:, :, 0], turn_deg // 90)
    assert stored.shape == upright.shape == (keyframe.height, keyframe.width)
    assert np.abs(stored.astype(int) - upright).mean() < 5


@pytest.mark.parametrize(
    ("size", "pixel_aspect", "shown"),
    [
        ((2560, 1440), Fraction(1), (1280, 720)),
        # PAL widescreen: 180 lines of 240 pixels, each 4:3 wide.
        ((240, 180), Fraction(4, 3), (320, 180)),
    ],
)
def test_keyframes_are_bounded_and_have_square_pixels(
    tmp_path: Path, split_file: Split, size: tuple[int, int], pixel_aspect: Fraction, shown: tuple[int, int]
) -> None:
    image = cv2.resize(picture(62, 640, 360), size)
    write_video(tmp_path / "a.mp4", iter([image] * 3), Encoding(size=size, pixel_aspect=pixel_aspect))
    keyframe = split_file(tmp_path / "a.mp4").scenes[0].keyframes[0]
    assert (keyframe.width, keyframe.height) == shown


@pytest.mark.parametrize(
    ("shots", "group", "kinds", "count"),
    [
        ([Shot(seed=63, frames=150, move="pan")], "25", ["start"], 3),
        # A scene that a dissolve begins, inside one group of pictures: no key picture is in it.
        (
            [
                Shot(seed=65, frames=60, move="pan"),
                Shot(seed=66, frames=100, move="pan", join="dissolve", join_frames=20),
            ],
            "500",
            ["start", "gradual"],
            1,
        ),
    ],
)
def test_fast_mode_stores_exact_pictures(
    tmp_path: Path, split_file: Split, shots: list[Shot], group: str, kinds: list[str], count: int
) -> None:
    """Although its own decoder skips the loop filter, the pictures equal those of a full decode."""
    encoding = Encoding(options={"preset": "medium", "crf": "36", "g": group, "sc_threshold": "0"})
    truth = make_clip(tmp_path / "a.mp4", shots, encoding)
    result = split_file(truth.path, mode="fast")
    exact = decoded(truth.path)
    assert [scene.kind for scene in result.scenes] == kinds
    for scene in result.scenes:
        assert len(scene.keyframes) == count
        for keyframe in scene.keyframes:
            wanted = cv2.imencode(".jpg", exact[round(keyframe.ts_s, 3)], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
            assert keyframe.path.read_bytes() == wanted.tobytes()


def test_a_long_scene_holds_few_frames() -> None:
    """However many are offered, at most HELD stay, spread over the whole time."""
    frames: SceneFrames[Look] = SceneFrames()
    thumb = Thumb(*(np.zeros((2, 2), np.uint8),) * 3, mean=100.0, std=50.0)
    shared = av.VideoFrame(16, 16, "yuv420p")
    for index in range(20_000):
        frames.add(Look(index * 0.25, shared, thumb), (16, 16))
        assert len(frames.held) <= HELD
    times_s = [c.shown.ts_s for c in frames.held]
    assert len(times_s) >= HELD // 2 and times_s[0] == 0.0 and times_s[-1] > 0.8 * 5000
    steps_s = [b - a for a, b in pairwise(times_s[:-1])]
    assert max(steps_s) <= 4.1 * min(steps_s)


def test_every_scene_has_a_keyframe_whatever_the_frame_times(tmp_path: Path, split_file: Split) -> None:
    """A screen recording: bursts of frames, then one that stays; each new picture is the first of a stay."""
    images, times_s, now_s = [], [], 0.0
    for scene in range(8):
        base = picture(200 + scene, 320, 180)
        steps_s = [0.7, 0.04, 0.04, 0.03] if scene % 2 else [0.04, 0.35]
        for step_s in steps_s:
            images.append(base)
            times_s.append(now_s)
            now_s += step_s
    write_video(tmp_path / "a.mkv", iter(images), Encoding(times_s=tuple(times_s)))
    result = split_file(tmp_path / "a.mkv")
    assert len(result.scenes) == 8
    for scene in result.scenes:
        assert scene.keyframes
        for keyframe in scene.keyframes:
            assert scene.start_s - 0.001 <= keyframe.ts_s < scene.end_s
