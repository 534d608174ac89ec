"""Transcribes speech in windows: what all recognisers have in common, and what the engines for Whisper have.

Whisper invents words in silence and falls into loops on long audio (Radford et al. 2022, section 4.5). So it is
given windows of speech only, cut at silences by the VAD, each independently. Its words are then judged: a rejected segment is
kept with the reason. Nothing is drawn at random, so the same audio gives the same words. Imports no engine but the VAD's torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from shared.contracts import Segment, Word
from shared.errors import ModelUnavailable
from worker.models.asr import Rejection, Transcriber, Transcript
from worker.models.base import SAMPLE_RATE_HZ, Float32
from worker.models.providers.vad import Vad, plan_windows

#: What Whisper's encoder takes.
MAX_WINDOW_S = 30.0
#: Speech with a shorter silence within shares a window: the encoder's cost is that of 30 s, however short the window.
MAX_GAP_S = 2.0
PAD_S = 0.3
#: A pause between words that ends a segment.
PAUSE_S = 1.0
#: A word lasts at least one step of Whisper's alignment.
MIN_WORD_S = 0.02
#: A window at least this long may be in another language than the one most is spoken in, if the model is this sure.
OWN_LANGUAGE_S, OWN_LANGUAGE_PROBABILITY = 10.0, 0.8

#: openai-whisper's own limits for a decoding that failed, and for silence.
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
MAX_NO_SPEECH_PROBABILITY = 0.6
#: A phrase of up to this many words, repeated this often in a row, with this many words in total, is a loop. Catches what is too short to compress.
LOOP_PHRASE_WORDS, LOOP_TIMES, LOOP_WORDS = 8, 4, 8
#: Widths of the beam, one after the other while the result is rejected: greedy first; beam search loops less.
BEAMS = (1, 5)

#: Share of the progress the VAD stands for; it takes about a twentieth of the time.
_VAD_SHARE = 0.05
_VAD_WEIGHTS = "package:silero_vad/data/silero_vad.jit"
#: Languages written without spaces between words.
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
#: Whisper's code of a language -> ISO 639-1's, where they differ.
_ISO_CODES = {"jw": "jv"}


class WindowedTranscriber(Transcriber):
    """Transcribes windows of speech, found by the Silero VAD, one by one."""

    max_window_s: ClassVar[float] = MAX_WINDOW_S
    max_gap_s: ClassVar[float] = MAX_GAP_S
    pad_s: ClassVar[float] = PAD_S

    _vad: Vad

    @abstractmethod
    def _languages_of(self, windows: Sequence[Float32]) -> Iterator[str]:
        """The engine's code of the language spoken in each window."""

    @abstractmethod
    def _recognise(self, window: Float32, language: str, from_s: float) -> Iterator[Segment]:
        """The segments of one window, float32 [N] of at most `max_window_s`, which starts at `from_s` in the video."""

    def _load_vad(self) -> None:
        self._vad = Vad(self._file(_VAD_WEIGHTS))

    def _transcribe(self, audio: Float32, offset_s: float, on_step: Callable[[float], None]) -> Transcript:
        audio = np.clip(audio, -1.0, 1.0)
        probabilities = self._vad.probabilities(audio, lambda done: on_step(done * _VAD_SHARE))
        windows = plan_windows(
            probabilities,
            max_window_s=self.max_window_s,
            max_gap_s=self.max_gap_s,
            pad_s=self.pad_s,
            samples=len(audio),
        )
        if not windows:
            on_step(1.0)
        total = sum(end - start for start, end in windows)
        languages = self._languages_of([audio[start:end] for start, end in windows])
        segments: list[Segment] = []
        spoken_s: dict[str, float] = defaultdict(float)
        done = 0
        for start, end in windows:
            with self._engine():
                language = next(languages)
                from_s = offset_s + start / SAMPLE_RATE_HZ
                found = list(self._recognise(audio[start:end], language, from_s))
            for segment in found:
                if segment.rejected is None:
                    spoken_s[_ISO_CODES.get(language, language)] += segment.end_s - segment.start_s
            segments += found
            done += end - start
            on_step(_VAD_SHARE + (1 - _VAD_SHARE) * done / total)
        return Transcript(max(spoken_s, key=lambda code: spoken_s[code], default=None), tuple(segments))


def make_noise() -> Float32:
    """One second of noise to warm up with, float32 [16000]."""
    return np.random.default_rng(0).normal(0, 0.05, SAMPLE_RATE_HZ).astype(np.float32)


