"""Which readings are text. Textures (a grille, a rack of cups, engines of a rocket) are read as short rows of round characters.

What is read off pictures without text is nearly always one of these: one character; a few characters with a low score; a row of
``0 O C 6 8 9`` and the like; a box that fills the picture. What such a rule loses of true text is measured by ``python -m bench.ocr``.
"""

from __future__ import annotations

from worker.models.ocr import Line

#: Characters that round things are taken for.
ROUND = frozenset("0oc6890gqde@au")
#: Least score by how much a reading says: few letters and figures, only round ones, or more.
SHORT = 5
MIN_SHORT_SCORE = 0.9
MIN_ROUND_SCORE = 0.97
#: A line this much of the picture's height is a picture of something.
MAX_HEIGHT = 0.4


def is_text(line: Line, width_px: int, height_px: int) -> bool:
    """Whether a line that was read is to be believed.

    Args:
        width_px, height_px: of the picture.
    """
    said = [character for character in line.text.casefold() if character.isalnum()]
    if len(said) < 2:
        # Not worth a search where it is true.
        return False
    if line.box[3] > MAX_HEIGHT * height_px and len(said) <= SHORT:
        return False
    if len(said) <= SHORT and line.score < MIN_SHORT_SCORE:
        return False
    return line.score >= MIN_ROUND_SCORE or not ROUND.issuperset(said)
