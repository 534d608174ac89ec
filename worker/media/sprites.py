"""Sprites: small pictures of the whole video on a few sheets, and the WebVTT file that says where each is.

They are the thumbs that the detectors look at anyway, so they cost no decoding and no scaling. However long the video is,
at most ``_MOST`` are held: when there are more, the distance doubles. Which ones depends on their times alone, so sprites of
spans of a video, fed to one builder, make those of the whole.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.subtitles import clock

from .grid import is_same_step
from .planes import THUMB_SIDE_PX, Thumb
from .results import Sprites

#: Tiles in a row of a sheet, and rows.
_COLUMNS = _ROWS = 10
_MOST = 4 * _COLUMNS * _ROWS
#: Distance of the first tiles, seconds.
_EVERY_S = 1.0
_QUALITY = 70

INDEX_NAME = "sprites.vtt"


class SpriteBuilder:
    """Takes thumbs as they come and holds some of them, evenly spread over the video."""

    def __init__(self) -> None:
        #: (seconds, thumb): the first of each step of ``_every_s`` that has one.
        self.tiles: list[tuple[float, Thumb]] = []
        self._every_s = _EVERY_S

    def feed(self, ts_s: float, thumb: Thumb) -> None:
        """Take the next thumb, shown at ``ts_s``."""
        if self.tiles and is_same_step(ts_s, self.tiles[-1][0], self._every_s):
            return
        self.tiles.append((ts_s, thumb))
        if len(self.tiles) > _MOST:
            self._every_s *= 2
            tiles, self.tiles = self.tiles, []
            for tile in tiles:
                self.feed(*tile)

    def finish(self, out_dir: Path, end_s: float, *, rotation_deg: int, pixel_aspect: float) -> Sprites:
        """Write the sheets and the WebVTT file into ``out_dir``.

        Args:
            end_s: the end of the video, seconds.
            rotation_deg, pixel_aspect: as for keyframes.
        """
        width, height = _tile_size(self.tiles[0][1], rotation_deg, pixel_aspect)
        cues, sheets = ["WEBVTT"], list[Path]()
        for first in range(0, len(self.tiles), _COLUMNS * _ROWS):
            tiles = self.tiles[first : first + _COLUMNS * _ROWS]
            columns, rows = min(len(tiles), _COLUMNS), -(-len(tiles) // _COLUMNS)
            sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
            path = out_dir / f"sprite-{len(sheets)}.jpg"
            for place, (ts_s, thumb) in enumerate(tiles):
                x, y = place % _COLUMNS * width, place // _COLUMNS * height
                sheet[y : y + height, x : x + width] = _paint(thumb, (width, height), rotation_deg)
                following = first + place + 1
                # The first one also stands for the time before it.
                starts_s = ts_s if following > 1 else 0.0
                ends_s = self.tiles[following][0] if following < len(self.tiles) else max(end_s, ts_s)
                span = f"{clock(round(1000 * starts_s), '.')} --> {clock(round(1000 * ends_s), '.')}"
                cues.append(f"{span}\n{path.name}#xywh={x},{y},{width},{height}")
            _, data = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
            path.write_bytes(data.tobytes())
            sheets.append(path)
        index = out_dir / INDEX_NAME
        index.write_text("\n\n".join(cues) + "\n")
        return Sprites(sheets=tuple(sheets), index=index)


def _tile_size(thumb: Thumb, rotation_deg: int, pixel_aspect: float) -> tuple[int, int]:
    """(width, height) of the tiles in pixels: upright, square pixels, the longer side at most that of a thumb."""
    height, width = thumb.y.shape
    shown = (width * pixel_aspect, float(height))
    scale = min(1.0, THUMB_SIDE_PX / max(shown))
    sides = max(2, round(shown[0] * scale)), max(2, round(shown[1] * scale))
    return (sides[1], sides[0]) if rotation_deg in (90, 270) else sides


_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def _paint(thumb: Thumb, size: tuple[int, int], rotation_deg: int) -> NDArray[np.uint8]:
    """The thumb as it is shown: uint8 [height, width, 3] BGR."""
    height, width = thumb.y.shape
    packed = np.concatenate([plane.ravel() for plane in (thumb.y, thumb.u, thumb.v)])
    picture = cv2.cvtColor(packed.reshape(height * 3 // 2, width), cv2.COLOR_YUV2BGR_I420)
    if rotation_deg in _TURNS:
        picture = cv2.rotate(picture, _TURNS[rotation_deg])
    if (picture.shape[1], picture.shape[0]) != size:
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.asarray(picture, np.uint8)
