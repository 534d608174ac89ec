"""Encodes sound as AAC in stereo on the video's clock: a gap becomes silence, an overlap is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from numpy.typing import NDArray

from .audio import DEFAULT_TIME_BASE, is_plausible

#: Timestamps that wander less than this are jitter; more is a gap or an overlap, seconds.
_JITTER_S = 0.05
#: Longest silence that is written at once, samples.
_SILENCE = 48_000


class StereoTrack:
    """Resamples decoded sound to 48 kHz and feeds the encoder of an output's stream."""

    RATE_HZ = 48_000

    def __init__(self, stream: AudioStream, start_s: float, declared_s: float) -> None:
        """``start_s``: the container's start on the stream's clock; ``declared_s``: see ``is_plausible``."""
        stream.codec_context.layout = "stereo"
        stream.codec_context.format = "fltp"
        stream.codec_context.bit_rate = 128_000
        self._stream = stream
        self._start_s, self._declared_s = start_s, declared_s
        self._resampler = self._make_resampler()
        self._shape: tuple[Any, ...] | None = None
        #: Samples written so far, and samples still to be dropped.
        self._samples = self._skip = 0
        #: The end of what was decoded, by the stream's clock.
        self._fed_to_s: float | None = None
        self._rest = np.zeros((2, 0), np.float32)
        #: Samples that the encoder has got.
        self._encoded = 0

    @property
    def duration_s(self) -> float:
        return self._samples / self.RATE_HZ

    def encode(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Encode the next packet of the source; an empty one at its end."""
        tick_s = float(packet.stream.time_base or DEFAULT_TIME_BASE)
        try:
            frames = packet.stream.codec_context.decode(packet if packet.size else None)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):
            return  # a damaged packet: the gap that it leaves becomes silence
        for frame in frames:
            if frame.sample_rate > 0 and frame.samples > 0:
                yield from self._feed(
                    frame, None if frame.pts is None else frame.pts * tick_s - self._start_s
                )

    def finish(self) -> Iterator[Packet[Any]]:
        """Encode what is held."""
        yield from self._drain()
        if self._rest.shape[1]:
            yield from self._encode(self._rest)
        yield from self._stream.encode(None)

    def _feed(self, frame: AudioFrame, ts_s: float | None) -> Iterator[Packet[Any]]:
        expected_s = self._fed_to_s or 0.0
        if ts_s is None or not is_plausible(ts_s, expected_s, self._declared_s):
            ts_s = expected_s
        shape = (frame.sample_rate, frame.layout.name, frame.format.name)
        if shape != self._shape:
            yield from self._drain()
            self._shape = shape
        if self._fed_to_s is None or abs(ts_s - expected_s) > _JITTER_S:
            yield from self._drain()
            starts = round(ts_s * self.RATE_HZ)
            while self._samples < starts:
                yield from self._write(np.zeros((2, min(_SILENCE, starts - self._samples)), np.float32))
            self._skip = max(0, self._samples - starts)
            self._fed_to_s = ts_s
        self._fed_to_s += frame.samples / frame.sample_rate
        frame.pts = None
        for resampled in self._resampler.resample(frame):
            yield from self._write(resampled.to_ndarray())

    def _drain(self) -> Iterator[Packet[Any]]:
        if self._shape is not None:
            for resampled in self._resampler.resample(None):
                yield from self._write(resampled.to_ndarray())
            self._resampler = self._make_resampler()

    def _make_resampler(self) -> av.AudioResampler:
        return av.AudioResampler(format="fltp", layout="stereo", rate=self.RATE_HZ)

    def _write(self, samples: NDArray[np.float32]) -> Iterator[Packet[Any]]:
        """Take samples, float32 [2, N], and encode as many as make whole frames."""
        skipped = min(self._skip, samples.shape[1])
        self._skip -= skipped
        self._samples += samples.shape[1] - skipped
        held = np.concatenate([self._rest, samples[:, skipped:]], axis=1)
        size = self._stream.codec_context.frame_size or 1024
        whole = held.shape[1] // size * size
        self._rest = held[:, whole:]
        for first in range(0, whole, size):
            yield from self._encode(held[:, first : first + size])

    def _encode(self, samples: NDArray[np.float32]) -> Iterator[Packet[Any]]:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
        frame.sample_rate = self.RATE_HZ
        frame.time_base = Fraction(1, self.RATE_HZ)
        frame.pts = self._encoded
        self._encoded += samples.shape[1]
        yield from self._stream.encode(frame)