class SpeechOptions(BaseModel):
    """The catalogue's `options` of a Whisper; a provider may know more."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    #: Translate to English instead of transcribing.
    translate: bool = False
    #: Whisper's code of the language spoken; None: detected.
    language: str | None = None


@dataclass(frozen=True, slots=True)
class HeardWord:
    """A word as the engine gives it."""

    #: With the space before it, if it has one: without, it belongs to the word before.
    text: str
    #: Seconds from the window's start; may overlap, be empty, or lie outside.
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class HeardSegment:
    """A segment as the engine gives it, with the engine's own measures of quality."""

    words: tuple[HeardWord, ...]
    #: Mean logarithm of its tokens' probabilities.
    avg_logprob: float
    no_speech_prob: float
    #: Length of the text over its length when compressed by zlib.
    compression_ratio: float


class WhisperBase(WindowedTranscriber):
    """A Whisper in some engine: its options, the language of each window, wider beams for what is rejected."""

    #: The engine's object, for one or several languages.
    _model: Any
    #: Those of the catalogue, once it is loaded; a provider sets the class.
    _options = SpeechOptions()

    @abstractmethod
    def _open(self) -> Any:
        """The engine's object with its weights."""

    @abstractmethod
    def _languages(self) -> Collection[str]:
        """Whisper's codes of the languages the model knows; `en` alone: the model is English only."""

    @abstractmethod
    def _run(self, window: Float32, beam: int, **settings: Any) -> Iterable[Mapping[str, Any]]:
        """The segments of one window as openai-whisper's `transcribe` gives them; `beam` 1 is greedy."""

    @abstractmethod
    def _detect_language(self, window: Float32) -> tuple[str, float]:
        """Whisper's code of the language spoken in a window, and its probability."""

    def _checkpoint_name(self) -> str:
        """What tells a turbo, which was not trained to translate."""
        return self.spec.name

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        self._options = self.spec.read_options(type(self._options))
        self._load_vad()
        self._model = self._open()
        language, languages = self._options.language, self._languages()
        if language is not None and language not in languages:
            raise ModelUnavailable(
                f"Model {self.spec.name} does not know the language {language!r} of its options; give a code such as en or "
                "de in models.yaml, or null to detect it"
            )
        if self._options.translate and (len(languages) == 1 or "turbo" in self._checkpoint_name()):
            raise ModelUnavailable(
                f"Model {self.spec.name} can't translate: it was not trained to; set translate: false in models.yaml, or "
                "choose another model"
            )

    def _warm_up(self) -> None:
        self._transcribe(make_noise(), 0.0, lambda fraction: None)
        self._decode(make_noise(), "en", 1)

    def _languages_of(self, windows: Sequence[Float32]) -> Iterator[str]:
        """The language of each window: that of the longest, which has most to tell it by, unless the model is sure that a
        long one is in another."""
        fixed = "en" if len(self._languages()) == 1 else self._options.language
        if fixed is not None:
            yield from [fixed] * len(windows)
            return
        longest = max(range(len(windows)), key=lambda index: len(windows[index]))
        main = self._detect_language(windows[longest])[0]
        for index, window in enumerate(windows):
            if index == longest or len(window) < OWN_LANGUAGE_S * SAMPLE_RATE_HZ:
                yield main
                continue
            language, probability = self._detect_language(window)
            yield language if probability >= OWN_LANGUAGE_PROBABILITY else main

    def _recognise(self, window: Float32, language: str, from_s: float) -> Iterator[Segment]:
        """Decode with wider and wider beams until nothing is rejected; else the best result, the first of equals."""
        results = []
        for beam in BEAMS:
            heard = self._decode(window, language, beam)
            verdicts = judge(heard)
            results.append((_failed_words(heard, verdicts), heard, verdicts))
            if not results[-1][0]:
                break
        _, heard, verdicts = min(results, key=lambda result: result[0])
        return place(heard, verdicts, language, from_s, len(window) / SAMPLE_RATE_HZ)

    def _decode(self, window: Float32, language: str, beam: int) -> list[HeardSegment]:
        found = self._run(
            window,
            beam,
            language=language,
            task="translate" if self._options.translate else "transcribe",
            temperature=0.0,
            condition_on_previous_text=False,
            # Silence is judged with the rest, not left out.
            no_speech_threshold=None,
            word_timestamps=True,
        )
        return [
            HeardSegment(
                tuple(
                    HeardWord(word["word"], *(float(word[key]) for key in ("start", "end", "probability")))
                    for word in segment["words"] or ()
                ),
                *(segment[key] for key in ("avg_logprob", "no_speech_prob", "compression_ratio")),
            )
            for segment in found
        ]


