"""Reads an excerpt of a file's sound, for an online request: decodes only the requested span.

The samples are those the split makes of the same stretch, but for what a decoder needs before it is itself again: decoding
begins a little earlier, and that is dropped.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import av
import numpy as np

from shared.errors import BadMedia, LimitExceeded

from .audio import AUDIO_NAME, HEADER_BYTES, AudioFeed, AudioTrack
from .boundary import media_errors
from .budget import Budget
from .limits import MediaLimits
from .packets import read_packets
from .probe import check_rate, choose_audio, open_media
from .resampling import RATE_HZ, Samples

#: Decoded before the stretch: some codecs need 0.1 s, seeking may land late.
_LEAD_S = 1.0
#: What a request that ends before the file may be short of, from the last frames' lengths.
_ROUNDING_S = 0.1


def read_excerpt(
    path: Path, folder: Path, *, start_s: float, end_s: float | None, max_s: float, limits: MediaLimits
) -> Samples:
    """The sound of a local file from ``start_s`` to ``end_s`` (None: its end), int16 [N], mono, 16 kHz.

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
        with AudioTrack(
            path, part_s=max_s, max_duration_s=limits.max_duration_s, min_rate_hz=limits.min_sample_rate_hz
        ) as track:
            # On a clock that starts with the stretch: what is earlier is dropped, as sound before a file's start is.
            feed = AudioFeed(track, stream, first_s + start_s)
            for packet in read_packets(container, [stream], lambda: None):
                if packet.stream is stream:
                    feed.take(packet)
                budget.reach(0.0)  # a request is short: what comes before the stretch allows nothing
                if track.duration_s >= wanted_s:
                    break
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        samples = np.frombuffer(file.read(2 * wanted), np.int16)
    if not samples.size:
        raise BadMedia(f"The file has no sound after {start_s:g} s; ask for an earlier stretch")
    if end_s is None and samples.size == wanted:
        raise LimitExceeded(
            f"There is more than {max_s:g} s of sound after {start_s:g} s, the limit; ask for a shorter stretch"
        )
    return samples
