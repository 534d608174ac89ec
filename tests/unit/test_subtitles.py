"""Subtitles: whatever was said, a file that any reader takes, with cues a person can follow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings, strategies as st

from shared.subtitles import MAX_LINE, MAX_MS, MIN_MS, PAUSE_MS, Cue, SubtitleFormat, make_cues, render

FORMATS: tuple[SubtitleFormat, ...] = ("srt", "vtt")
HOSTILE = (
    "-->", "00:00:01,000 --> 00:00:02,000", "<i>", "</v>", "&amp;", "&", "<", "a\nb", "\r\n\r\n7\r\n", "\x00", "\x1b[31m",
    "\u2028", "\x85", "{\\an8}", "\\N", "WEBVTT", "NOTE x", "STYLE", "42", "\ufeff", "\u202e", "\ud800", " ", "", "🙂" * 60,
    "x" * 500, "今天天气很好", "STYLE\n::cue{}",
)  # fmt: skip


def word(text: str, start_s: float, end_s: float) -> dict[str, Any]:
    return {"text": text, "start_s": start_s, "end_s": end_s, "probability": 1.0}


def segment(*words: dict[str, Any], rejected: str | None = None, text: str | None = None) -> dict[str, Any]:
    return {
        "start_s": words[0]["start_s"],
        "end_s": words[-1]["end_s"],
        "text": " ".join(w["text"] for w in words) if text is None else text,
        "words": list(words),
        "rejected": rejected,
    }


def spoken(text: str, start_s: float = 0.0, each_s: float = 0.4) -> list[dict[str, Any]]:
    """The words of a text, one after the other."""
    return [word(w, start_s + n * each_s, start_s + (n + 1) * each_s) for n, w in enumerate(text.split())]


# --- an independent reader


@dataclass
class Read:
    start_ms: int
    end_ms: int
    lines: list[str]


def time_ms(text: str, mark: str) -> int:
    hours, minutes, seconds, rest = re.fullmatch(
        rf"(\d{{2,}}):([0-5]\d):([0-5]\d){re.escape(mark)}(\d{{3}})", text
    ).groups()  # type: ignore[union-attr]
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(rest)


def read(text: str, format: SubtitleFormat) -> list[Read]:
    """The cues of a file; an assertion fails where it breaks the format's rules."""
    assert "\r" not in text and "\x00" not in text
    text.encode()
    lines = text.split("\n")
    if format == "vtt":
        assert lines[0] == "WEBVTT" and lines[1] == ""
        lines = lines[2:]
    found: list[Read] = []
    for block in "\n".join(lines).split("\n\n"):
        if not block.strip("\n"):
            continue
        rows = block.strip("\n").split("\n")
        if format == "srt":
            assert rows.pop(0) == str(len(found) + 1)
        start, arrow, end = rows.pop(0).split(" ")
        assert arrow == "-->"
        mark = "," if format == "srt" else "."
        assert rows and all(rows)
        for row in rows:
            assert "-->" not in row
            assert not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs") for sign in row)
            if format == "vtt":
                assert "<" not in row and ">" not in row
                assert not re.search(r"&(?!amp;|lt;|gt;)", row)
            else:
                assert not set(row) & set("<>{}\\")
        if format == "vtt":
            rows = [row.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for row in rows]
        found.append(Read(time_ms(start, mark), time_ms(end, mark), rows))
    return found


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)


# --- properties

texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=12), st.text("abc,.?! ", min_size=1, max_size=8),
    st.from_regex(r"[a-z]{1,9}[.,?]?", fullmatch=True),
)  # fmt: skip


