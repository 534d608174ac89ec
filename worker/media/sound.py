"""The sound of a file without its pictures: all of it, or an excerpt for an online request.

Both give what the split's own pass gives: the same decoder feeds the same track. An excerpt differs by what a decoder
needs before it is itself again: decoding begins a little earlier, and that is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.stream import AudioStream

from shared.errors import BadMedia, LimitExceeded

from .audio import AUDIO_NAME, DEFAULT_TIME_BASE, HEADER_BYTES, AudioTrack
from .boundary import media_errors
from .guard import Budget, Guard
from .limits import MediaLimits
from .packets import Progress, read_packets
from .probe import check_rate, choose_audio, describe, open_media
from .resampling import RATE_HZ, Samples

#: Decoded before the excerpt: some codecs need 0.1 s, seeking may land late.
_LEAD_S = 1.0
#: What a request that ends before the file may be short of, from the last frames' lengths.
_ROUNDING_S = 0.1


def extract_audio(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    part_s: float = 120.0,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Path | None, tuple[tuple[float, float], ...]]:
    """Write the file's audio as 16 kHz mono WAV into ``out_dir``; return it with its windows (seconds).

    (None, ()) without audio. Arguments and errors as for ``split``.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with media_errors(limits), open_media(path, limits) as container:
        info = describe(container, path, limits)
        if info.audio is None:
            return None, ()
        stream = cast(AudioStream, container.streams[info.audio.index])
        start_s = (container.start_time or 0) / 1e6
        tick_s = float(container.streams[info.video.index].time_base or DEFAULT_TIME_BASE)
        guard = Guard(info, limits)
        progress = Progress(info.duration_s, info.size_bytes, on_progress)
        with AudioTrack(
            out_dir / AUDIO_NAME, limits, part_s=part_s, start_s=start_s, declared_s=info.duration_s
        ) as track:
            for packet in read_packets(
                container, [stream], lambda: None
            ):  # what can be read is what there is
                if packet.stream is stream:
                    track.decode(packet)
                    guard.check_sound(track.duration_s)
                elif packet.stream_index == info.video.index and packet.pts is not None:
                    guard.charge_picture(packet.size, 0, packet.pts * tick_s - start_s)
                guard.budget.reach(track.duration_s)
                progress.tell(track.duration_s, packet.pos)
    progress.finish()
    return track.result()


def read_excerpt(
    path: Path, folder: Path, *, start_s: float, end_s: float | None, max_s: float, limits: MediaLimits
) -> Samples:
    """Return the sound of a local file from ``start_s`` to ``end_s`` (None: its end), int16 [N], mono, 16 kHz.

    Shorter where the sound ends earlier; the file need not have pictures. ``folder`` takes a temporary file.
    Raises BadMedia (no sound, or none in this stretch) or LimitExceeded (more than ``max_s``), each with one sentence.
    """
    wanted_s = (end_s - start_s) if end_s is not None else max_s + _ROUNDING_S
    wanted = round(wanted_s * RATE_HZ)
    with media_errors(limits), open_media(path, limits) as container:
        stream = choose_audio(container)
        if stream is None:
            raise BadMedia("The file has no sound; name one that has an audio stream")
        check_rate(stream.codec_context.sample_rate, limits)
        budget = Budget(limits)
        first_s = (container.start_time or 0) / 1e6
        if start_s > _LEAD_S:
            # Where that is not possible all is decoded from the beginning.
            with suppress(av.FFmpegError):
                container.seek(round((first_s + start_s - _LEAD_S) * 1e6))
        path = folder / AUDIO_NAME
        # On a clock that starts with the excerpt: what is earlier is dropped, as sound before a file's start is.
        with AudioTrack(path, limits, part_s=max_s, start_s=first_s + start_s) as track:
            for packet in read_packets(container, [stream], lambda: None):
                if packet.stream is stream:
                    track.decode(packet)
                budget.reach(0.0)  # a request is short: what comes before the excerpt allows nothing
                if track.duration_s >= wanted_s:
                    break
    samples = np.fromfile(path, np.int16, wanted, offset=HEADER_BYTES)
    if not samples.size:
        raise BadMedia(f"The file has no sound after {start_s:g} s; ask for an earlier stretch")
    if end_s is None and samples.size == wanted:
        raise LimitExceeded(
            f"There is more than {max_s:g} s of sound after {start_s:g} s, the limit; ask for a shorter stretch"
        )
    return samples
