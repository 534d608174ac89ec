"""The audio alone, for a run that repeats speech recognition after the split's audio was swept.

Gives the same bytes and windows as the split's own pass: the same decoder feeds the same track.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from av.audio.stream import AudioStream as AvAudioStream

from .audio import AUDIO_NAME, DEFAULT_TIME_BASE, AudioFeed, AudioTrack
from .boundary import media_errors
from .guard import Guard
from .limits import MediaLimits
from .packets import read_packets
from .probe import describe, open_media
from .progress import Progress


def extract_audio(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    part_s: float = 120.0,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Path | None, tuple[tuple[float, float], ...]]:
    """Write the file's audio as 16 kHz mono WAV into ``out_dir``; return it with its windows (seconds).

    (None, ()) without audio. ``on_progress`` as for ``split``.
    Raises BadMedia or LimitExceeded with one sentence; OSError when ``out_dir`` can't be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with media_errors(limits), open_media(path, limits) as container, ExitStack() as stack:
        info = describe(container, path, limits)
        if info.audio is None:
            return None, ()
        stream = cast(AvAudioStream, container.streams[info.audio.index])
        start_s = (container.start_time or 0) / 1e6
        track = AudioTrack(
            out_dir / AUDIO_NAME,
            part_s=part_s,
            max_duration_s=limits.max_duration_s,
            declared_s=info.duration_s,
            min_rate_hz=limits.min_sample_rate_hz,
        )
        stack.enter_context(track)
        feed = AudioFeed(track, stream, start_s)
        guard, tick_s = (
            Guard(info, limits),
            float(container.streams[info.video.index].time_base or DEFAULT_TIME_BASE),
        )
        progress = Progress(info.duration_s, info.size_bytes, on_progress)
        for packet in read_packets(container, [stream], lambda: None):  # what can be read is what there is
            if packet.stream is stream:
                feed.take(packet)
                guard.check_sound(track.duration_s)
            elif packet.stream_index == info.video.index and packet.pts is not None:
                guard.charge_picture(packet.size, 0, packet.pts * tick_s - start_s)
            guard.check_cost(track.duration_s)
            progress.tell(track.duration_s, packet.pos)
    progress.finish()
    if track.duration_s == 0:
        track.path.unlink()
        return None, ()
    return track.path, tuple(track.windows.spans_s)
