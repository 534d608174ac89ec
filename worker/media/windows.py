"""Cuts the sound into windows at quiet places, so that no window splits a word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .resampling import RATE_HZ


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

    def feed(self, samples: NDArray[np.int16]) -> None:
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
