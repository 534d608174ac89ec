"""Finds speech in audio (VAD), so that speech models never get silence and windows are cut at pauses.

The network is Silero VAD v6, 16 kHz (MIT), with the weights of the TorchScript file its package ships (the safetensors
file beside it is of an older release: its weights differ). It is written out here because the package runs it one 32 ms
frame at a time, and sets torch's thread count when imported; the convolutions of all frames can be one batch and only the
small LSTM needs the order, which is about ten times faster. A contract test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worker.models.base import SAMPLE_RATE_HZ, Float32

FRAME = 512
"""Samples a probability stands for (32 ms)."""
_CONTEXT = 64
#: Frames run at once: 32 s of audio, some 10 MB of activations.
_BLOCK_FRAMES = 1000

#: Probabilities at which speech begins and below which it may end; shorter speech and silences are ignored.
_ENTER, _LEAVE, _MIN_SPEECH_S, _MIN_SILENCE_S = 0.5, 0.35, 0.25, 0.3

#: Our layer -> its name in the TorchScript file.
_STORED_NAMES = {
    "stft_conv.weight": "_model.stft.forward_basis_buffer",
    **{f"conv{n + 1}.*": f"_model.encoder.{n}.reparam_conv.*" for n in range(4)},
    **{f"lstm.*_{way}_l0": f"_model.decoder.rnn.*_{way}" for way in ("ih", "hh")},
    "final_conv.*": "_model.decoder.decoder.2.*",
}

Span = tuple[int, int]
"""First sample and the one after the last."""


class SpeechNet(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """Silero VAD's network for 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(
        self, frames: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Frames [T, 576] (64 samples of context, 512 of its own) to probabilities [T] and the state after them."""
        x = self.stft_conv(nn.functional.pad(frames, (0, 64), "reflect").unsqueeze(1))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        hidden, state = self.lstm(x.permute(2, 0, 1).reshape(-1, 1, 128), state)
        logits = self.final_conv(hidden.relu().reshape(-1, 128, 1))
        return logits.sigmoid().reshape(-1), state


class Vad:
    """Silero VAD, loaded."""

    def __init__(self, weights: Path) -> None:
        stored = torch.jit.load(str(weights), map_location="cpu").state_dict()
        tensors = {
            ours.replace("*", kind): stored[theirs.replace("*", kind)]
            for ours, theirs in _STORED_NAMES.items()
            for kind in (("weight", "bias") if "*" in ours else ("",))
        }
        self._net = SpeechNet()
        self._net.load_state_dict(tensors)
        self._net.eval()

    def probabilities(self, audio: Float32, on_step: Callable[[float], None] | None = None) -> Float32:
        """How likely each 32 ms frame holds speech.

        Args:
            audio: float32 [N], mono, 16 kHz; the last frame is filled up with zeros.
            on_step: called with the fraction done after every 32 s of audio.

        Returns: float32 [ceil(N / 512)], 0..1.
        """
        count = -(-len(audio) // FRAME)
        if not count:
            return np.zeros(0, np.float32)
        padded = np.zeros(_CONTEXT + count * FRAME, np.float32)
        padded[_CONTEXT : _CONTEXT + len(audio)] = audio
        frames = torch.from_numpy(padded).unfold(0, _CONTEXT + FRAME, FRAME)
        state: tuple[torch.Tensor, torch.Tensor] | None = None
        parts: list[Float32] = []
        for first in range(0, count, _BLOCK_FRAMES):
            block = frames[first : first + _BLOCK_FRAMES]
            with torch.inference_mode():
                probabilities, state = self._net(block, state)
            parts.append(probabilities.numpy())
            if on_step is not None:
                on_step(min(1.0, (first + len(block)) / count))
        return np.concatenate(parts)


def speech_spans(probabilities: Float32) -> list[Span]:
    """Frames' probabilities to stretches of speech, by a threshold with hysteresis (Silero's rule and defaults).

    Returns: first frame and the one after the last of each stretch, in order, not touching.
    """
    frame_s = FRAME / SAMPLE_RATE_HZ
    spans: list[Span] = []
    start: int | None = None
    quiet: int | None = None
    for index, probability in enumerate(probabilities):
        if probability >= _ENTER:
            start, quiet = index if start is None else start, None
        elif start is not None and probability < _LEAVE:
            quiet = index if quiet is None else quiet
            if (index + 1 - quiet) * frame_s >= _MIN_SILENCE_S:
                spans.append((start, quiet))
                start = quiet = None
    if start is not None:
        spans.append((start, quiet if quiet is not None else len(probabilities)))
    return [span for span in spans if (span[1] - span[0]) * frame_s >= _MIN_SPEECH_S]


def plan_windows(
    probabilities: Float32, *, max_window_s: float, max_gap_s: float, pad_s: float, samples: int
) -> list[Span]:
    """Windows to recognise, one utterance each, cut where speech is least likely.

    Args:
        max_window_s: no window is longer, its padding included.
        max_gap_s: stretches of speech with a shorter silence between them share a window, when it fits.
        pad_s: silence kept around speech; never more than half the silence there is.

    Returns: samples of each window, in order, not overlapping.
    """
    pad = round(pad_s * SAMPLE_RATE_HZ / FRAME)
    limit = int(max_window_s * SAMPLE_RATE_HZ / FRAME) - 2 * pad
    max_gap = max_gap_s * SAMPLE_RATE_HZ / FRAME
    merged: list[Span] = []
    for span in speech_spans(probabilities):
        for start, end in _split(probabilities, span, limit):
            if merged and start - merged[-1][1] <= max_gap and end - merged[-1][0] <= limit:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
    windows: list[Span] = []
    for index, (start, end) in enumerate(merged):
        # Neighbours share the silence between them; at the ends all of it is free.
        room_before = (start - merged[index - 1][1]) // 2 if index else start
        after = merged[index + 1 : index + 2]
        room_after = (after[0][0] - end) // 2 if after else len(probabilities) - end
        first, last = start - min(pad, room_before), end + min(pad, room_after)
        windows.append((first * FRAME, min(last * FRAME, samples)))
    return windows


def _split(probabilities: Float32, span: Span, limit: int) -> list[Span]:
    """Cut a stretch longer than `limit` frames where speech is least likely, in the window's second half."""
    start, end = span
    pieces: list[Span] = []
    while end - start > limit:
        candidates = probabilities[start + limit // 2 : start + limit]
        # Averaged over about 0.1 s, so that one odd frame inside a word does not win.
        smooth = np.convolve(candidates, np.ones(3, np.float32) / 3, mode="same")
        cut = start + limit // 2 + int(np.argmin(smooth[1:-1])) + 1
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)]
