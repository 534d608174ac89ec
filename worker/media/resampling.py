"""Decoded sound of any shape to mono 16 kHz, half a second at a time.

A decoder gives about 20 ms at once; each trip through FFmpeg's filter graph costs more than resampling so little, so
frames are joined first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

RATE_HZ = 16_000

#: Sample formats that can be joined as arrays (libavutil/samplefmt.h; "p": one plane a channel).
_DTYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}

#: Frames with more channels than this keep planes where PyAV does not look.
_MOST_CHANNELS = 8

Samples = NDArray[np.int16]


class Resampler:
    """Takes the frames of one stretch of sound, all of one ``shape``, and gives its samples."""

    def __init__(self, frame: AudioFrame) -> None:
        self.shape = shape_of(frame)
        self._dtype = _DTYPES.get(frame.format.name.removesuffix("p"))
        self._joins = self._dtype is not None and frame.layout.nb_channels <= _MOST_CHANNELS
        self._channels_a_plane = 1 if frame.format.is_planar else frame.layout.nb_channels
        self._format, self._layout, self._rate_hz = frame.format, frame.layout, frame.sample_rate
        self._resampler = AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
        self._waiting: list[tuple[NDArray[Any], ...]] = []
        self._waiting_samples = 0

    def feed(self, frame: AudioFrame) -> list[Samples]:
        """Take the next frame; return the samples that are ready (each int16 [n]), often none."""
        if not self._joins:
            return self._resample(frame)
        count = frame.samples * self._channels_a_plane
        planes = (np.frombuffer(memoryview(plane), self._dtype, count) for plane in frame.planes)
        self._waiting.append(tuple(planes))
        self._waiting_samples += frame.samples
        return self._join() if 2 * self._waiting_samples >= self._rate_hz else []

    def flush(self) -> list[Samples]:
        """Return all samples that are left; nothing can be fed afterwards."""
        return [*self._join(), *self._resample(None)]

    def _join(self) -> list[Samples]:
        if not self._waiting:
            return []
        planes = np.stack([np.concatenate(parts) for parts in zip(*self._waiting, strict=True)])
        frame = AudioFrame.from_ndarray(planes, format=self._format, layout=self._layout)
        frame.sample_rate = self._rate_hz
        self._waiting.clear()
        self._waiting_samples = 0
        return self._resample(frame)

    def _resample(self, frame: AudioFrame | None) -> list[Samples]:
        if frame is not None:
            frame.pts = None  # the caller keeps the time
        done = (ready for ready in self._resampler.resample(frame) if ready is not None)
        return [np.frombuffer(memoryview(ready.planes[0]), np.int16, ready.samples) for ready in done]


def shape_of(frame: AudioFrame) -> tuple[str, str, int]:
    """Return what must stay the same within one stretch: sample format, channel layout, rate in Hz."""
    return frame.format.name, frame.layout.name, frame.sample_rate
