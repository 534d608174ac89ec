"""Which readings are taken for text."""

from __future__ import annotations

import pytest

from worker.models.ocr import Line
from worker.models.providers.ocr_rule import is_text

#: Read off a rocket's engines, cups, tiles, icons, a flower.
TEXTURES = [
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
]
READINGS = [
    *(("GO", 0.98), ("0 - 0", 0.98), ("1000", 0.97), ("Dogs", 0.92), ("Zoo 9", 0.95)),
    *(("BREAKING NEWS", 0.78), ("火箭发射时间", 0.8)),
]


@pytest.mark.parametrize(
    ("text", "score", "expected"),
    [*((*texture, False) for texture in TEXTURES), *((*reading, True) for reading in READINGS)],
)
def test_textures_are_no_text(text: str, score: float, expected: bool) -> None:
    assert is_text(Line(text, (0.0, 0.0, 80.0, 50.0), score)) is expected
