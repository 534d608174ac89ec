"""What the network is given to read about a proposal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worker.media import judge
from worker.media.planes import Thumb

RATE = 25
BRIGHT_AT = 60


class Network:
    """Says that a transition is centred where the picture is bright."""

    read: list[int]

    def __init__(self, path: Path) -> None:
        Network.read = []

    def judge(self, frames: np.ndarray) -> np.ndarray:
        Network.read.append(len(frames))
        bright = frames.mean(axis=(1, 2, 3)) > 150
        return np.repeat(np.where(bright, 0.9, 0.02)[:, None], 2, axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("from_s", "to_s", "most", "chance"),
    [(2.4, 2.4, 16, 0.9), (1.0, 1.0, 16, 0.02), (1.0, 4.4, 22, 0.9), (0.0, 0.1, 13, 0.02)],
    ids=["there", "elsewhere", "long", "at the start"],
)
def test_a_question_reads_few_pictures_however_long_the_proposal_is(
    monkeypatch: pytest.MonkeyPatch, from_s: float, to_s: float, most: int, chance: float
) -> None:
    monkeypatch.setattr(judge, "TransNet", Network)
    asked = judge.Judge(Path("weights.pth"), every=False)
    for number in range(130):
        level = 220 if abs(number - BRIGHT_AT) <= 4 else 60
        grey = np.full((45, 80), 128, np.uint8)
        asked.feed(number / RATE, Thumb(np.full((90, 160), level, np.uint8), grey, grey, level, 0.0))
    opinion = asked.ask(from_s, to_s)
    assert opinion.chance == pytest.approx(chance)
    assert len(Network.read) == 1 and 10 <= Network.read[0] <= most
    if chance > 0.5:
        assert abs(opinion.centre_s - BRIGHT_AT / RATE) <= 5 / RATE
