"""Words find their scene, across cuts and past the last picture."""

from __future__ import annotations

import pytest

from db.engine import reading
from db.scenes import words_of
from tests.support.films import cut, say, scenes, segment, word

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _video(database: str) -> None:
    """Three scenes of 2 s."""
    cut([], [], [], length_s=2.0)
    say(1, 0, 0.0, 3.0, segment(word(1.5, "one"), word(1.95, "two"), word(2.1, "three")))
    say(1, 1, 3.0, 7.0, segment(word(3.8, "four")), segment(word(5.9, "five"), word(6.4, "six")))


def said(first_idx: int, last_idx: int) -> list[str]:
    found = scenes(first_idx, last_idx)
    with reading() as session:
        words = words_of(session, "v", 1, found)
    return [words[scene.scene_id].text if scene.scene_id in words else "" for scene in found]


def test_a_word_belongs_to_the_scene_of_its_middle() -> None:
    assert said(0, 2) == ["one", "two three four", "five six"]
    assert [said(i, i)[0] for i in range(3)] == said(0, 2), "also in other batches"


def test_a_divided_segment_keeps_the_times_of_its_words() -> None:
    with reading() as session:
        (words,) = words_of(session, "v", 1, scenes(0, 0)).values()
    assert [(piece["start_s"], piece["end_s"]) for piece in words.segments] == [(1.5, 1.7)]
    assert words.language == "en"


def test_a_divided_segment_gets_no_spaces_that_its_language_does_not_have() -> None:
    signs = [word(1.5 + n * 0.2, sign) for n, sign in enumerate("今天天气好")]
    say(1, 0, 0.0, 3.0, segment(*signs, text="今天天气好"), language="zh")
    assert said(0, 1) == ["今天", "天气好 four"]
