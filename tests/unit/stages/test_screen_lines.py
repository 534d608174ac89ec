"""Lines of text over the keyframes of a scene: what counts once, what twice, and what is left out."""

from __future__ import annotations

import random

import pytest

from worker.stages import screen_lines
from worker.stages.screen_lines import Box, Reading, differs_by, merge

TITLE: Box = (100, 100, 400, 40)
ELSEWHERE: Box = (100, 500, 400, 40)
EMPTY: Box = (10, 10, 0, 0)


def read(ordinal: int, text: str, box: Box = TITLE, score: float = 0.9) -> Reading:
    return Reading(ordinal, float(ordinal), text, box, score)


def texts(*readings: Reading) -> list[str]:
    return [line.best.text for line in merge(readings)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Rocket launch", "ROCKET LAUNCH", True),
        ("Rocket launch", "Rocketlaunch", True),
        ("Rocket launch!", "Rocket launch", True),
        ("ＲＯＣＫＥＴ", "rocket", True),
        ("Breaking news tonight", "Breaklng news tonight", True),
        ("Chapter 1: introduction", "Chapter 2: introduction", False),
        ("12:41:07", "12:41:08", False),
        ("Obama", "Osama", False),
        ("Rocket launch", "Weather today", False),
        ("Rocket", "Rocket launch", False),
    ],
)
def test_two_texts_at_the_same_place(one: str, other: str, same: bool) -> None:
    assert texts(read(0, one), read(1, other)) == ([one] if same else [one, other])


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([], []),
        (
            [read(0, "Rocket launch delayed"), read(1, "Rocket launch delaved", ELSEWHERE)],
            ["Rocket launch delayed", "Rocket launch delaved"],
        ),
        (
            [read(0, "Rocket launch"), read(1, "Weather today"), read(2, "Rocket launch")],
            ["Rocket launch", "Weather today"],
        ),
        ([read(0, "-----"), read(0, "→ ★", ELSEWHERE), read(1, "...")], []),
        (
            [read(0, "Below", ELSEWHERE), read(0, "Above"), read(1, "Third", (0, 0, 50, 20)), read(1, "Above")],
            ["Below", "Above", "Third"],
        ),
        ([read(0, "Rocket launch", EMPTY), read(1, "Rocket launeh", EMPTY)], ["Rocket launch", "Rocket launeh"]),
    ],
    ids=["nothing", "nearly the same elsewhere", "comes back", "without letters", "order", "boxes without area"],
)  # fmt: skip
def test_lines_of_a_scene(readings: list[Reading], expected: list[str]) -> None:
    assert texts(*readings) == expected


def test_the_surest_reading_names_the_line_and_every_sighting_is_kept() -> None:
    scores = {"Rocket launch delaved": 0.7, "Rocket launch delayed": 0.98, "Roclet launch delayed": 0.8}
    (line,) = merge([read(place, text, score=score) for place, (text, score) in enumerate(scores.items())])
    assert line.best.text == "Rocket launch delayed" and [seen.ordinal for seen in line.seen] == [0, 1, 2]


def test_a_text_that_scrolls_is_one_line() -> None:
    credit = [read(ordinal, "Directed by nobody", (100, 700 - 90 * ordinal, 400, 40)) for ordinal in range(7)]
    (line,) = merge(credit)
    assert len(line.seen) == 7


def test_two_lines_of_one_picture_stay_two() -> None:
    both = [read(0, "Yes"), read(0, "Yes", ELSEWHERE), read(1, "Yes"), read(1, "Yes", ELSEWHERE)]
    lines = merge(both)
    assert [[seen.box for seen in line.seen] for line in lines] == [[TITLE, TITLE], [ELSEWHERE, ELSEWHERE]]


def test_a_scene_keeps_so_many_lines_and_characters() -> None:
    many = [read(0, f"line number {n}", (0, 20 * n, 100, 18)) for n in range(screen_lines.MAX_LINES + 50)]
    assert len(merge(many)) == screen_lines.MAX_LINES
    long = [read(0, f"{n} " + "x" * 3000, (0, 20 * n, 100, 18)) for n in range(10)]
    kept = merge(long)
    assert [line.best.text[0] for line in kept] == ["0", "1", "2"]
    assert sum(len(line.best.text) for line in kept) <= screen_lines.MAX_CHARACTERS


def test_edit_distance_is_levenshteins() -> None:
    def plain(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return plain(a[1:], b[1:])
        return 1 + min(plain(a[1:], b), plain(a, b[1:]), plain(a[1:], b[1:]))

    source = random.Random(3)
    for _ in range(300):
        a, b = ("".join(source.choices("abc", k=source.randrange(7))) for _ in range(2))
        for limit in (0, 1, 3, 9):
            assert differs_by(a, b, limit) == min(plain(a, b), limit + 1)
