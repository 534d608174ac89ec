"""Drops readings of textures: a grille, a rack of cups or a rocket's engines are read as short rows of round characters.

Readings in pictures without text are nearly always one character, a few characters with a low score, or a row of
``0 O C 6 8 9`` and similar. ``python -m bench.ocr`` measures what the rule removes, and how much true text it loses.
"""

from __future__ import annotations

from worker.models.ocr import Line

#: Characters for which round things are mistaken.
ROUND = frozenset("0oc6890gqde@au")
#: Maximum length of a short reading: textures read as such had a score of up to 0.86.
SHORT = 5
MIN_SHORT_SCORE = 0.9
#: For rows of round characters, of any length.
MIN_ROUND_SCORE = 0.97


def is_text(line: Line) -> bool:
    """Whether a reading is text."""
    characters = [character for character in line.text.casefold() if character.isalnum()]
    if len(characters) < 2:
        # Not useful for a search even if correct.
        return False
    if len(characters) <= SHORT and line.score < MIN_SHORT_SCORE:
        return False
    return line.score >= MIN_ROUND_SCORE or not ROUND.issuperset(characters)
