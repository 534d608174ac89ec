"""Estimates the memory for decoding a stream, before the first picture is decoded.

The estimate refuses with a clear sentence what can't fit, and chooses how many threads fit. It trusts the header, so it
protects nothing by itself: the limit of the decoding process does.
"""

from __future__ import annotations

import os
from contextlib import suppress

import av
from av.video.stream import VideoStream

from shared.errors import LimitExceeded

from . import h264
from .limits import MediaLimits

MB = 1_000_000

_MOST_THREADS = 8

#: Pictures a decoder keeps to refer to; H.264 states it. HEVC: that of the levels' largest pictures.
_REFERENCES = {
    "mjpeg": 0, "prores": 0, "dnxhd": 0, "dvvideo": 0, "ffv1": 1, "h264": 4,
    "hevc": 6, "vp9": 8, "av1": 8, "vp8": 3, "vp6": 3, "vp6f": 3,
}  # fmt: skip
_USUAL_REFERENCES = 2

#: Bytes a pixel that decoders keep beside a picture: motion vectors, block types (H.264: 141 bytes for 256 pixels).
_SIDE_BYTES = 0.6

#: The process without pictures: the interpreter's heap, packets, the audio decoder.
_BASE_BYTES = 80 * MB
#: Frames that stand for scenes: about forty of them, of at most 4 MiB (see ``keyframes``).
_HELD = 40
_HELD_BYTES = 4 * 2**20
_SCALED_PIXELS = 1280 * 1280
#: Frames that wait to be looked at, at most (see ``sampling``), and whole frames held beside them: the last looked at, and
#: the newest that may become a keyframe.
_WAITING_BYTES = 80 * 2**20
_WAITING, _WHOLE = 5, 2
#: What is estimated at up to so many times the limit is tried: the limit itself holds.
_BENEFIT_OF_DOUBT = 1.15
#: Stack of a thread.
_STACK_BYTES = 8 * 2**20


def choose_threads(stream: VideoStream, limits: MediaLimits) -> int:
    """Return how many threads to decode with: ``media_threads`` (0: one per core, at most 8), or fewer so that they fit.

    Raises:
        LimitExceeded: not even one fits in the memory of the decoding process.
    """
    context = stream.codec_context
    name, width, height = context.codec.canonical_name, context.width, context.height
    pictures = _references(stream) + 1
    picture_bytes = frame_bytes(width, height, context.pix_fmt)
    limit_bytes = limits.media_memory_mb * MB
    needed_bytes = 0
    for count in range(limits.media_threads or min(os.cpu_count() or 1, _MOST_THREADS), 0, -1):
        needed_bytes = _estimate(picture_bytes, width * height, pictures, count)
        if needed_bytes <= limit_bytes:
            return count
    if needed_bytes <= _BENEFIT_OF_DOUBT * limit_bytes:
        return 1
    raise LimitExceeded(
        f"Decoding {width}x{height} pixels of {name} with {pictures} pictures at once takes about "
        f"{needed_bytes / MB:.0f} MB, the limit is {limits.media_memory_mb} MB (MEDIA_MEMORY_MB); "
        "scale it down or encode it with fewer reference frames"
    )


def frame_bytes(width: int, height: int, pix_fmt: str | None) -> int:
    """Return about how many bytes a decoded picture takes; an unknown pixel format counts as 8-bit 4:2:0."""
    bits = 12
    if pix_fmt:
        with suppress(ValueError):
            bits = av.VideoFormat(pix_fmt, 16, 16).padded_bits_per_pixel or bits
    return width * height * bits // 8


def _references(stream: VideoStream) -> int:
    """Return how many pictures the decoder keeps beside the current one, without those of its threads."""
    context = stream.codec_context
    name = context.codec.canonical_name
    usual = _REFERENCES.get(name, _USUAL_REFERENCES)
    if name != "h264":
        return usual
    stated = h264.reference_frames(context.extradata)
    return (usual if stated is None else stated) + min(16, max(0, context.has_b_frames or 0))


def _estimate(picture_bytes: int, pixels: int, pictures: int, threads: int) -> int:
    decoder = (picture_bytes + int(pixels * _SIDE_BYTES)) * (pictures + threads - 1)
    waiting = min(_WAITING_BYTES, _WAITING * picture_bytes) + _WHOLE * picture_bytes
    scaled = int(picture_bytes * min(1.0, _SCALED_PIXELS / max(1, pixels)))
    held = _HELD * (picture_bytes if picture_bytes <= _HELD_BYTES else scaled)
    return _BASE_BYTES + decoder + waiting + held + threads * _STACK_BYTES
