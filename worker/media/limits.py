"""Limits on videos and on the cost of decoding."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from shared.errors import LimitExceeded

if TYPE_CHECKING:
    # Not at run time: the process that decodes starts faster.
    from shared.settings import Settings

#: Below this side a picture holds nothing to search for, and chroma planes degenerate.
MIN_SIDE_PX = 16


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """The settings of the same names, which describe them, and their defaults.

    Checked from the header before decoding and again while decoding.
    """

    max_video_bytes: int = 20 * 2**30
    max_video_duration_s: float = 12 * 3600.0
    max_video_side_px: int = 8192
    max_video_fps: float = 240.0
    max_video_streams: int = 16
    max_video_scenes: int = 50_000
    max_video_pixels: int = 6_000_000_000_000
    max_video_pixels_per_s: int = 1_100_000_000
    max_video_pixels_per_byte: int = 100_000
    media_cpu_base_s: float = 60.0
    media_cpu_per_s: float = 10.0
    media_memory_mb: int = 768
    media_threads: int = 0
    min_audio_rate_hz: int = 4_000
    max_sound_after_pictures_s: float = 1800.0
    max_video_keyframes: int = 100_000
    max_video_keyframe_bytes: int = 4 * 2**30


def media_limits(settings: Settings) -> MediaLimits:
    """Return the limits that the settings ask for."""
    return MediaLimits(**{field.name: getattr(settings, field.name) for field in fields(MediaLimits)})


def no_memory(limits: MediaLimits) -> LimitExceeded:
    """Return the error for a file whose decoding needs more memory than is allowed."""
    return LimitExceeded(
        f"Decoding needs more memory than the limit of {limits.media_memory_mb} MB (MEDIA_MEMORY_MB); "
        "scale it down or encode it with fewer reference frames"
    )
