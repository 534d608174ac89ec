"""What is made of what an engine hears: order of times, loops, verdicts, languages, the search for a better result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from shared.errors import ModelFailure
from tests.contracts.candidates import SAMPLES, read_audio
from worker.models.asr import Transcript
from worker.models.base import SAMPLE_RATE_HZ, Float32
from worker.models.catalog import load_catalog
from worker.models.providers.asr_windows import (
    MAX_WINDOW_S,
    HeardSegment,
    HeardWord,
    WhisperBase,
    find_loops,
    judge,
    place,
    put_in_order,
)
from worker.models.spec import ModelSpec

SURE, UNSURE = -0.2, -1.5


def said(
    text: str, *, start_s: float = 0.0, logprob: float = SURE, no_speech: float = 0.0, ratio: float = 1.0
) -> HeardSegment:
    """A segment of one word a second."""
    words = tuple(
        HeardWord(f" {word}", start_s + index, start_s + index + 0.9, 0.9)
        for index, word in enumerate(text.split())
    )
    return HeardSegment(words, logprob, no_speech, ratio)


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("", ""),
        ("no no no", ""),
        ("no " * 7, ""),
        ("no " * 8, "no " * 8),
        ("I said no, No! NO no. no no no no to him", "no, No! NO no. no no no no"),
        ("go on go on go on", ""),
        ("go on go on go on go on", "go on go on go on go on"),
        ("well I thank you very much thank you very much thank you very much thank you very much sir",
         "thank you very much thank you very much thank you very much thank you very much"),
        ("one two three four five six seven eight nine ten", ""),
    ],
)  # fmt: skip
def test_loops_are_found_from_their_first_time_on(text: str, looped: str) -> None:
    segment = said(text)
    bare = ["".join(c for c in word.text.lower() if c.isalnum()) for word in segment.words]
    found = [word for word, inside in zip(text.split(), find_loops(bare), strict=True) if inside]
    assert found == looped.split()


@given(st.lists(st.sampled_from("ab"), max_size=40))
def test_a_loop_is_long_enough_and_marks_no_more_than_there_is(words: list[str]) -> None:
    found = find_loops(words)
    assert len(found) == len(words)
    assert not any(found) or sum(found) >= 8


@pytest.mark.parametrize(
    ("segment", "verdict"),
    [
        (said("fine"), None),
        (said("fine", no_speech=0.9), None),
        (said("fine", logprob=UNSURE, no_speech=0.9), "no speech"),
        (said("fine", logprob=UNSURE, no_speech=0.5), "low confidence"),
        (said("fine", ratio=2.5), "repetition"),
        (said("la " * 9), "repetition"),
        (said("la " * 8 + "and nine more words so that it is not all"), None),
    ],
)
def test_a_segment_is_judged_by_what_the_engine_says(segment: HeardSegment, verdict: str | None) -> None:
    assert judge([segment]) == [verdict]


def test_a_loop_over_several_segments_is_seen() -> None:
    assert judge([said("Thank you."), said("Good night."), *[said("Bye bye.")] * 4]) == [
        None, None, "repetition", "repetition", "repetition", "repetition",
    ]  # fmt: skip


@given(st.lists(st.tuples(st.floats(-5, 40), st.floats(-5, 40)), max_size=60), st.floats(0.25, 30))
def test_times_are_put_in_order_inside_the_window(spans: list[tuple[float, float]], length_s: float) -> None:
    ordered = put_in_order(spans, length_s)
    assert len(ordered) == len(spans)
    before_s = 0.0
    for start_s, end_s in ordered:
        assert before_s <= start_s < end_s
        before_s = end_s
    assert before_s <= length_s + 1e-9


def test_times_that_are_in_order_stay() -> None:
    spans = [(0.0, 0.5), (0.5, 0.9), (2.0, 2.02), (29.0, 30.0)]
    assert put_in_order(spans, 30.0) == spans


def test_words_without_a_space_join_the_word_before_and_a_pause_ends_a_segment() -> None:
    words = (
        HeardWord(" A", 0.0, 0.2, 0.9),
        HeardWord(" well", 0.2, 0.5, 0.9),
        HeardWord("-known", 0.5, 0.8, 0.4),
        HeardWord("  ", 0.8, 0.8, 0.9),
        HeardWord(" ship", 2.1, 2.4, 1.2),
    )
    first, second = place([HeardSegment(words, SURE, 0, 1)], [None], "en", 100.0, 5.0)
    assert [(word.text, word.start_s, word.end_s, word.probability) for word in first.words] == [
        ("A", 100.0, 100.2, 0.9),
        ("well-known", 100.2, 100.8, 0.4),
    ]
    assert (first.text, first.start_s, first.end_s) == ("A well-known", 100.0, 100.8)
    assert (second.text, second.start_s, second.words[0].probability) == ("ship", 102.1, 1.0)
    (japanese,) = place([HeardSegment(words[1:3], SURE, 0, 1)], [None], "ja", 0.0, 5.0)
    assert [word.text for word in japanese.words] == ["well", "-known"]


class Engine(WhisperBase):
    """Hears what the test says, so that what is asked of an engine can be seen; the VAD is real."""

    def __init__(self, **options: Any) -> None:
        silero = "package:silero_vad/data/silero_vad.jit"
        sums = {silero: load_catalog().get("pocketsphinx-en-us").sha256[silero]}
        super().__init__(
            ModelSpec(
                name="engine", family="asr", provider="none", source="path:/", revision="1", licence="none", memory_mb=1,
                sha256=sums, options=options,
            )
        )  # fmt: skip
        self.asked: list[tuple[float, str, int]] = []
        self.detected: list[float] = []
        #: What each width of the beam gives.
        self.answers: dict[int, list[HeardSegment]] = {1: [said("all is well")]}
        #: Language and probability by length of the window in whole seconds; else English.
        self.languages: dict[int, tuple[str, float]] = {}

    def _open(self) -> None:
        """There are no weights."""

    def _languages(self) -> list[str]:
        return ["de", "en", "fr", "jw", "sv"]

    def _run(self, window: Float32, beam: int, **settings: Any) -> Any:
        raise AssertionError("`_decode` is the test's")

    def _decode(self, window: Float32, language: str, beam: int) -> list[HeardSegment]:
        self.asked.append((len(window) / SAMPLE_RATE_HZ, language, beam))
        return self.answers[beam]

    def _detect_language(self, window: Float32) -> tuple[str, float]:
        self.detected.append(len(window) / SAMPLE_RATE_HZ)
        return self.languages.get(len(window) // SAMPLE_RATE_HZ, ("en", 0.99))


@pytest.fixture(scope="module")
def sample() -> Float32:
    return read_audio(SAMPLES / "demo.mp4")


@pytest.fixture
def engine() -> Engine:
    return Engine()


def of_lengths(sample: Float32, *lengths_s: float) -> Float32:
    """Speech of these lengths, 4 s of silence between: the sample's, without its pauses."""
    spoken = np.concatenate(
        [sample[int(a * 16_000) : int(b * 16_000)] for a, b in ((1, 7.5), (9.6, 16.8), (18.7, 25)) * 2]
    )
    silence = np.zeros(4 * SAMPLE_RATE_HZ, np.float32)
    return np.concatenate(
        [piece for length in lengths_s for piece in (silence, spoken[: int(length * SAMPLE_RATE_HZ)])]
        + [silence]
    )


