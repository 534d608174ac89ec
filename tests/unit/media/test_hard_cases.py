"""Material that is no film of 25 progressive frames a second: fields, other rates, repeated pictures, slides and screens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.support.clips import Encoding, Image, Move, Shot, picture, render, timeline, write_video
from tests.unit.media.conftest import Split
from worker.media.planes import sharpness
from worker.media.results import SplitResult

pytestmark = pytest.mark.video

SIZE = (320, 180)
INTERLACED = Encoding(
    pix_fmt="yuv422p",
    options={"preset": "veryfast", "crf": "20", "flags": "+ildct+ilme", "x264-params": "tff=1"},
)
MOVES: tuple[Move, ...] = ("pan", "objects", "still", "zoom", "shake")


def shots(seed: int, frames: int, speed: float = 1.0) -> list[Shot]:
    """Five shots, each a little longer than the one before."""
    return [
        Shot(seed=seed + number, frames=frames + number * frames // 8, move=move, speed=speed)
        for number, move in enumerate(MOVES)
    ]


def woven(fields: Sequence[Image]) -> Iterator[Image]:
    """Two pictures become one frame: its even lines and its odd lines."""
    for first, second in zip(fields[::2], fields[1::2], strict=False):
        frame = first.copy()
        frame[1::2] = second[1::2]
        yield frame


def cuts_s(result: SplitResult) -> list[float]:
    return [scene.start_s for scene in result.scenes[1:]]


def assert_near(found_s: Sequence[float], true_s: Sequence[float], within_s: float) -> None:
    assert len(found_s) == len(true_s), f"{found_s} for {true_s}"
    assert all(abs(a - b) <= within_s for a, b in zip(found_s, true_s, strict=True)), (
        f"{found_s} for {true_s}"
    )


def test_a_cut_between_two_fields(tmp_path: Path, split_file: Split) -> None:
    """The frame that shows both scenes belongs to the first, as its first field does, which is what a keyframe shows."""
    fields = list(render([Shot(seed=401, frames=81, move="pan"), Shot(seed=402, frames=15)], SIZE))
    write_video(tmp_path / "a.mp4", woven(fields), INTERLACED)
    result = split_file(tmp_path / "a.mp4")
    assert_near(cuts_s(result), [41 / 25], 0.001)
    stored = cv2.imread(str(result.scenes[1].keyframes[0].path), cv2.IMREAD_GRAYSCALE)
    assert np.abs(stored.astype(int) - cv2.cvtColor(fields[-1], cv2.COLOR_RGB2GRAY)).mean() < 12


def test_interlaced_pictures_that_move_are_not_sharp_for_it(tmp_path: Path) -> None:
    blurred = np.asarray(cv2.GaussianBlur(picture(403, 800, 180), (0, 0), 3), np.uint8)
    moving = [np.ascontiguousarray(blurred[:, 12 * n : 12 * n + 320]) for n in range(30)]
    sharp = [np.ascontiguousarray(picture(403, 800, 180)[:, :320])] * 30
    write_video(tmp_path / "a.mp4", woven([*moving, *sharp]), INTERLACED)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    assert max(map(sharpness, frames[:14])) < 0.5 * min(map(sharpness, frames[16:]))


def test_telecine(tmp_path: Path, split_file: Split) -> None:
    """24 pictures a second in 60 fields: of five frames two show two pictures."""
    chosen = shots(410, 36)
    fields = [image for number, image in enumerate(render(chosen, SIZE)) for _ in range(2 + number % 2)]
    encoding = Encoding(fps=Fraction(30000, 1001), pix_fmt="yuv422p", options=INTERLACED.options)
    write_video(tmp_path / "a.mp4", woven(fields), encoding)
    true_s = [cut / 24 * 1.001 for cut in timeline(chosen)[1]]
    assert_near(cuts_s(split_file(tmp_path / "a.mp4")), true_s, 1.01 / 29.97)


def test_120_frames_a_second(tmp_path: Path, split_file: Split) -> None:
    """The exact frame is found, although every fourth is compared."""
    chosen = shots(420, 150)
    write_video(tmp_path / "a.mp4", render(chosen, SIZE), Encoding(fps=Fraction(120)))
    assert_near(cuts_s(split_file(tmp_path / "a.mp4")), [cut / 120 for cut in timeline(chosen)[1]], 0.001)


def test_a_rate_converted_by_blending(tmp_path: Path, split_file: Split) -> None:
    """25 frames a second become 120: each cut is spread over up to five frames."""
    chosen = shots(421, 40)
    source = list(render(chosen, SIZE))
    blended = []
    for number in range((len(source) - 1) * 120 // 25):
        place, weight = divmod(number * 25 / 120, 1)
        one, two = source[int(place)], source[int(place) + 1]
        blended.append(np.asarray(cv2.addWeighted(one, 1 - weight, two, weight, 0), np.uint8))
    write_video(tmp_path / "a.mp4", iter(blended), Encoding(fps=Fraction(120)))
    assert_near(cuts_s(split_file(tmp_path / "a.mp4")), [cut / 25 for cut in timeline(chosen)[1]], 0.04)


@pytest.mark.parametrize("times", [1, 2, 8])
def test_animation_of_12_pictures_a_second(tmp_path: Path, split_file: Split, times: int) -> None:
    """As it is, on twos at 24 frames a second, and shown at 96: no move is a cut, and no cut is a frame off."""
    chosen = shots(430, 25, speed=3.0)
    images = (image for image in render(chosen, SIZE) for _ in range(times))
    write_video(tmp_path / "a.mp4", images, Encoding(fps=Fraction(12 * times)))
    assert_near(cuts_s(split_file(tmp_path / "a.mp4")), [cut / 12 for cut in timeline(chosen)[1]], 0.001)


def slide(seed: int, lines: int = 5) -> Image:
    """Dark text on white below a coloured head line."""
    rng = np.random.default_rng(seed)
    image = np.full((270, 480, 3), 245, np.uint8)
    cv2.rectangle(image, (0, 0), (480, 34), (40, 60, 110), -1)
    for line in range(lines):
        words = "".join(chr(letter) for letter in rng.integers(97, 123, int(rng.integers(14, 24))))
        cv2.putText(image, words, (20, 75 + 36 * line), 0, 0.6, (30, 30, 30), 1, cv2.LINE_AA)
    return image


def with_head(images: Sequence[Image]) -> Iterator[Image]:
    """Somebody speaks in a corner."""
    face = picture(440, 140, 140)
    for number, image in enumerate(images):
        x, y = int(20 + 8 * np.sin(number / 3)), int(20 + 5 * np.cos(number / 2))
        shown = image.copy()
        shown[170:260, 390:470] = face[y : y + 90, x : x + 80]
        yield shown


def test_slides_with_a_talking_head(tmp_path: Path, split_file: Split) -> None:
    """Text changes on the same background, three times; nothing else is a cut."""
    images = [slide(seed) for seed in range(441, 445) for _ in range(60)]
    write_video(tmp_path / "a.mp4", with_head(images), Encoding(size=(480, 270), fps=Fraction(12)))
    result = split_file(tmp_path / "a.mp4")
    assert_near(cuts_s(result), [5.0, 10.0, 15.0], 0.001)
    assert all(scene.kind == "cut" for scene in result.scenes[1:])


def test_a_slide_built_line_by_line_is_one_scene(tmp_path: Path, split_file: Split) -> None:
    images = [slide(445, lines) for lines in range(1, 6) for _ in range(30)]
    write_video(tmp_path / "a.mp4", with_head(images), Encoding(size=(480, 270), fps=Fraction(12)))
    assert not cuts_s(split_file(tmp_path / "a.mp4"))


def test_a_screen_recording(tmp_path: Path, split_file: Split) -> None:
    """A picture in 5 s while nothing happens; scrolling, smooth and by steps; typing; then another program fills the screen."""
    page = np.concatenate([slide(seed)[40:250] for seed in range(446, 452)])

    def screen(top: int) -> Image:
        return np.concatenate([np.full((20, 480, 3), 70, np.uint8), page[top : top + 250]])

    shown: list[tuple[Image, float]] = [(screen(0), 5.0)] * 2
    shown += [(screen(6 * step), 1 / 30) for step in range(60)]
    shown += [(screen(360), 5.0)]
    shown += [(screen(360 + 50 * step), 0.15) for step in range(8)]
    shown += [(screen(660), 5.0), (screen(710), 5.0)]
    typed = screen(710)
    for letter in range(20):
        typed = cv2.putText(typed.copy(), "x", (20 + 12 * letter, 200), 0, 0.5, (20, 20, 20), 1)
        shown.append((typed, 0.15))
    shown += [(typed, 5.0)]
    opened_s = sum(length_s for _, length_s in shown)
    shown += [(255 - slide(452), 5.0)] * 2
    times_s = tuple(sum(length_s for _, length_s in shown[:number]) for number in range(len(shown)))
    write_video(tmp_path / "a.mkv", (image for image, _ in shown), Encoding(size=(480, 270), times_s=times_s))
    assert_near(cuts_s(split_file(tmp_path / "a.mkv")), [opened_s], 0.002)
