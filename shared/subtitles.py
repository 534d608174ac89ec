"""Subtitles of a video from the words of its scenes, as SRT or WebVTT. Imports nothing of ours.

Limits of a cue are those of common style guides for timed text (two lines of 42 characters, 1 to 7 s). WebVTT is the
W3C's, with its escapes. SRT has neither a standard nor escapes: what players take for markup (``<i>``, ``{\\an8}``) is
replaced by similar characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SubtitleFormat = Literal["srt", "vtt"]

MAX_LINE = 42
"""Columns of a line; a wide character (Chinese, Japanese, Korean) takes two."""
MAX_MS = 7000
MIN_MS = 1000
#: A silence this long ends a cue.
PAUSE_MS = 800

_SENTENCE_ENDS = ".?!…。！？"
_CLAUSE_ENDS = ",;:，、；："
_CLOSING = "\"'”’»)]」』"

_SRT_SIGNS = str.maketrans({"<": "‹", ">": "›", "{": "｛", "}": "｝", "\\": "＼"})
_VTT_SIGNS = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True)
class Cue:
    """A subtitle with its times, milliseconds from the video's start."""

    start_ms: int
    end_ms: int
    #: One or two, none empty; plain text, not escaped.
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word, or as much of a very long one as fits on a line."""

    start_ms: int
    end_ms: int
    text: str
    width: int
    #: Whether there is no space before it.
    glued: bool
    #: Whether a sentence, or what the recogniser took for one, ends here.
    is_end: bool


def make_cues(scenes: Iterable[Sequence[Mapping[str, Any]]]) -> list[Cue]:
    """Cut the words of a video into cues: in order, none overlapping, as long as can be read.

    A segment that a cut divided between two scenes is one sentence again.

    Args:
        scenes: the segments of each scene, in order: start_s, end_s, text, words (each start_s, end_s, text; may be
            none), rejected (the reason; the segment is left out).
    """
    groups = _lengthen(list(_group(_pieces(scenes))))
    cues: list[Cue] = []
    for place, group in enumerate(groups):
        start_ms = max(group[0].start_ms, cues[-1].end_ms if cues else 0)
        end_ms = min(max(group[-1].end_ms, start_ms + MIN_MS), start_ms + MAX_MS)
        if place + 1 < len(groups):
            end_ms = min(end_ms, groups[place + 1][0].start_ms)
        lines = _lay_out(group)
        assert lines is not None
        # Words that a recogniser gave one and the same time still get a moment each.
        cues.append(Cue(start_ms, max(end_ms, start_ms + 1), lines))
    return cues


def render(cues: Iterable[Cue], format: SubtitleFormat) -> str:
    """The text of a subtitle file, for UTF-8; without cues an empty SRT, or WebVTT's header alone."""
    if format == "vtt":
        blocks = ["WEBVTT\n"]
        blocks += [_block(cue, ".", [line.translate(_VTT_SIGNS) for line in cue.lines]) for cue in cues]
    else:
        blocks = [
            f"{number}\n{_block(cue, ',', [line.translate(_SRT_SIGNS) for line in cue.lines])}"
            for number, cue in enumerate(cues, 1)
        ]
    return "\n".join(blocks)


def _block(cue: Cue, mark: str, lines: Sequence[str]) -> str:
    return f"{clock(cue.start_ms, mark)} --> {clock(cue.end_ms, mark)}\n" + "".join(
        f"{line}\n" for line in lines
    )


