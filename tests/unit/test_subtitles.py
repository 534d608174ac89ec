"""Subtitles: whatever was said, a file that any reader takes, with cues a person can follow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings, strategies as st

from shared.subtitles import MAX_LINE, MAX_MS, MIN_MS, PAUSE_MS, Cue, SubtitleFormat, make_cues, render
from tests.support.fleet import ROOT

FORMATS: tuple[SubtitleFormat, ...] = ("srt", "vtt")
NEVER_SHOWN = ("Cc", "Zl", "Zp")
HOSTILE = (
    "-->", "00:00:01,000 --> 00:00:02,000", "<i>", "</v>", "&amp;", "&", "<", "a\nb", "\r\n\r\n7\r\n", "\x00", "\x1b[31m",
    "\u2028", "\x85", "{\\an8}", "\\N", "WEBVTT", "NOTE x", "STYLE", "42", "\ufeff", "\u202e", "\ud800", " ", "", "🙂" * 60,
    "x" * 500, "今天天气很好", "STYLE\n::cue{}",
)  # fmt: skip


def word(text: str, start_s: float, end_s: float) -> dict[str, Any]:
    return {"text": text, "start_s": start_s, "end_s": end_s, "probability": 1.0}


def segment(*words: dict[str, Any], rejected: str | None = None, text: str | None = None) -> dict[str, Any]:
    span = {"start_s": words[0]["start_s"], "end_s": words[-1]["end_s"]}
    said = " ".join(w["text"] for w in words) if text is None else text
    return {**span, "text": said, "words": list(words), "rejected": rejected}


def spoken(text: str, start_s: float = 0.0, each_s: float = 0.4) -> list[dict[str, Any]]:
    """The words of a text, one after the other."""
    return [word(w, start_s + n * each_s, start_s + (n + 1) * each_s) for n, w in enumerate(text.split())]


def time_ms(text: str, mark: str) -> int:
    found = re.fullmatch(rf"(\d{{2,}}):([0-5]\d):([0-5]\d){re.escape(mark)}(\d{{3}})", text)
    assert found
    hours, minutes, seconds, rest = map(int, found.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def read(text: str, format: SubtitleFormat) -> list[Cue]:
    """The cues of a file; an independent reader, which fails where the file breaks the format's rules."""
    assert "\r" not in text and "\x00" not in text
    text.encode()
    if format == "vtt":
        assert text.startswith("WEBVTT\n")
    found: list[Cue] = []
    for block in filter(None, (block.strip("\n") for block in text.removeprefix("WEBVTT\n").split("\n\n"))):
        rows = block.split("\n")
        if format == "srt":
            assert rows.pop(0) == str(len(found) + 1)
        start, arrow, end = rows.pop(0).split(" ")
        assert arrow == "-->" and rows and all(rows)
        for row in rows:
            assert "-->" not in row
            assert not any(unicodedata.category(sign) in (*NEVER_SHOWN, "Cs") for sign in row)
            if format == "vtt":
                assert not set(row) & set("<>") and not re.search(r"&(?!amp;|lt;|gt;)", row)
            else:
                assert not set(row) & set("<>{}\\")
        if format == "vtt":
            rows = [row.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for row in rows]
        mark = "," if format == "srt" else "."
        found.append(Cue(time_ms(start, mark), time_ms(end, mark), tuple(rows)))
    return found


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)


# --- properties

texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=12), st.text("abc,.?! ", min_size=1, max_size=8),
    st.from_regex(r"[a-z]{1,9}[.,?]?", fullmatch=True),
)  # fmt: skip


LENGTHS_S = st.sampled_from([0.0, 0.01, 0.2, 0.5, 9.0]) | st.floats(0, 2)
#: Text, length, the part of the length after which the next word may begin, and the pause before it, seconds.
WORDS = st.tuples(texts, LENGTHS_S, st.sampled_from([0.5, 1, 1]), st.sampled_from([0, 0, 0.3, 1, 5]))
#: Words, why they are rejected, and whether the segment has them one by one.
SEGMENTS = st.tuples(
    st.lists(WORDS, min_size=1, max_size=12),
    st.sampled_from([None, None, None, "repetition"]),
    st.sampled_from([True, True, True, False]),
)