class TestWindows:
    def test_no_window_is_longer_than_the_engine_hears(self, engine: Engine, sample: Float32) -> None:
        steps: list[float] = []
        heard = engine.transcribe(of_lengths(sample, 39, 5), on_step=steps.append)
        lengths = [length for length, _, _ in engine.asked]
        assert len(lengths) == len(heard.segments) >= 3
        assert max(lengths) <= MAX_WINDOW_S and sum(lengths) >= 40
        assert steps == sorted(steps) and steps[-1] == 1.0 and len(steps) > len(lengths)

    def test_nothing_is_asked_about_silence(self, engine: Engine) -> None:
        assert engine.transcribe(np.zeros(160_000, np.float32)) == Transcript(None, ())
        assert engine.asked == engine.detected == []

    def test_short_windows_take_the_language_of_the_longest(self, engine: Engine, sample: Float32) -> None:
        engine.languages = {8: ("de", 0.6)}
        heard = engine.transcribe(of_lengths(sample, 5, 8, 3))
        assert [language for _, language, _ in engine.asked] == ["de"] * 3
        assert heard.language == "de" and len(engine.detected) == 1

    @pytest.mark.parametrize(("probability", "expected"), [(0.95, "fr"), (0.5, "jw")])
    def test_a_long_window_may_have_its_own_language_if_it_is_clear(
        self, engine: Engine, sample: Float32, probability: float, expected: str
    ) -> None:
        engine.languages = {12: ("fr", probability), 25: ("jw", 0.99)}
        heard = engine.transcribe(of_lengths(sample, 12, 25))
        lengths = [int(length) for length, _, _ in engine.asked]
        assert lengths == [12, 25], "of_lengths no longer gives the windows this test is about"
        assert [language for _, language, _ in engine.asked] == [expected, "jw"]
        # Both say a sentence of the same length; the first of equals counts. Javanese is jv in ISO 639-1.
        assert heard.language == ("fr" if expected == "fr" else "jv")

    def test_a_fixed_language_is_not_detected(self, sample: Float32) -> None:
        engine = Engine(language="sv")
        assert engine.transcribe(of_lengths(sample, 5)).language == "sv"
        assert engine.detected == []


class TestSearchForABetterResult:
    def test_beams_are_widened_until_it_is_believed(self, engine: Engine, sample: Float32) -> None:
        engine.answers = {1: [said("bye " * 20)], 5: [said("goodbye everybody")]}
        heard = engine.transcribe(of_lengths(sample, 5))
        assert [beam for _, _, beam in engine.asked] == [1, 5]
        assert heard.text == "goodbye everybody"

    def test_of_two_that_are_not_believed_the_better_is_kept(self, engine: Engine, sample: Float32) -> None:
        engine.answers = {
            1: [said("bye " * 20)],
            5: [said("it was like this"), said("so so so so so so so so", start_s=4)],
        }
        heard = engine.transcribe(of_lengths(sample, 20))
        assert heard.text == "it was like this"
        assert [segment.rejected for segment in heard.segments] == [None, "repetition"]

    def test_silence_is_not_listened_to_again(self, engine: Engine, sample: Float32) -> None:
        engine.answers = {1: [said("you", logprob=UNSURE, no_speech=0.95)]}
        heard = engine.transcribe(of_lengths(sample, 5))
        assert [segment.rejected for segment in heard.segments] == ["no speech"]
        assert heard.text == "" and heard.language is None
        assert [beam for _, _, beam in engine.asked] == [1]

    def test_what_the_engine_raises_is_a_failure_of_the_model(self, engine: Engine, sample: Float32) -> None:
        engine.answers = {}
        with pytest.raises(ModelFailure, match="engine failed: KeyError"):
            engine.transcribe(of_lengths(sample, 5))
