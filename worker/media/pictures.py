"""Encodes keyframes (upright, square pixels, bounded size, JPEG), and decodes untrusted pictures to RGB."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shared.errors import BadMedia, LimitExceeded

#: Longest side of a stored keyframe; models look at 640 px at most, people at 1280.
MAX_SIDE_PX = 1280
_JPEG_QUALITY = 88

#: AVColorSpace codes (libavutil/pixfmt.h): BT.709 and "unspecified".
_BT709, _UNSPECIFIED = 1, 2

#: Scans one JPEG may have, unless the caller says: each costs a pass over all pixels, and a scan of a few bytes is allowed.
#: Encoders write 1 to 30.
MAX_JPEG_SCANS = 50
_START_OF_SCAN = b"\xff\xda"
#: EXIF's tag, and by its value what shows the picture upright. Source: EXIF 2.32, 4.6.4 A.
_ORIENTATION = 0x0112
#: Quarter turns against the clock, then whether left and right change places.
_TURNS = {
    2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False),
}  # fmt: skip


def bound_frame(frame: VideoFrame) -> VideoFrame:
    """Return the frame, scaled down when its longest side is over ``MAX_SIDE_PX``; the pixel format stays."""
    scale = MAX_SIDE_PX / max(frame.width, frame.height)
    if scale >= 1:
        return frame
    width, height = (max(2, round(side * scale / 2) * 2) for side in (frame.width, frame.height))
    return frame.reformat(width=width, height=height, interpolation="AREA", threads=1)


def write_jpeg(frame: VideoFrame, path: Path, *, rotation_deg: int, pixel_aspect: float) -> tuple[int, int]:
    """Write the frame as JPEG, turned clockwise by ``rotation_deg``; return its (width, height) in pixels.

    ``pixel_aspect`` is the width of a pixel over its height. Of interlaced frames one field is shown.
    """
    size = _bounded(frame.width * max(1.0, pixel_aspect), frame.height / min(1.0, pixel_aspect))
    # Untagged video is BT.709 from 720 lines on, by convention; swscale would take BT.601.
    colorspace = _BT709 if frame.colorspace == _UNSPECIFIED and frame.height >= 720 else None
    # Scaling two fields as one picture would blend them.
    width, height = (None, None) if frame.interlaced_frame else size
    picture: NDArray[Any] = frame.to_ndarray(
        format="bgr24", width=width, height=height, src_colorspace=colorspace, threads=1
    )
    if frame.interlaced_frame:
        picture = cv2.resize(picture[::2], size, interpolation=cv2.INTER_AREA)
    if rotation_deg:
        picture = np.ascontiguousarray(np.rot90(picture, -rotation_deg // 90))
    written, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not written:
        raise BadMedia(f"A {size[0]}x{size[1]} picture could not be stored as JPEG; re-encode the video")
    path.write_bytes(data.tobytes())
    return int(picture.shape[1]), int(picture.shape[0])


def decode_picture(
    data: bytes, *, max_pixels: int, max_scans: int = MAX_JPEG_SCANS, shown_px: int | None = None
) -> NDArray[np.uint8]:
    """Decode a picture from anywhere, upright; nothing is allocated for it before its header has been looked at.

    Args:
        data: a whole JPEG, PNG or WebP file; of an animation the first picture counts. Grey, palette, CMYK and 16-bit
            pictures become 8-bit RGB, transparent ones lie on white.
        max_pixels: width times height the header may state.
        max_scans: how many scans a JPEG may have.
        shown_px: longest side that the caller has a use for: a JPEG that is larger is decoded at the half, quarter or
            eighth of its size, which costs less, but never smaller than this.

    Returns: uint8 [H, W, 3] RGB, contiguous.

    Raises:
        LimitExceeded: more pixels, or more scans than any encoder writes.
        BadMedia: another format, or damaged, or cut off.
    """
    with _picture_errors(), _open(data, max_pixels, max_scans) as picture:
        if shown_px is not None and max(picture.size) > shown_px:
            scale = shown_px / max(picture.size)
            picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
        turns, mirrored = _TURNS.get(_read_orientation(picture), (0, False))
        pixels = np.rot90(_to_rgb(picture), turns)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def count_pixels(data: bytes, *, max_pixels: int, max_scans: int = MAX_JPEG_SCANS) -> int:
    """Return how many pixels decoding the picture would make, by its header; arguments and errors as ``decode_picture``."""
    if _is_webp(data):
        return _check_size(_webp_size(data), max_pixels)
    with _picture_errors(), _open(data, max_pixels, max_scans) as picture:
        return _check_size(picture.size, max_pixels)


def bound_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture, scaled down as keyframes are when its longest side is over ``MAX_SIDE_PX``.

    Args:
        picture: uint8 [H, W, 3].
    """
    height, width = picture.shape[:2]
    if max(height, width) <= MAX_SIDE_PX:
        return picture
    return np.asarray(cv2.resize(picture, _bounded(width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _bounded(width: float, height: float) -> tuple[int, int]:
    """Return the size scaled down so that no side is over ``MAX_SIDE_PX``."""
    scale = min(1.0, MAX_SIDE_PX / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


@contextmanager
def _picture_errors() -> Iterator[None]:
    """Raise what the decoders raise over damaged files, which is of every class, as BadMedia."""
    try:
        yield
    except (BadMedia, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise LimitExceeded(f"The picture is too large ({error}); send a smaller one") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadMedia(
            f"The picture can't be decoded ({reason}); send it again, or as another JPEG"
        ) from error


def _open(data: bytes, max_pixels: int, max_scans: int) -> Image.Image:
    """The picture with its header read. By class, not `Image.open`: that would try every format Pillow knows."""
    if data.startswith(b"\xff\xd8\xff"):
        scans = data.count(_START_OF_SCAN)
        if scans > max_scans:
            raise LimitExceeded(
                f"The picture has {scans} scans, over the limit of {max_scans} (MAX_JPEG_SCANS); save it again as a plain JPEG"
            )
        picture: Image.Image = JpegImageFile(io.BytesIO(data))
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        picture = PngImageFile(io.BytesIO(data))
    elif _is_webp(data):
        # Its decoder makes room for the picture as it is opened.
        _check_size(_webp_size(data), max_pixels)
        picture = WebPImageFile(io.BytesIO(data))
    else:
        shown = data[:8].hex(" ") or "nothing"
        raise BadMedia(
            f"The picture is no JPEG, PNG or WebP (it begins with {shown}); convert it to one of them"
        )
    _check_size(picture.size, max_pixels)
    return picture


def _check_size(size: tuple[int, int], max_pixels: int) -> int:
    """Return how many pixels these are; raises LimitExceeded."""
    width, height = size
    if width * height > max_pixels:
        raise LimitExceeded(
            f"The picture has {width}x{height} = {width * height} pixels, over the limit of {max_pixels}; "
            "send a smaller one"
        )
    return width * height


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels by the first chunk. Source: WebP Container Specification; RFC 6386, 9.1; RFC 9649, 3.4."""
    kind = data[12:16]
    if len(data) < 30 or kind not in (b"VP8X", b"VP8L", b"VP8 "):
        raise BadMedia("The picture is a WebP without a picture in it; send it again")
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _read_orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a picture with damaged remarks is still a picture
        return 1


def _to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]."""
    picture.load()
    if picture.mode.startswith("I"):
        # 16-bit grey. Pillow would cut values off at 255 instead of scaling them.
        grey = (np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        picture = Image.new("RGB", seen.size, "white")
        picture.paste(seen, mask=seen.getchannel("A"))
    # A copy of the largest picture would be 200 MB.
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