@st.composite
def transcripts(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Scenes of segments of words, in the order of time but with odd lengths, gaps and overlaps."""
    now = draw(st.floats(0, 4e5))
    scenes = []
    for segments in draw(st.lists(st.lists(SEGMENTS, max_size=4), max_size=4)):
        scenes.append([])
        for drawn, rejected, by_word in segments:
            words = []
            for text, length, part, pause in drawn:
                words.append(word(text, now, now + length))
                now += length * part + pause
            scenes[-1].append(segment(*words, rejected=rejected) | ({} if by_word else {"words": []}))
    return scenes


def letters(text: str) -> str:
    """What must come through: no spaces, nothing that can't be shown."""
    kept = (sign for sign in text if not sign.isspace() and unicodedata.category(sign) not in NEVER_SHOWN)
    return "".join("\ufffd" if unicodedata.category(sign) == "Cs" else sign for sign in kept)


@settings(max_examples=100, deadline=None)
@given(scenes=transcripts())
def test_every_believed_word_is_in_one_readable_cue(scenes: list[list[dict[str, Any]]]) -> None:
    cues = make_cues(scenes)
    believed = [found for segments in scenes for found in segments if not found["rejected"]]
    said = "".join(letters(w["text"]) for found in believed for w in found["words"] or [found])
    assert letters("".join("".join(cue.lines) for cue in cues)) == said
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2
        assert all(line and columns(line) <= MAX_LINE for line in cue.lines)
        assert 0 < cue.end_ms - cue.start_ms <= MAX_MS
    for cue, after in pairwise(cues):
        assert cue.end_ms <= after.start_ms
        if cue.end_ms - cue.start_ms < MIN_MS:
            assert cue.end_ms == after.start_ms or after.start_ms - cue.start_ms < MIN_MS
    for format in FORMATS:
        found = read(render(cues, format), format)
        shapes = [[(c.start_ms, c.end_ms, len(c.lines)) for c in some] for some in (found, cues)]
        assert shapes[0] == shapes[1]
        assert format == "srt" or found == cues


# --- cases

CLAUSES = (
    "One small step for a man, one giant leap for mankind, and then they walked about on the moon for hours."
)
CASES: dict[str, tuple[Any, list[tuple[int, int, tuple[str, ...]]]]] = {
    "a sentence across a cut is one cue": (
        [[segment(*spoken("the tower was"))], [segment(*spoken("struck by lightning", 1.2))]],
        [(0, 2400, ("the tower was struck by lightning",))],
    ),
    "a sentence that ended before the cut is another cue": (
        [[segment(*spoken("The tower was struck."))], [segment(*spoken("Nobody was hurt.", 1.6))]],
        [(0, 1600, ("The tower was struck.",)), (1600, 2800, ("Nobody was hurt.",))],
    ),
    "what the recogniser parted within a scene stays parted": (
        [[segment(*spoken("the tower was struck")), segment(*spoken("nobody was hurt", 1.7))]],
        [(0, 1600, ("the tower was struck",)), (1700, 2900, ("nobody was hurt",))],
    ),
    "rejected segments are left out": (
        [[segment(*spoken("good morning")), segment(*spoken("thanks for all", 0.9), rejected="no speech")]],
        [(0, 1000, ("good morning",))],
    ),
    "a pause ends a cue, and a short cue is held for a second": (
        [[segment(word("Yes", 1.0, 1.2), word("no", 1.2 + PAUSE_MS / 1000, 1.4 + PAUSE_MS / 1000))]],
        [(1000, 2000, ("Yes",)), (2000, 3000, ("no",))],
    ),
    "a short cue joins the next when there is no time for it": (
        [[segment(word("Yes", 1.0, 1.05), word("no", 1.9, 2.5))]],
        [(1000, 2500, ("Yes no",))],
    ),
    "two lines are about as long and end at a clause": (
        [[segment(*spoken(CLAUSES, each_s=0.25))]],
        [
            (0, 2750, ("One small step for a man,", "one giant leap for mankind,")),
            (2750, 5250, ("and then they walked about", "on the moon for hours.")),
        ],
    ),
    "words without spaces stay so": (
        [[segment(*spoken(" ".join("今天天气很好我们去公园"), each_s=0.3), text="今天天气很好我们去公园")]],
        [(0, 3300, ("今天天气很好我们去公园",))],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cues(case: str) -> None:
    scenes, expected = CASES[case]
    assert make_cues(scenes) == [Cue(*cue) for cue in expected]


def test_a_segment_without_words_is_shared_out_by_length() -> None:
    found = {"start_s": 0.0, "end_s": 20.0, "text": "word " * 40, "words": [], "rejected": None}
    cues = make_cues([[found]])
    assert len(cues) >= 3 and cues[-1].end_ms == 20_000
    assert all(cue.end_ms - cue.start_ms > 3000 for cue in cues)


def test_times_of_any_length() -> None:
    times = {0: "00:00:00,000", 3599.9996: "01:00:00,000", 59.9994: "00:00:59,999", 3.6e5: "100:00:00,000"}
    for time_s, shown in times.items():
        cues = make_cues([[segment(word("x", time_s, time_s + 2))]])
        assert f"{shown} --> " in render(cues, "srt")
        assert f"{shown.replace(',', '.')} --> " in render(cues, "vtt")


def test_signs_of_markup_and_no_speech_give_valid_files() -> None:
    cues = [Cue(0, 1000, ("a --> b <i>&amp;</i>", "{\\an8}x"))]
    body = "a --&gt; b &lt;i&gt;&amp;amp;&lt;/i&gt;\n{\\an8}x\n"
    assert render(cues, "vtt") == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n{body}"
    assert render(cues, "srt") == "1\n00:00:00,000 --> 00:00:01,000\na --› b ‹i›&amp;‹/i›\n｛＼an8｝x\n"
    assert make_cues([]) == make_cues([[], [segment(word("x", 0, 1), rejected="no speech")]]) == []
    assert (render([], "srt"), render([], "vtt")) == ("", "WEBVTT\n")


def test_the_last_hour_of_half_a_day_of_speech() -> None:
    """The whole is some MB as JSON, far below what Redis takes; times in order to the end."""
    said = "and so it goes on, word by word, without an end in sight"
    cues = make_cues([[segment(*spoken(said, 11 * 3600 + n * 6.0))] for n in range(600)])
    assert cues[-1].end_ms <= 12 * 3_600_000
    for format in FORMATS:
        text = render(cues, format)
        assert len(read(text, format)) == len(cues) >= 600
        assert 12 * len(json.dumps(text)) < 8 * 2**20


# --- other people's readers


@pytest.mark.parametrize("format", FORMATS)
def test_ffmpegs_libraries_read_it_back(tmp_path: Path, format: SubtitleFormat) -> None:
    """A cue for each hostile word, among plain ones."""
    hostile = make_cues(
        [segment(*spoken(f"number {n} is", n * 10), word(text, n * 10 + 1.2, n * 10 + 3))]
        for n, text in enumerate(HOSTILE)
    )
    path = tmp_path / f"x.{format}"
    path.write_bytes(render(hostile, format).encode())
    shown: list[tuple[int, str]] = []
    with av.open(str(path)) as container:
        for packet in container.demux(subtitles=0):
            if packet.pts is None:
                continue
            assert packet.time_base is not None and packet.duration is not None
            start_ms = round(packet.pts * packet.time_base * 1000)
            for rect in packet.decode():
                shown.append((start_ms, rect.dialogue.decode()))  # type: ignore[union-attr]
    assert [start_ms for start_ms, _ in shown] == [cue.start_ms for cue in hostile]
    for (_, dialogue), cue in zip(shown, hostile, strict=True):
        lines = read(render([cue], format), format)[0].lines
        # FFmpeg hands both on in a format of its own, which has escapes for these.
        if not set("".join(lines)) & set("{}\\"):
            assert dialogue == "\n".join(lines)


def test_it_is_stdlib_only() -> None:
    code = "import sys, shared.subtitles; print(*{'pydantic', 'numpy', 'sqlalchemy', 'celery'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT).split() == []
