"""How large a video may be. The settings fill these in; the defaults are the documented ones."""

from __future__ import annotations

from dataclasses import dataclass

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