def judge(segments: Sequence[HeardSegment]) -> list[Rejection | None]:
    """Why each segment of a window is not to be believed; None: it is.

    Source of the rules: openai-whisper's `transcribe` (its thresholds), which drops silence and keeps the rest.
    """
    words = [_bare(word.text) for segment in segments for word in segment.words]
    looped = find_loops(words)
    verdicts: list[Rejection | None] = []
    first = 0
    for segment in segments:
        inside = sum(looped[first : first + len(segment.words)])
        first += len(segment.words)
        unsure = segment.avg_logprob < MIN_AVG_LOGPROB
        if unsure and segment.no_speech_prob > MAX_NO_SPEECH_PROBABILITY:
            verdicts.append("no speech")
        elif segment.compression_ratio > MAX_COMPRESSION_RATIO or 2 * inside > len(segment.words):
            verdicts.append("repetition")
        else:
            verdicts.append("low confidence" if unsure else None)
    return verdicts


def find_loops(words: Sequence[str]) -> list[bool]:
    """Which words are part of a repeated phrase, its first occurrence included."""
    looped = [False] * len(words)
    for length in range(1, LOOP_PHRASE_WORDS + 1):
        same = 0
        for index in range(length, len(words) + 1):
            if index < len(words) and words[index] == words[index - length]:
                same += 1
                continue
            run = same + length
            if same and run >= LOOP_WORDS and run >= LOOP_TIMES * length:
                looped[index - run : index] = [True] * run
            same = 0
    return looped


def place(
    heard: Sequence[HeardSegment],
    verdicts: Sequence[Rejection | None],
    language: str,
    from_s: float,
    length_s: float,
) -> Iterator[Segment]:
    """A window's words on the video's clock: in order, inside the window, none of them empty; a long pause ends a segment.

    Args:
        from_s: where the window starts; `length_s`: how long it is.
    """
    whole = [_whole_words(segment.words, spaced=language not in _UNSPACED) for segment in heard]
    spans = iter(put_in_order([(word.start_s, word.end_s) for words in whole for word in words], length_s))
    for words, verdict in zip(whole, verdicts, strict=True):
        placed: list[Word] = []
        for word in words:
            start_s, end_s = (round(from_s + time_s, 4) for time_s in next(spans))
            probability = min(1.0, max(0.0, word.probability))
            placed.append(Word(start_s=start_s, end_s=end_s, text=word.text, probability=probability))
        yield from split_at_pauses(placed, PAUSE_S, verdict)


def split_at_pauses(
    words: Sequence[Word], pause_s: float, rejected: Rejection | None = None
) -> Iterator[Segment]:
    """Segments of words in order of time; a silence longer than `pause_s` ends a segment."""
    ends = [
        index for index, word in enumerate(words) if index and word.start_s - words[index - 1].end_s > pause_s
    ]
    for first, end in pairwise([0, *ends, len(words)]):
        spoken = tuple(words[first:end])
        if spoken:
            text = " ".join(word.text for word in spoken)
            start_s, end_s = spoken[0].start_s, spoken[-1].end_s
            yield Segment(start_s=start_s, end_s=end_s, text=text, words=spoken, rejected=rejected)


def put_in_order(spans: Sequence[tuple[float, float]], length_s: float) -> list[tuple[float, float]]:
    """Move spans as little as it takes for them to follow each other within 0..length_s, each at least `MIN_WORD_S` long.

    Shorter only where they would not fit in otherwise.
    """
    least_s = min(MIN_WORD_S, length_s / max(1, len(spans)))
    ordered: list[tuple[float, float]] = []
    after_s = 0.0
    for start_s, end_s in spans:
        start_s = max(float(start_s), after_s)
        after_s = max(float(end_s), start_s + least_s)
        ordered.append((start_s, after_s))
    before_s = length_s
    for index in reversed(range(len(ordered))):
        end_s = min(ordered[index][1], before_s)
        before_s = max(0.0, min(ordered[index][0], end_s - least_s))
        ordered[index] = (before_s, end_s)
    return ordered


def _failed_words(heard: Sequence[HeardSegment], verdicts: Sequence[Rejection | None]) -> float:
    """Which share of the words another attempt may do better. Silence stays silence, however hard one listens."""
    again = [verdict in ("repetition", "low confidence") for verdict in verdicts]
    words = [len(segment.words) for segment in heard]
    return sum(count for count, failed in zip(words, again, strict=True) if failed) / max(1, sum(words))


def _whole_words(words: Sequence[HeardWord], *, spaced: bool) -> list[HeardWord]:
    """Without blanks; what has no space before it joins the word before it ("well", "-known")."""
    whole: list[HeardWord] = []
    for word in words:
        text = " ".join(word.text.split())
        if not text:
            continue
        if whole and spaced and not word.text[0].isspace():
            last = whole[-1]
            whole[-1] = HeardWord(
                last.text + text,
                last.start_s,
                max(last.end_s, word.end_s),
                min(last.probability, word.probability),
            )
        else:
            whole.append(HeardWord(text, word.start_s, word.end_s, word.probability))
    return whole


def _bare(text: str) -> str:
    """A word as it sounds: "No," and "no" are the same."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())
