"""Keyframe pictures: upright, square pixels, bounded size, JPEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from shared.errors import BadMedia

#: Longest side of a stored keyframe; models look at 640 px at most, people at 1280.
MAX_SIDE_PX = 1280
_JPEG_QUALITY = 88

#: AVColorSpace codes (libavutil/pixfmt.h): BT.709 and "unspecified".
_BT709, _UNSPECIFIED = 1, 2


def bound_frame(frame: VideoFrame) -> VideoFrame:
    """Return the frame, scaled down when its longest side is over ``MAX_SIDE_PX``; the pixel format stays."""
    scale = MAX_SIDE_PX / max(frame.width, frame.height)
    if scale >= 1:
        return frame
    width, height = _even(frame.width * scale), _even(frame.height * scale)
    return frame.reformat(width=width, height=height, interpolation="AREA", threads=1)


def write_jpeg(frame: VideoFrame, path: Path, *, rotation_deg: int, pixel_aspect: float) -> tuple[int, int]:
    """Write the frame as JPEG, turned clockwise by ``rotation_deg``; return its (width, height) in pixels.

    ``pixel_aspect`` is the width of a pixel over its height. Of interlaced frames one field is shown.
    """
    wide, high = float(frame.width), float(frame.height)
    wide, high = (wide * pixel_aspect, high) if pixel_aspect >= 1 else (wide, high / pixel_aspect)
    scale = min(1.0, MAX_SIDE_PX / max(wide, high))
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    # Untagged video is BT.709 from 720 lines on, by convention; swscale would take BT.601.
    colorspace = _BT709 if frame.colorspace == _UNSPECIFIED and frame.height >= 720 else None
    # Scaling two fields as one picture would blend them.
    target = (None, None) if frame.interlaced_frame else size
    picture: NDArray[Any] = frame.to_ndarray(
        format="bgr24", width=target[0], height=target[1], src_colorspace=colorspace, threads=1
    )
    if frame.interlaced_frame:
        picture = cv2.resize(picture[::2], size, interpolation=cv2.INTER_AREA)
    if rotation_deg:
        picture = np.ascontiguousarray(np.rot90(picture, -rotation_deg // 90))
    written, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not written:
        raise BadMedia(f"A {size[0]}x{size[1]} picture could not be stored as JPEG; re-encode the video.")
    path.write_bytes(data.tobytes())
    return int(picture.shape[1]), int(picture.shape[0])


def _even(side_px: float) -> int:
    return max(2, round(side_px / 2) * 2)
