"""The VAD: the same probabilities as Silero's own network, and windows that keep their promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from worker.models.base import SAMPLE_RATE_HZ, Float32
from worker.models.catalog import load_catalog
from worker.models.providers.vad import FRAME, Vad, plan_windows, speech_spans
from worker.models.weights.verify import locate

pytestmark = pytest.mark.slow

FRAME_S = FRAME / SAMPLE_RATE_HZ


def jit_file() -> Path:
    return locate(load_catalog().get("pocketsphinx-en-us"), "package:silero_vad/data/silero_vad.jit")


def vowels(seconds: float) -> Float32:
    """Something voiced, in bursts: harmonics of 120 Hz through two formants."""
    time_s = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    voice = sum(
        np.sin(2 * np.pi * 120 * n * time_s) * np.exp(-(((120 * n - peak) / 150) ** 2))
        for n in range(1, 30)
        for peak in (600, 1200)
    )
    bursts = (np.sin(2 * np.pi * 1.3 * time_s) > 0) * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * time_s))
    return np.asarray(0.2 * voice * bursts, np.float32)


def test_equals_the_packages_own_network() -> None:
    audio = vowels(40.3)  # longer than one block, and not whole frames
    reference = torch.jit.load(str(jit_file()))
    reference.reset_states()
    padded = np.pad(audio, (0, -len(audio) % FRAME))
    with torch.inference_mode():
        expected = [
            reference(torch.from_numpy(padded[first : first + FRAME]), SAMPLE_RATE_HZ).item()
            for first in range(0, len(padded), FRAME)
        ]
    found = Vad(jit_file()).probabilities(audio)
    assert found.dtype == np.float32 and max(expected) - min(expected) > 0.3
    np.testing.assert_allclose(found, expected, atol=1e-4)


def probabilities(*stretches: tuple[float, float]) -> Float32:
    """(probability, seconds) after one another."""
    return np.concatenate([np.full(round(s / FRAME_S), p, np.float32) for p, s in stretches])


@pytest.mark.parametrize(
    ("stretches", "spans"),
    [
        (((0, 1), (0.9, 1), (0, 0.2), (0.9, 1), (0, 1)), 1),
        (((0, 1), (0.9, 1), (0, 0.4), (0.9, 1), (0, 1)), 2),
        (((0, 1), (0.9, 0.1), (0, 1)), 0),
        (((0.9, 1), (0.4, 2), (0.9, 1)), 1),
        (((0.4, 5),), 0),
    ],
    ids=["short silence", "long silence", "click", "between the thresholds", "never above the first"],
)
def test_speech_ends_at_long_silences(stretches: tuple[tuple[float, float], ...], spans: int) -> None:
    assert len(speech_spans(probabilities(*stretches))) == spans


def test_speech_may_last_to_the_end() -> None:
    ((start, end),) = speech_spans(probabilities((0, 1), (0.9, 1)))
    assert end == len(probabilities((0, 1), (0.9, 1))) and start == round(1 / FRAME_S)


def test_an_unbroken_speech_is_cut_where_it_is_least_likely() -> None:
    frames = probabilities((0.99, 8), (0.6, 0.2), (0.99, 8))
    first, second = plan_windows(
        frames, max_window_s=10, max_gap_s=1, pad_s=0.25, samples=len(frames) * FRAME
    )
    assert first[1] == second[0]
    assert 8.0 <= first[1] / SAMPLE_RATE_HZ <= 8.2


@settings(max_examples=300, deadline=None)
@given(
    stretches=st.lists(
        st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.99]), st.integers(1, 500)), min_size=1, max_size=12
    ),
    max_window_s=st.floats(2, 20),
    max_gap_s=st.floats(0, 3),
    pad_s=st.floats(0, 0.5),
    cut=st.integers(0, FRAME - 1),
)
def test_windows_keep_their_promises(
    stretches: list[tuple[float, int]], max_window_s: float, max_gap_s: float, pad_s: float, cut: int
) -> None:
    frames = np.concatenate([np.full(n, p, np.float32) for p, n in stretches])
    samples = len(frames) * FRAME - cut
    windows = plan_windows(
        frames, max_window_s=max_window_s, max_gap_s=max_gap_s, pad_s=pad_s, samples=samples
    )
    before = 0
    for start, end in windows:
        assert before <= start < end <= samples
        assert (end - start) / SAMPLE_RATE_HZ <= max_window_s
        before = end
    for first, last in speech_spans(frames):
        inside = np.zeros(samples, bool)
        for start, end in windows:
            inside[start:end] = True
        assert inside[first * FRAME : last * FRAME].all(), "no speech is left out"


@pytest.mark.parametrize("pad_s", [0.0, 0.25])
def test_padding_shares_the_silence_between_windows(pad_s: float) -> None:
    frames = probabilities((0, 1), (0.9, 1), (0, 0.4), (0.9, 1), (0, 1))
    first, second = plan_windows(
        frames, max_window_s=10, max_gap_s=0, pad_s=pad_s, samples=len(frames) * FRAME
    )
    assert first[1] <= second[0]
    assert (first[0] == round(1 / FRAME_S) * FRAME) == (pad_s == 0)