def clock(time_ms: int, mark: str) -> str:
    """Hours have two digits, or as many as they need."""
    minutes, rest_ms = divmod(time_ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest_ms // 1000:02d}{mark}{rest_ms % 1000:03d}"


def _pieces(scenes: Iterable[Sequence[Mapping[str, Any]]]) -> Iterator[_Piece]:
    last_ms = 0
    for segments in scenes:
        believed = [segment for segment in segments if not segment.get("rejected")]
        for place, segment in enumerate(believed):
            # The last one of a scene may go on in the next.
            is_whole = place + 1 < len(believed)
            spoken = segment["text"]
            words = segment["words"] or [segment]
            at = 0
            for number, word in enumerate(words):
                text = word["text"].strip()
                found = spoken.find(text, at)
                glued = number > 0 and found == at
                at = at if found < 0 else found + len(text)
                start_ms = max(last_ms, round(word["start_s"] * 1000))
                end_ms = max(start_ms, round(word["end_s"] * 1000))
                is_last = is_whole and number + 1 == len(words)
                for piece in _divide(text, start_ms, end_ms, glued, is_last):
                    last_ms = piece.start_ms
                    yield piece


def _divide(text: str, start_ms: int, end_ms: int, glued: bool, is_last: bool) -> list[_Piece]:
    """The pieces of one word, or of a segment without words; time is shared by width."""
    parts: list[tuple[str, int, bool]] = []
    for number, word in enumerate(_clean(text).split()):
        for first, (part, width) in enumerate(_chop(word)):
            parts.append((part, width, glued if number == first == 0 else first > 0))
    total = sum(width for _, width, _ in parts)
    pieces, before = [], 0
    for number, (part, width, is_glued) in enumerate(parts):
        is_end = is_last and number + 1 == len(parts)
        pieces.append(
            _Piece(
                start_ms=start_ms + (end_ms - start_ms) * before // total,
                end_ms=start_ms + (end_ms - start_ms) * (before + width) // total,
                text=part,
                width=width,
                glued=is_glued,
                is_end=is_end or part.rstrip(_CLOSING).endswith(tuple(_SENTENCE_ENDS)),
            )
        )
        before += width
    return pieces


def _clean(text: str) -> str:
    """Control characters become spaces, halves of surrogate pairs the sign for what can't be shown."""
    if text.isprintable():
        return text
    return "".join(_SHOWN.get(unicodedata.category(sign), sign) for sign in text)


_SHOWN = {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "\ufffd"}


def _chop(word: str) -> Iterator[tuple[str, int]]:
    """A word in parts that fit on a line, each with its width."""
    first, width = 0, 0
    for place, sign in enumerate(word):
        columns = 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        if width + columns > MAX_LINE:
            yield word[first:place], width
            first, width = place, 0
        width += columns
    yield word[first:], width


def _group(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Fill cues until a pause, a sentence's end or a limit."""
    group: list[_Piece] = []
    for piece in pieces:
        if group and _parts(group, piece):
            yield group
            group = []
        while group and not _fits([*group, piece]):
            end = _natural_end(group)
            yield group[:end]
            group = group[end:]
        group.append(piece)
    if group:
        yield group


def _parts(group: Sequence[_Piece], piece: _Piece) -> bool:
    if piece.start_ms - group[-1].end_ms >= PAUSE_MS:
        return True
    return group[-1].is_end and piece.start_ms - group[0].start_ms >= MIN_MS


def _natural_end(group: Sequence[_Piece]) -> int:
    """How many pieces of a full cue to show: up to a sentence's or clause's end in its second half, else all."""
    for count in range(len(group), len(group) // 2, -1):
        last = group[count - 1]
        if last.is_end or last.text.rstrip(_CLOSING).endswith(tuple(_CLAUSE_ENDS)):
            return count
    return len(group)


def _lengthen(groups: Sequence[list[_Piece]]) -> list[list[_Piece]]:
    """Join what would be shown for less than a second with a neighbour, where both fit into one cue."""
    joined: list[list[_Piece]] = []
    for group in groups:
        if joined and group[0].start_ms - joined[-1][0].start_ms < MIN_MS:
            if _fits([*joined[-1], *group]):
                joined[-1] = [*joined[-1], *group]
                continue
            if len(joined) > 1 and _fits([*joined[-2], *joined[-1]]):
                joined[-2:] = [[*joined[-2], *joined[-1]]]
        joined.append(group)
    return joined


def _fits(group: Sequence[_Piece]) -> bool:
    return group[-1].end_ms - group[0].start_ms <= MAX_MS and _lay_out(group) is not None


def _lay_out(group: Sequence[_Piece]) -> tuple[str, ...] | None:
    """One line, or two of about the same length; None: it doesn't fit."""
    # ends[n]: width of the first n pieces in a row; the space before a piece is not part of a line it begins.
    ends: list[int] = [0]
    starts: list[int] = []
    for piece in group:
        starts.append(ends[-1] + (0 if piece.glued or not starts else 1))
        ends.append(starts[-1] + piece.width)
    if ends[-1] <= MAX_LINE:
        return (_join(group),)
    widths = [(max(ends[place], ends[-1] - starts[place]), place) for place in range(1, len(group))]
    width, place = min(widths, default=(MAX_LINE + 1, 0))
    return None if width > MAX_LINE else (_join(group[:place]), _join(group[place:]))


def _join(pieces: Sequence[_Piece]) -> str:
    return "".join(
        piece.text if piece.glued or not number else f" {piece.text}" for number, piece in enumerate(pieces)
    )
