"""Words find their scene, across cuts and past the last picture."""

from __future__ import annotations

from typing import Any

import pytest

from db.engine import reading, transact
from db.scenes import scenes_between, words_of, write_scenes, write_transcript
from db.tables import Model, Video

pytestmark = pytest.mark.usefixtures("database")


def word(start_s: float, text: str) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": start_s + 0.2, "text": text, "probability": 1.0}


def segment(*words: dict[str, Any]) -> dict[str, Any]:
    return {
        "start_s": words[0]["start_s"],
        "end_s": words[-1]["end_s"],
        "text": " ".join(w["text"] for w in words),
        "words": list(words),
    }


@pytest.fixture
def video() -> str:
    def write(session: Any) -> None:
        session.add(Video(video_id="v", user_id="u", storage_key="k", run=1))
        session.add(Model(model_id=99, name="m", revision="1", family="asr"))
        session.flush()
        cuts = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
        scenes = [
            {"idx": i, "start_s": a, "end_s": b, "kind": "cut", "keyframes": []}
            for i, (a, b) in enumerate(cuts)
        ]
        write_scenes(session, "v", "u", 1, scenes)
        first = [segment(word(1.5, "one"), word(1.95, "two"), word(2.1, "three"))]
        second = [segment(word(3.8, "four")), segment(word(5.9, "five"), word(6.4, "six"))]
        for part, (start_s, end_s, segments) in enumerate([(0.0, 3.0, first), (3.0, 7.0, second)]):
            write_transcript(
                session, video_id="v", user_id="u", run=1, part=part, start_s=start_s, end_s=end_s,
                language="en", segments=segments, model_id=99,
            )  # fmt: skip

    transact(write)
    return "v"


def said(video_id: str, first_idx: int, last_idx: int) -> list[str]:
    with reading() as session:
        scenes = scenes_between(session, video_id, 1, first_idx, last_idx)
        words = words_of(session, video_id, 1, scenes)
        return [words[scene.scene_id].text if scene.scene_id in words else "" for scene in scenes]


def test_a_word_belongs_to_the_scene_of_its_middle(video: str) -> None:
    assert said(video, 0, 2) == ["one", "two three four", "five six"]


def test_batches_of_scenes_give_the_same_words(video: str) -> None:
    assert [said(video, i, i)[0] for i in range(3)] == said(video, 0, 2)


def test_a_divided_segment_keeps_the_times_of_its_words(video: str) -> None:
    with reading() as session:
        scenes = scenes_between(session, video, 1, 0, 0)
        (words,) = words_of(session, video, 1, scenes).values()
    assert [(piece["start_s"], piece["end_s"]) for piece in words.segments] == [(1.5, 1.7)]
    assert words.language == "en"


def test_a_divided_segment_gets_no_spaces_that_its_language_does_not_have(video: str) -> None:
    signs = [word(1.5 + n * 0.2, sign) for n, sign in enumerate("今天天气好")]

    def write(session: Any) -> None:
        write_transcript(
            session, video_id="v", user_id="u", run=1, part=0, start_s=0.0, end_s=3.0, language="zh",
            segments=[{**segment(*signs), "text": "今天天气好"}], model_id=99,
        )  # fmt: skip

    transact(write)
    assert said(video, 0, 1) == ["今天", "天气好 four"]
