"""Which lines of text in the keyframes of one scene are the same line seen again. Pure: texts and boxes in, lines out."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shared.contracts import Box

#: Lines of one scene that are kept, and characters of all of them: more is a page of a document, not a caption.
MAX_LINES = 200
MAX_CHARACTERS = 10_000
#: Two readings are the same text if at most this share of the longer one's characters differs, and no digit: a model that
#: reads a line again errs in one letter or two, while the next page of a talk differs from the last in its number only.
MAX_DIFFERENCE = 0.15
#: Intersection of two boxes over the smaller one, from which on they are at the same place.
MIN_OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Reading:
    """One line of text in one keyframe of the scene."""

    #: The keyframe's place in the scene.
    ordinal: int
    #: The keyframe's time in the video, seconds.
    ts_s: float
    text: str
    #: x, y, width, height in pixels; the keyframes of a scene are of one size.
    box: Box
    #: 0..1
    score: float


@dataclass(slots=True)
class ScreenLine:
    """A line of text of a scene."""

    #: As the surest reading has it.
    best: Reading
    #: Its readings, at most one per keyframe, in time.
    seen: list[Reading]
    #: ``normalise`` of the best reading's text.
    key: str


def merge(readings: Sequence[Reading]) -> list[ScreenLine]:
    """The lines of one scene, each once.

    A reading belongs to the line whose last reading, in an earlier keyframe, lay at the same place with the same or
    nearly the same text, or that has exactly its text wherever it lies (a text that scrolls). Two lines of one keyframe
    stay two.

    Args:
        readings: of one scene, by keyframe, within one as they are read.

    Returns: lines in the order they first appear, at most `MAX_LINES` with at most `MAX_CHARACTERS` in all; what is over
    is left out, the last first.
    """
    lines: list[ScreenLine] = []
    for reading in readings:
        key = normalise(reading.text)
        if not key:
            continue
        line = _find(lines, reading, key)
        if line is not None:
            line.seen.append(reading)
            if reading.score > line.best.score:
                line.best, line.key = reading, key
        elif len(lines) < MAX_LINES:
            lines.append(ScreenLine(reading, [reading], key))
    lengths = accumulate(len(line.best.text) + 1 for line in lines)
    return [line for line, length in zip(lines, lengths, strict=True) if length <= MAX_CHARACTERS]


def normalise(text: str) -> str:
    """What two readings are compared by: letters and digits, whatever their case, width or spacing.

    Empty for a line of nothing but punctuation (a rule, an arrow): it says nothing one could search for.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum())


def differs_by(a: str, b: str, limit: int) -> int:
    """How many insertions, deletions and replacements make b of a (Levenshtein 1966); limit + 1 when it is more."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    row = list(range(len(b) + 1))
    for index, one in enumerate(a, 1):
        before, row[0] = row[0], index
        for column, other in enumerate(b, 1):
            least = min(row[column] + 1, row[column - 1] + 1, before + (one != other))
            before, row[column] = row[column], least
        if min(row) > limit:
            return limit + 1
    return min(row[-1], limit + 1)


def _find(lines: Sequence[ScreenLine], reading: Reading, key: str) -> ScreenLine | None:
    """The line this is another reading of: the nearest text at the same place, else the same text elsewhere."""
    elsewhere = nearest = None
    least = math.inf
    for line in lines:
        last = line.seen[-1]
        if last.ordinal == reading.ordinal:
            continue
        if _overlap(last.box, reading.box) < MIN_OVERLAP:
            if elsewhere is None and key == line.key:
                elsewhere = line
            continue
        limit = int(MAX_DIFFERENCE * max(len(key), len(line.key)))
        distance = differs_by(key, line.key, limit)
        same_digits = [*filter(str.isdigit, key)] == [*filter(str.isdigit, line.key)]
        if distance <= limit and distance < least and same_digits:
            nearest, least = line, distance
    return nearest or elsewhere


def _overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    smaller = min(a[2] * a[3], b[2] * b[3])
    return max(0.0, width) * max(0.0, height) / smaller if smaller > 0 else 0.0
