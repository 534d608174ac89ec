"""Sprites: tiles in order of time on sheets, few however long the video is, upright like the keyframes."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.clips import Encoding, Shot, make_clip
from tests.unit.media.conftest import Split
from worker.media.planes import Thumb
from worker.media.sprites import SpriteBuilder

CUE = re.compile(r"([\d:.]+) --> ([\d:.]+)\n(sprite-\d+\.jpg)#xywh=(\d+),(\d+),(\d+),(\d+)")


def thumb(grey: int, width: int = 160, height: int = 90) -> Thumb:
    flat = np.full((height // 2, width // 2), 128, np.uint8)
    return Thumb(y=np.full((height, width), grey, np.uint8), u=flat, v=flat, mean=float(grey), std=0.0)


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def cues(path: Path) -> list[tuple[float, float, str, tuple[int, ...]]]:
    text = path.read_text()
    assert text.startswith("WEBVTT\n\n") and text.count("-->") == len(CUE.findall(text))
    return [(seconds(a), seconds(b), name, tuple(map(int, box))) for a, b, name, *box in CUE.findall(text)]


@pytest.mark.parametrize(
    ("duration_s", "every_s", "sheets"),
    [(3, 1, 1), (150, 1, 2), (400, 1, 4), (5_000, 16, 4), (43_200, 128, 4)],
)
def test_few_tiles_cover_a_video_of_any_length(
    tmp_path: Path, duration_s: int, every_s: int, sheets: int
) -> None:
    builder = SpriteBuilder()
    for at in range(2 * duration_s):
        builder.feed(at / 2, thumb(at // 2 % 200 + 20))
    assert len(builder.tiles) <= 400
    found = builder.finish(tmp_path, duration_s + 0.25, rotation_deg=0, pixel_aspect=1.0)
    assert [path.name for path in found.sheets] == [f"sprite-{number}.jpg" for number in range(sheets)]
    spans = cues(found.index)
    assert len(spans) == -(-duration_s // every_s) <= 400
    assert spans[0][0] == 0.0 and spans[-1][1] == duration_s + 0.25
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    pictures = {path.name: cv2.imread(str(path)) for path in found.sheets}
    for start_s, _, name, (x, y, width, height) in spans:
        tile = pictures[name][y : y + height, x : x + width]
        assert tile.shape == (90, 160, 3)
        # Studio range: black is 16, white is 235.
        shown = (int(start_s) % 200 + 20 - 16) * 255 / 219
        assert abs(float(tile.mean()) - np.clip(shown, 0, 255)) < 3, start_s


@pytest.mark.parametrize(
    ("rotation_deg", "pixel_aspect", "size"),
    [
        (0, 1.0, (160, 90)),
        (90, 1.0, (90, 160)),
        (270, 1.0, (90, 160)),
        (180, 1.0, (160, 90)),
        (0, 2.0, (160, 45)),
    ],
)
def test_tiles_are_upright_with_square_pixels(
    tmp_path: Path, rotation_deg: int, pixel_aspect: float, size: tuple[int, int]
) -> None:
    builder, marked = SpriteBuilder(), thumb(60)
    marked.y[:45, :80] = 235  # the upper left quarter
    builder.feed(0.0, marked)
    found = builder.finish(tmp_path, 1.0, rotation_deg=rotation_deg, pixel_aspect=pixel_aspect)
    picture = cv2.imread(str(found.sheets[0]), cv2.IMREAD_GRAYSCALE)
    assert (picture.shape[1], picture.shape[0]) == size
    half_x, half_y = size[0] // 2, size[1] // 2
    quarters = {
        0: picture[: half_y - 2, : half_x - 2],
        90: picture[: half_y - 2, half_x + 2 :],
        180: picture[half_y + 2 :, half_x + 2 :],
        270: picture[half_y + 2 :, : half_x - 2],
    }
    bright = {turn for turn, quarter in quarters.items() if quarter.mean() > 150}
    assert bright == {rotation_deg}


def test_a_split_writes_them_in_its_own_pass(tmp_path: Path, split_file: Split) -> None:
    shots = [Shot(seed=1, frames=60), Shot(seed=2, frames=65)]
    clip = make_clip(tmp_path / "a.mp4", shots, Encoding(size=(640, 360)))
    found = split_file(clip.path)
    spans = cues(found.sprites.index)
    assert [round(start_s) for start_s, *_ in spans] == [0, 1, 2, 3, 4]
    assert spans[-1][1] == pytest.approx(found.info.duration_s, abs=0.001)
    sheet = cv2.imread(str(found.sprites.sheets[0])).astype(float)
    tiles = [sheet[y : y + h, x : x + w] for *_, (x, y, w, h) in spans]
    # Those of one shot are the same picture, those of two are not; keyframes tell which shot is which.
    assert np.abs(tiles[0] - tiles[1]).mean() < 3 < 15 < np.abs(tiles[1] - tiles[3]).mean()
    keyframe = cv2.imread(str(found.scenes[1].keyframes[0].path))
    small = cv2.resize(keyframe, (160, 90), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(small - tiles[3]).mean() < 8
