"""Which readings are taken for text."""

from __future__ import annotations

import pytest

from worker.models.ocr import Line
from worker.models.providers.ocr_rule import is_text

BOX = (0.0, 0.0, 80.0, 50.0)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        # Read off a rocket's engines, cups, tiles, icons, a flower.
        *(
            ("0000", 0.86),
            ("C000", 0.81),
            ("2000", 0.82),
            ("000O€", 0.8),
            ("99006", 0.76),
            ("10", 0.79),
            ("3222", 0.76),
        ),
        *(("C", 0.99), ("★", 0.95), ("鑫", 0.92), ("日", 0.98), ("—", 0.99), ("", 0.99), ("0000000000", 0.9)),
    ],
)
def test_textures_are_no_text(text: str, score: float) -> None:
    assert not is_text(Line(text, BOX, score))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("GO", 0.98),
        ("0 - 0", 0.98),
        ("1000", 0.97),
        ("Dogs", 0.92),
        ("BREAKING NEWS", 0.78),
        ("火箭发射时间", 0.8),
        ("Zoo 9", 0.95),
    ],
)
def test_text_is_text(text: str, score: float) -> None:
    assert is_text(Line(text, BOX, score))