@st.composite
def transcripts(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Scenes of segments of words, in the order of time but with odd lengths, gaps and overlaps."""
    now = draw(st.floats(0, 4e5))
    scenes = []
    for _ in range(draw(st.integers(0, 4))):
        segments = []
        for _ in range(draw(st.integers(0, 4))):
            words = []
            for _ in range(draw(st.integers(1, 12))):
                length = draw(st.sampled_from([0.0, 0.01, 0.2, 0.5, 9.0]) | st.floats(0, 2))
                words.append(word(draw(texts), now, now + length))
                now += length * draw(st.sampled_from([0.5, 1, 1])) + draw(st.sampled_from([0, 0, 0.3, 1, 5]))
            rejected = draw(st.sampled_from([None, None, None, "repetition"]))
            found = segment(*words, rejected=rejected)
            if draw(st.booleans()) and draw(st.booleans()):
                found["words"] = []
            segments.append(found)
        scenes.append(segments)
    return scenes


def letters(text: str) -> str:
    """What must come through: no spaces, nothing that can't be shown."""
    return "".join(
        "\ufffd" if unicodedata.category(sign) == "Cs" else sign
        for sign in text
        if not sign.isspace() and unicodedata.category(sign) not in ("Cc", "Zl", "Zp")
    )


@settings(max_examples=300, deadline=None)
@given(scenes=transcripts())
def test_every_believed_word_is_in_one_readable_cue(scenes: list[list[dict[str, Any]]]) -> None:
    cues = make_cues(scenes)
    said = "".join(
        letters(w["text"])
        for segments in scenes
        for found in segments
        if not found["rejected"]
        for w in found["words"] or [found]
    )
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
        assert [(c.start_ms, c.end_ms) for c in found] == [(c.start_ms, c.end_ms) for c in cues]
        if format == "vtt":
            assert [c.lines for c in found] == [list(c.lines) for c in cues]
        else:
            assert [len(c.lines) for c in found] == [len(c.lines) for c in cues]


# --- cases


def test_a_sentence_across_a_cut_is_one_cue() -> None:
    first, second = spoken("the tower was"), spoken("struck by lightning", start_s=1.2)
    (cue,) = make_cues([[segment(*first)], [segment(*second)]])
    assert cue == Cue(0, 2400, ("the tower was struck by lightning",))


def test_a_sentence_that_ended_before_the_cut_is_another_cue() -> None:
    first, second = spoken("The tower was struck."), spoken("Nobody was hurt.", start_s=1.6)
    assert [cue.lines for cue in make_cues([[segment(*first)], [segment(*second)]])] == [
        ("The tower was struck.",),
        ("Nobody was hurt.",),
    ]


def test_what_the_recogniser_parted_within_a_scene_stays_parted() -> None:
    first, second = spoken("the tower was struck"), spoken("nobody was hurt", start_s=1.7)
    assert len(make_cues([[segment(*first), segment(*second)]])) == 2


def test_rejected_segments_are_left_out() -> None:
    believed, rejected = spoken("good morning"), spoken("thanks for watching", start_s=0.9)
    (cue,) = make_cues([[segment(*believed), segment(*rejected, rejected="no speech")]])
    assert cue.lines == ("good morning",)


def test_a_pause_ends_a_cue_and_a_short_cue_is_held_for_a_second() -> None:
    pause_s = PAUSE_MS / 1000
    said = [word("Yes", 1.0, 1.2), word("no", 1.2 + pause_s, 1.4 + pause_s)]
    cues = make_cues([[segment(*said)]])
    assert [(cue.start_ms, cue.end_ms, cue.lines) for cue in cues] == [
        (1000, 2000, ("Yes",)),
        (2000, 3000, ("no",)),
    ]


def test_a_short_cue_joins_the_next_when_there_is_no_time_for_it() -> None:
    said = [word("Yes", 1.0, 1.05), word("no", 1.9, 2.5)]
    (cue,) = make_cues([[segment(*said)]])
    assert cue.lines == ("Yes no",)


def test_two_lines_are_about_as_long_and_end_at_a_clause() -> None:
    text = "One small step for a man, one giant leap for mankind, and then they walked about on the moon for hours."
    cues = make_cues([[segment(*spoken(text, each_s=0.25))]])
    assert [cue.lines for cue in cues] == [
        ("One small step for a man,", "one giant leap for mankind,"),
        ("and then they walked about", "on the moon for hours."),
    ]


def test_words_without_spaces_stay_so() -> None:
    said = [word(sign, n * 0.3, (n + 1) * 0.3) for n, sign in enumerate("今天天气很好我们去公园")]
    (cue,) = make_cues([[segment(*said, text="今天天气很好我们去公园")]])
    assert cue.lines == ("今天天气很好我们去公园",)


def test_a_segment_without_words_is_shared_out_by_length() -> None:
    found = {"start_s": 0.0, "end_s": 20.0, "text": "word " * 40, "words": [], "rejected": None}
    cues = make_cues([[found]])
    assert len(cues) >= 3
    assert cues[-1].end_ms == 20_000
    assert all(cue.end_ms - cue.start_ms > 3000 for cue in cues)


@pytest.mark.parametrize(
    ("time_s", "srt", "vtt"),
    [
        (0.0, "00:00:00,000", "00:00:00.000"),
        (3599.9996, "01:00:00,000", "01:00:00.000"),
        (59.9994, "00:00:59,999", "00:00:59.999"),
        (100 * 3600, "100:00:00,000", "100:00:00.000"),
    ],
)
def test_times_of_any_length(time_s: float, srt: str, vtt: str) -> None:
    cues = make_cues([[segment(word("x", time_s, time_s + 2))]])
    assert f"{srt} --> " in render(cues, "srt")
    assert f"{vtt} --> " in render(cues, "vtt")


def test_signs_of_markup() -> None:
    cues = [Cue(0, 1000, ("a --> b <i>&amp;</i>", "{\\an8}x"))]
    assert render(cues, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na --&gt; b &lt;i&gt;&amp;amp;&lt;/i&gt;\n{\\an8}x\n"
    )
    assert render(cues, "srt") == "1\n00:00:00,000 --> 00:00:01,000\na --› b ‹i›&amp;‹/i›\n｛＼an8｝x\n"


def test_no_speech_gives_a_valid_empty_file() -> None:
    assert make_cues([]) == make_cues([[], [segment(word("x", 0, 1), rejected="no speech")]]) == []
    assert render([], "srt") == ""
    assert render([], "vtt") == "WEBVTT\n"


def test_half_a_day_of_speech() -> None:
    """Some MB as JSON, far below what Redis takes; times in order to the end."""
    scenes = [
        [segment(*spoken("and so it goes on, word by word, without an end in sight", n * 6.0))]
        for n in range(7200)
    ]
    cues = make_cues(scenes)
    assert cues[-1].end_ms <= 12 * 3_600_000
    for format in FORMATS:
        text = render(cues, format)
        assert len(read(text, format)) == len(cues) >= 7200
        assert len(json.dumps(text)) < 8 * 2**20


# --- other people's readers


@pytest.fixture(scope="module")
def hostile() -> list[Cue]:
    """A cue for each hostile word, among plain ones."""
    found = []
    for n, text in enumerate(HOSTILE):
        found.append([segment(*spoken(f"number {n} is", n * 10), word(text, n * 10 + 1.2, n * 10 + 3))])
    return make_cues(found)


@pytest.mark.parametrize("format", FORMATS)
def test_ffmpegs_libraries_read_it_back(tmp_path: Path, hostile: list[Cue], format: SubtitleFormat) -> None:
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
        lines = read(render([cue], "srt"), "srt")[0].lines if format == "srt" else list(cue.lines)
        # FFmpeg hands both on in a format of its own, which has escapes for these.
        if not set("".join(lines)) & set("{}\\"):
            assert dialogue == "\n".join(lines)


def test_the_ffmpeg_program_converts_one_into_the_other(tmp_path: Path) -> None:
    ffmpeg = "ffmpeg"
    try:
        subprocess.run([ffmpeg, "-version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no ffmpeg program")
    cues = make_cues(
        [[segment(*spoken("the tower was struck by lightning but nobody was hurt at all", 3.0))]]
    )
    (tmp_path / "a.srt").write_text(render(cues, "srt"))
    command = [ffmpeg, "-v", "error", "-i", str(tmp_path / "a.srt"), str(tmp_path / "b.vtt")]
    assert subprocess.run(command, check=True, capture_output=True).stderr == b""
    # FFmpeg leaves the hour out where it is 0.
    converted = re.sub(r"\b(\d\d:\d\d\.\d{3})", r"00:\1", (tmp_path / "b.vtt").read_text())
    assert read(converted, "vtt") == read(render(cues, "vtt"), "vtt")


def test_it_is_stdlib_only() -> None:
    code = (
        "import sys, shared.subtitles as s\n"
        "assert not {'pydantic', 'numpy', 'sqlalchemy', 'celery'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
