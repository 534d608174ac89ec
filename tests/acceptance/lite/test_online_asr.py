"""Transcription by bare task name, answered by a node of profile `lite`."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from celery import Celery

from shared import errors
from shared.contracts import TranscribedAudio
from tests.contracts.candidates import sample_words
from tests.support.clips import Shot, make_clip
from tests.support.fleet import Fleet

TASK, QUEUE = "tasks.asr.transcribe", "asr.online"


@pytest.fixture(scope="module")
def key(fleet: Fleet, sample: Path) -> str:
    return fleet.upload(sample, "sample")


def send(outside: Celery, **payload: Any) -> Any:
    sent = outside.send_task(TASK, kwargs=payload, queue=QUEUE)
    try:
        return sent.get(timeout=90)
    finally:
        # Its end would unsubscribe, after Redis has gone.
        sent.backend = None


def ask(outside: Celery, **payload: Any) -> TranscribedAudio:
    return TranscribedAudio.model_validate_json(json.dumps(send(outside, **payload)))


def refusal(outside: Celery, **payload: Any) -> tuple[type[errors.ScenefleetError], str]:
    """Class and sentence of the error a request is answered with."""
    with pytest.raises(errors.ScenefleetError) as refused:
        send(outside, **payload)
    return type(refused.value), str(refused.value)


def bare(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c in " '").split())


def test_the_words_of_a_stretch_come_back_with_their_times(outside: Celery, key: str) -> None:
    # The second of the sample's scenes.
    start_s, end_s = 8.6, 17.72
    heard = ask(outside, user_id="u1", storage_key=key, start_s=start_s, end_s=end_s)
    assert (heard.model, heard.language) == ("pocketsphinx-en-us", "en") and heard.revision
    assert jiwer.wer(sample_words()[1], bare(heard.text)) < 0.15
    assert heard.text == " ".join(segment.text for segment in heard.segments if segment.rejected is None)
    before_s = start_s
    for segment in heard.segments:
        assert segment.words and segment.start_s == segment.words[0].start_s
        for word in segment.words:
            assert before_s <= word.start_s < word.end_s <= end_s
            before_s = word.end_s


def test_the_client_says_the_same(fleet: Fleet, outside: Celery, key: str) -> None:
    said = fleet.client.transcribe("u1", key, start_s=8.6, end_s=12.0)
    assert said == ask(outside, user_id="u1", storage_key=key, start_s=8.6, end_s=12.0)
    assert "first woman" in bare(said.text)


def test_a_file_of_sound_alone_is_transcribed_to_its_end(
    fleet: Fleet, outside: Celery, tmp_path: Path
) -> None:
    path = tmp_path / "silence.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.zeros(3 * 8000, "<i2").tobytes())
    fleet.storage.put_file("uploads", "uploads/u1/silence.wav", path, "audio/wav")
    heard = ask(outside, user_id="u1", storage_key="uploads/u1/silence.wav")
    assert (heard.text, heard.language, heard.segments) == ("", None, ())


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
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
    outside: Celery, key: str, changes: dict[str, Any], kind: type[errors.ScenefleetError], says: str
) -> None:
    asked = {"user_id": "u1", "storage_key": key, "start_s": 0.0, "end_s": 3.0, **changes}
    found, message = refusal(outside, **{name: value for name, value in asked.items() if value is not ...})
    assert found is kind and says in message, (found, message)
    assert "\n" not in message


def test_a_silent_film_is_refused_and_nothing_is_left_behind(
    fleet: Fleet, outside: Celery, tmp_path: Path, key: str
) -> None:
    path = tmp_path / "silent.mp4"
    make_clip(path, [Shot(seed=1, frames=20)])
    silent = fleet.upload(path, "silent")
    found, message = refusal(outside, user_id="u1", storage_key=silent)
    assert found is errors.BadMedia and message.startswith(f"{silent}: The file has no sound")
    assert ask(outside, user_id="u1", storage_key=key, end_s=4).text
    assert [path for path in (fleet.home / "work").rglob("*") if path.is_file()] == []
