"""Writes the sound as 16 kHz mono WAV on the video's clock, and finds quiet places to cut it.

The file has exactly a 44-byte header, so sample n is at byte ``44 + 2 * n`` and a reader can fetch a range.
Sample n is heard ``n / 16000`` seconds after the container's start, whatever the stream's own offset and gaps.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.packet import Packet

from shared.errors import LimitExceeded

from .limits import MediaLimits
from .probe import check_rate
from .resampling import RATE_HZ, Resampler, Samples, shape_of

HEADER_BYTES = 44
AUDIO_NAME = "audio.wav"

#: For streams without one, FFmpeg's own: AV_TIME_BASE.
DEFAULT_TIME_BASE = Fraction(1, 1_000_000)

#: Timestamps that wander less than this are jitter; more is a gap or an overlap.
_JITTER_S = 0.05
_MAX_OVERLAP_S = 5.0
_LEAP_S = 60.0


class AudioTrack:
    """Writes decoded audio frames to a WAV file; a context manager that always leaves a valid header."""

    def __init__(
        self, path: Path, limits: MediaLimits, *, part_s: float, start_s: float = 0.0, declared_s: float = 0.0
    ) -> None:
        """Open the file.

        Args:
            part_s: the longest window, seconds.
            start_s: the container's start on the stream's clock.
            declared_s: the header's duration, 0.0 when it gives none: see ``is_plausible``.
        """
        self._path = path
        self._limits = limits
        self._windows = Windows(part_s)
        self._start_s = start_s
        self._declared_s = declared_s
        self._max_samples = int(limits.max_video_duration_s * RATE_HZ)
        self._file = path.open("wb")
        self._file.write(b"\0" * HEADER_BYTES)
        self._samples = 0
        #: Samples still to be dropped, because their time is written already.
        self._skip = 0
        self._resampler: Resampler | None = None
        #: Time of the end of what was fed, by the stream's clock.
        self._fed_to_s: float | None = None

    @property
    def duration_s(self) -> float:
        return self._samples / RATE_HZ

    def __enter__(self) -> AudioTrack:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._drain()
                self._windows.finish(self._samples)
            self._file.truncate(HEADER_BYTES + 2 * self._samples)
            self._file.seek(0)
            self._file.write(_wav_header(self._samples))
        finally:
            self._file.close()

    def result(self) -> tuple[Path | None, tuple[tuple[float, float], ...]]:
        """Return the closed file and its windows, (start, end) in seconds; without a sample the file is removed."""
        if self._samples == 0:
            self._path.unlink()
            return None, ()
        return self._path, tuple(self._windows.spans_s)

    def decode(self, packet: Packet[Any]) -> None:
        """Append the next packet of the stream; an empty one at its end. Raises as ``feed``."""
        # A float: arithmetic with Fractions would cost as much as the decoding.
        tick_s = float(packet.stream.time_base or DEFAULT_TIME_BASE)
        try:
            for frame in packet.stream.codec_context.decode(packet if packet.size else None):
                self.feed(frame, None if frame.pts is None else frame.pts * tick_s - self._start_s)
        except MemoryError:
            raise  # otherwise sound at the limit would be lost silently
        except (av.FFmpegError, ValueError):
            return  # a damaged packet: the gap it leaves becomes silence

    def feed(self, frame: AudioFrame, ts_s: float | None) -> None:
        """Append a frame that starts ``ts_s`` seconds after the container's start (None: right after the last).

        Gaps become silence, overlaps are dropped. Raises LimitExceeded past the duration limit, or for a rate below the least.
        """
        if frame.sample_rate <= 0 or frame.samples <= 0:
            return
        check_rate(frame.sample_rate, self._limits)
        if self._resampler is not None and self._resampler.shape != shape_of(frame):
            self._drain()
        expected_s = self._fed_to_s or 0.0
        if ts_s is None or not is_plausible(ts_s, expected_s, self._declared_s):
            ts_s = expected_s
        if self._fed_to_s is not None and ts_s < expected_s - _MAX_OVERLAP_S:
            ts_s = expected_s  # a clock that was set back, not the same sound again
        if self._fed_to_s is None or abs(ts_s - expected_s) > _JITTER_S:
            self._drain()
            self._pad_to(round(ts_s * RATE_HZ))
            # Positive when the frame starts before what is written already, or before the container's start.
            self._skip = max(0, self._samples - round(ts_s * RATE_HZ))
            self._fed_to_s = ts_s
        self._fed_to_s = self._fed_to_s + frame.samples / frame.sample_rate
        if self._resampler is None:
            self._resampler = Resampler(frame)
        for samples in self._resampler.feed(frame):
            self._write(samples)

    def _drain(self) -> None:
        if self._resampler is not None:
            resampler, self._resampler = self._resampler, None
            for samples in resampler.flush():
                self._write(samples)

    def _pad_to(self, sample: int) -> None:
        if sample > self._samples:
            self._check(sample)
            self._windows.feed_silence(sample - self._samples)
            self._samples = sample
            self._file.seek(HEADER_BYTES + 2 * sample)

    def _write(self, samples: Samples) -> None:
        skipped = min(self._skip, samples.size)
        self._skip -= skipped
        samples = samples[skipped:]
        self._check(self._samples + samples.size)
        self._file.write(samples.astype("<i2", copy=False).tobytes())
        self._samples += samples.size
        self._windows.feed(samples)

    def _check(self, samples: int) -> None:
        if samples > self._max_samples:
            raise LimitExceeded(
                f"The sound goes on past {self._max_samples / RATE_HZ:.0f} s, the limit; cut the file up"
            )


def is_plausible(ts_s: float, last_s: float, declared_s: float) -> bool:
    """Whether content may really come at ``ts_s`` after content at ``last_s``.

    A single damaged timestamp far in the future would make everything after it come too late. So a great leap must
    at least land within the duration the header gives (0.0: it gives none).
    """
    return declared_s <= 0 or ts_s - last_s < _LEAP_S or ts_s < declared_s + _LEAP_S


def _wav_header(samples: int) -> bytes:
    """Return the 44-byte RIFF header of mono s16le audio at 16 kHz."""
    size = min(2 * samples, 0xFFFFFFFF - 36)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16, b"data", size,
    )  # fmt: skip


class Windows:
    """Cuts a stream of samples into windows at quiet places, holding one window's energies.

    ``part_s`` is the longest window, in seconds. The border is the quietest 0.25 s within the last quarter of it.
    """

    _BLOCK = RATE_HZ // 20
    _SMOOTH = 5

    def __init__(self, part_s: float) -> None:
        self._part = max(8, int(part_s * RATE_HZ) // self._BLOCK)
        self._energies: list[float] = []
        self._rest = np.zeros(0, np.int16)
        #: First block of the open window.
        self._start = 0
        self.spans_s: list[tuple[float, float]] = []

    def feed(self, samples: Samples) -> None:
        """Take the next samples (int16 [n])."""
        samples = np.concatenate([self._rest, samples]) if self._rest.size else samples
        whole = samples.size // self._BLOCK * self._BLOCK
        self._rest = samples[whole:].copy()
        if whole:
            blocks = samples[:whole].reshape(-1, self._BLOCK).astype(np.float32)
            self._extend(np.square(blocks).mean(axis=1).tolist())

    def feed_silence(self, samples: int) -> None:
        """Take ``samples`` zeros without making them."""
        head = min(samples, self._BLOCK - self._rest.size)
        self.feed(np.zeros(head, np.int16))
        blocks, rest = divmod(samples - head, self._BLOCK)
        while blocks > 0:
            step = min(blocks, self._part)
            self._extend([0.0] * step)
            blocks -= step
        self.feed(np.zeros(rest, np.int16))

    def finish(self, samples: int) -> None:
        """Close the last window at ``samples``, the end of the audio."""
        self._close(samples / RATE_HZ)

    def _close(self, end_s: float) -> None:
        start_s = self.spans_s[-1][1] if self.spans_s else 0.0
        if end_s > start_s:
            self.spans_s.append((start_s, end_s))

    def _extend(self, energies: list[float]) -> None:
        self._energies += energies
        while len(self._energies) > self._part:
            self._cut()

    def _cut(self) -> None:
        earliest = self._part * 3 // 4
        tail = np.array(self._energies[earliest : self._part])
        width = min(self._SMOOTH, tail.size)
        smooth = np.convolve(tail, np.ones(width) / width, mode="valid")
        quietest = smooth.size - 1 - int(np.argmin(smooth[::-1]))
        length = min(self._part, earliest + quietest + width // 2 + (width != tail.size))
        self._start += length
        self._close(self._start * self._BLOCK / RATE_HZ)
        del self._energies[:length]
