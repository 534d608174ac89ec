"""Which readings are text. Textures (a grille, a rack of cups, engines of a rocket) are read as short rows of round characters.

What is read off pictures without text is nearly always one of these: one character; a few characters with a low score; a row of
``0 O C 6 8 9`` and the like. What the rule takes away there, and what it loses of true text, is measured by ``python -m bench.ocr``.
"""

from __future__ import annotations

from worker.models.ocr import Line

#: Characters that round things are taken for.
ROUND = frozenset("0oc6890gqde@au")
#: Up to so many letters and digits say little: textures that were read as such had a score of up to 0.86.
SHORT = 5
MIN_SHORT_SCORE = 0.9
#: Rows of round things alone, of any length.
MIN_ROUND_SCORE = 0.97


def is_text(line: Line) -> bool:
    """Whether a line that was read is to be believed."""
    said = [character for character in line.text.casefold() if character.isalnum()]
    if len(said) < 2:
        # Not worth a search where it is true.
        return False
    if len(said) <= SHORT and line.score < MIN_SHORT_SCORE:
        return False
    return line.score >= MIN_ROUND_SCORE or not ROUND.issuperset(said)
