"""Transcription by bare task name, answered by a node of profile `lite`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import pytest

from shared import errors
from shared.contracts import TranscribedAudio
from tests.acceptance.lite.conftest import Ask
from tests.contracts.candidates import sample_words
from tests.support.fleet import Fleet


@pytest.fixture(scope="module")
def key(fleet: Fleet, sample: Path) -> str:
    return fleet.upload(sample, "sample")


@pytest.fixture
def transcribe(ask: Ask) -> Callable[..., TranscribedAudio]:
    return lambda **payload: TranscribedAudio.model_validate_json(
        json.dumps(ask("tasks.asr.transcribe", user_id="u1", **payload))
    )


def bare(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c in " '").split())


def test_the_words_of_a_stretch_come_back_with_their_times(
    fleet: Fleet, transcribe: Callable[..., TranscribedAudio], key: str
) -> None:
    # The second of the sample's scenes.
    start_s, end_s = 8.6, 17.72
    heard = transcribe(storage_key=key, start_s=start_s, end_s=end_s)
    assert (heard.model, heard.language) == ("pocketsphinx-en-us", "en") and heard.revision
    assert jiwer.wer(sample_words()[1], bare(heard.text)) < 0.15
    assert heard.text == " ".join(segment.text for segment in heard.segments if segment.rejected is None)
    before_s = start_s
    for segment in heard.segments:
        assert segment.words and segment.start_s == segment.words[0].start_s
        for word in segment.words:
            assert before_s <= word.start_s < word.end_s <= end_s
            before_s = word.end_s
    stretch = {"start_s": start_s, "end_s": 10.6}
    alone = transcribe(storage_key=key, **stretch)
    assert fleet.client.transcribe("u1", key, **stretch).segments == alone.segments
    several = transcribe(
        sounds=[{"storage_key": key, **stretch}, {"storage_key": key, "start_s": 90}], partial=True
    )
    assert several.sounds is not None and several.sounds[0] is not None and several.sounds[1] is None
    assert several.sounds[0].segments == alone.segments
    assert alone.duration_s == several.sounds[0].duration_s == pytest.approx(2.0, abs=0.1)
    assert several.errors["1"].error_class == "BadMedia"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"end_s": None}, errors.LimitExceeded, "more than 60 s of sound after 0 s"),
        ({"end_s": 61}, errors.InvalidRequest, "start_s=0 to end_s=61 is 61 s of sound"),
        ({"start_s": 5, "end_s": 5}, errors.InvalidRequest, "start_s=5 to end_s=5 is 0 s of sound"),
        ({"start_s": 90, "end_s": 91}, errors.BadMedia, "no sound after 90 s"),
        ({"start_s": -1}, errors.InvalidRequest, "start_s=-1 is not acceptable"),
        ({"storage_key": "uploads/u2/sample/demo.mp4"}, errors.InvalidKey, "is outside 'uploads/u1/'"),
        ({"storage_key": "uploads/u1/../u2/demo.mp4"}, errors.InvalidKey, "it has the part '..'"),
        ({"storage_key": "uploads/u1/nothing.wav"}, errors.ObjectMissing, "nothing.wav"),
        ({"user_id": "u2"}, errors.InvalidKey, "is outside 'uploads/u2/'"),
        ({"language": "en"}, errors.InvalidRequest, "language='en' is not acceptable"),
        ({"storage_key": ...}, errors.InvalidRequest, "storage_key is missing"),
    ],
)  # fmt: skip
def test_what_can_not_be_transcribed_is_refused_in_one_sentence(
    ask: Ask, key: str, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    asked = {"user_id": "u1", "storage_key": key, "start_s": 0.0, "end_s": 3.0, **changes}
    with pytest.raises(error, match=re.escape(says)) as refusal:
        ask("tasks.asr.transcribe", **{name: value for name, value in asked.items() if value is not ...})
    assert type(refusal.value) is error and "\n" not in str(refusal.value)


def test_a_silent_film_is_refused_and_nothing_is_left_behind(
    fleet: Fleet, transcribe: Callable[..., TranscribedAudio], silent: Path, key: str
) -> None:
    without_sound = fleet.upload(silent, "silent")
    with pytest.raises(errors.BadMedia, match=f"^{without_sound}: The file has no sound"):
        transcribe(storage_key=without_sound)
    assert transcribe(storage_key=key, end_s=4).text
    left = [path for path in (fleet.home / "work").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path for path in left if not path.parent.name.startswith("metrics.")] == []
