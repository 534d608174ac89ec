"""Small luma and chroma pictures for the detectors, taken straight from the decoder's planes.

Full frames never go through swscale here: reducing the Y, U and V planes costs about 0.1 ms for a 720p picture,
against 1 to 4 ms for decoding it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

#: Longest side of a thumb. Grain averages out at this size while objects stay distinct.
THUMB_SIDE_PX = 160
#: Longest side of what keyframes are compared by: lines of text are seen, letters are not.
_FINE_SIDE_PX = 320

Plane = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Thumb:
    """One reduced picture: ``y`` uint8 [h, w], ``u`` and ``v`` uint8 [h/2, w/2]; ``mean`` and ``std`` are of ``y``."""

    y: Plane
    u: Plane
    v: Plane
    mean: float
    std: float

    @property
    def blank(self) -> bool:
        """Whether there is nothing to see: uniform, and black or white (studio black is 16, white 235)."""
        return self.std < 6.0 and not 34.0 < self.mean < 222.0

    @property
    def uniform(self) -> bool:
        """Whether a fade may be through this picture: it is blank, or of one colour."""
        return self.blank or self.std < 3.0


def thumb_size(width: int, height: int) -> tuple[int, int]:
    """Return the even (width, height) in pixels of the thumbs of a ``width`` x ``height`` video."""
    scale = min(1.0, THUMB_SIDE_PX / max(width, height))
    return max(8, round(width * scale / 2) * 2), max(8, round(height * scale / 2) * 2)


def reduce_frame(frame: VideoFrame, size: tuple[int, int]) -> Thumb:
    """Return the frame reduced to ``size`` (width, height), whatever its pixel format; of interlaced frames the first field."""
    width, height = size
    planes = _yuv_planes(frame)
    if planes is None:
        frame = frame.reformat(width=width, height=height, format="yuv444p", interpolation="AREA", threads=1)
        planes = _yuv_planes(frame)
        assert planes is not None
    shift = _DEPTHS[frame.format.name] - 8
    y = _shrink(planes[0], width, height, shift, finely=True)
    u, v = (_shrink(plane, width // 2, height // 2, shift, finely=False) for plane in planes[1:])
    mean, std = cv2.meanStdDev(y)
    return Thumb(y=y, u=u, v=v, mean=float(mean[0, 0]), std=float(std[0, 0]))


def fine_size(width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) in pixels in which keyframes of a ``width`` x ``height`` video are compared."""
    scale = min(1.0, _FINE_SIDE_PX / max(width, height))
    return max(8, round(width * scale)), max(8, round(height * scale))


def fine_luma(frame: VideoFrame, size: tuple[int, int]) -> Plane:
    """Return the luma of the frame as uint8 [h, w] of ``size`` (width, height)."""
    planes = _yuv_planes(frame)
    plane: Plane = frame.reformat(format="gray", threads=1).to_ndarray() if planes is None else planes[0]
    width, height = size
    shift = _DEPTHS.get(frame.format.name, 8) - 8
    return _shrink(plane, width, height, shift, finely=plane.shape[0] >= 4 * height)


def sharpness(frame: VideoFrame) -> float:
    """Return the variance of the Laplacian over a band in the middle of the picture, at full size, of interlaced frames of one field.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. Comparable only between
    pictures of the same scene.
    """
    planes = _yuv_planes(frame)
    plane: Plane = frame.reformat(format="gray", threads=1).to_ndarray() if planes is None else planes[0]
    shift = _DEPTHS.get(frame.format.name, 8) - 8
    height, width = plane.shape
    band = plane[height * 7 // 16 : height * 9 // 16, width // 8 : width * 7 // 8]
    if shift:
        band = (band >> shift).astype(np.uint8)
    _, std = cv2.meanStdDev(cv2.Laplacian(band, cv2.CV_16S))
    return float(std[0, 0]) ** 2


def frame_bytes(frame: VideoFrame) -> int:
    """Return about how much memory the frame's pixels take."""
    return sum(plane.buffer_size for plane in frame.planes)


def _yuv_planes(frame: VideoFrame) -> tuple[Plane, Plane, Plane] | None:
    """Return views on the frame's Y, U and V planes (uint8 or uint16), None for other pixel formats.

    Of interlaced frames they are the first field: two moments in one picture look like a mixture of both.
    """
    depth = _DEPTHS.get(frame.format.name)
    planes = frame.planes
    if depth is None or any(plane.line_size <= 0 for plane in planes[:3]):
        return None
    dtype = np.dtype(np.uint8 if depth == 8 else np.uint16)
    lines = slice(None, None, 2 if frame.interlaced_frame else 1)
    y, u, v = (
        np.frombuffer(plane, dtype).reshape(plane.height, -1)[lines, : plane.width]  # type: ignore[call-overload]
        for plane in planes[:3]
    )
    return y, u, v


def _shrink(plane: Plane, width: int, height: int, shift: int, *, finely: bool) -> Plane:
    """Reduce a plane, sampling 16 pixels (``finely``) or 4 for each one kept: a fifth of a full average's cost or less."""
    if finely and plane.shape[0] >= 4 * height and plane.shape[1] >= 4 * width:
        plane = cv2.resize(plane, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    far = not finely and plane.shape[0] >= 2 * height and plane.shape[1] >= 2 * width
    how = cv2.INTER_LINEAR if far else cv2.INTER_AREA
    small: Plane = cv2.resize(plane, (width, height), interpolation=how)
    return small if shift == 0 else (small >> shift).astype(np.uint8)


#: Bits per sample of the planar YUV formats read directly; all others go through swscale.
_DEPTHS = {
    f"{family}{sampling}p{suffix}": depth
    for family in ("yuv", "yuva")
    for sampling in ("410", "411", "420", "422", "440", "444")
    for suffix, depth in (("", 8), ("9le", 9), ("10le", 10), ("12le", 12), ("14le", 14), ("16le", 16))
} | {f"yuvj{sampling}p": 8 for sampling in ("411", "420", "422", "440", "444")}
