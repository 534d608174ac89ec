"""Limits on videos and on the cost of decoding, set from the settings; the defaults are the documented ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Not at run time: the process that decodes starts faster.
    from shared.settings import Settings

#: Below this side a picture holds nothing to search for, and chroma planes degenerate.
MIN_SIDE_PX = 16


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Upper bounds, checked from the header before decoding and again while decoding."""

    max_bytes: int = 20 * 2**30
    max_duration_s: float = 12 * 3600.0
    max_side_px: int = 8192
    max_fps: float = 240.0
    #: Streams of every type in the container.
    max_streams: int = 16
    max_scenes: int = 50_000

    #: Decoded pixels of one file: width times height, over all its pictures.
    max_pixels: int = 6_000_000_000_000
    #: Decoded pixels for each second of content.
    max_pixels_per_s: int = 1_100_000_000
    #: Decoded pixels for each byte of compressed pictures, beyond ``FREE_PIXELS`` of ``budget``.
    max_pixels_per_byte: int = 100_000
    #: CPU seconds that decoding may take: so many, and so many more for each second of content.
    cpu_base_s: float = 60.0
    cpu_per_s: float = 10.0
    #: Memory of the decoding process, in MB (10^6 bytes).
    memory_mb: int = 768
    #: Decoder threads; 0: one per core, at most 8. Fewer are used where more would not fit in the memory.
    threads: int = 0

    min_sample_rate_hz: int = 4_000
    #: How long sound may go on after the last picture, seconds.
    max_sound_after_s: float = 1800.0

    max_keyframes: int = 100_000
    #: Of all keyframes of one video.
    max_keyframe_bytes: int = 4 * 2**30


def media_limits(settings: Settings) -> MediaLimits:
    """Return the limits that the settings ask for."""
    return MediaLimits(
        max_bytes=settings.max_video_bytes,
        max_duration_s=settings.max_video_duration_s,
        max_side_px=settings.max_video_side_px,
        max_fps=settings.max_video_fps,
        max_streams=settings.max_video_streams,
        max_scenes=settings.max_video_scenes,
        max_pixels=settings.max_video_pixels,
        max_pixels_per_s=settings.max_video_pixels_per_s,
        max_pixels_per_byte=settings.max_video_pixels_per_byte,
        cpu_base_s=settings.media_cpu_base_s,
        cpu_per_s=settings.media_cpu_per_s,
        memory_mb=settings.media_memory_mb,
        threads=settings.media_threads,
        min_sample_rate_hz=settings.min_audio_rate_hz,
        max_sound_after_s=settings.max_sound_after_pictures_s,
        max_keyframes=settings.max_video_keyframes,
        max_keyframe_bytes=settings.max_video_keyframe_bytes,
    )
