"""Speech recognition by PocketSphinx (US English), for machines with neither a GPU nor a model hub.

Each window of speech is an utterance of its own, given whole (`full_utt`) to a front end that starts again: otherwise a
clip is decoded differently after another clip. A window is at most 10 s long because decoding holds the GIL: nothing else in the
process, such as a heartbeat, runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from pocketsphinx import Decoder

from shared.contracts import Segment, Word
from shared.errors import ModelUnavailable
from worker.models.asr import Transcriber, Transcript
from worker.models.base import SAMPLE_RATE_HZ, Float32
from worker.models.providers.vad import Vad, plan_windows

MAX_WINDOW_S = 10.0
#: Speech with a shorter silence within shares an utterance: the language model knows more (JFK sample: 4 words of 22
#: wrong, against 6 at 0.6 s).
MAX_GAP_S = 1.2
#: A pause between words that ends a segment.
PAUSE_S = 0.6
PAD_S = 0.25
#: Share of the progress the VAD stands for; it takes about a twentieth of the time.
_VAD_SHARE = 0.05
_FRAMES_PER_S = 100
_VAD_WEIGHTS = "package:silero_vad/data/silero_vad.jit"


class PocketSphinxTranscriber(Transcriber):
    """PocketSphinx behind the Silero VAD. One thread, whatever `threads` says: the decoder knows no more."""

    _decoder: Decoder | None = None
    _vad: Vad | None = None

    def _load(self) -> None:
        torch.set_num_threads(1)
        self._vad = Vad(self._file(_VAD_WEIGHTS))
        folder = self._file()
        try:
            self._decoder = Decoder(
                hmm=str(folder / "en-us"),
                lm=str(folder / "en-us.lm.bin"),
                dict=str(folder / "cmudict-en-us.dict"),
                samprate=SAMPLE_RATE_HZ,
                frate=_FRAMES_PER_S,
                loglevel="FATAL",
            )
        except RuntimeError as error:
            raise ModelUnavailable(
                f"Model {self.spec.name} can't be loaded from {folder}: PocketSphinx says {error}"
            ) from error

    def _unload(self) -> None:
        self._decoder = self._vad = None

    def _warm_up(self) -> None:
        noise = np.random.default_rng(0).normal(0, 0.05, SAMPLE_RATE_HZ).astype(np.float32)
        self._loaded_vad.probabilities(noise)
        self._decode(noise)

    def _transcribe(self, audio: Float32, offset_s: float, on_step: Callable[[float], None]) -> Transcript:
        audio = np.clip(audio, -1.0, 1.0)
        probabilities = self._loaded_vad.probabilities(audio, lambda done: on_step(done * _VAD_SHARE))
        windows = plan_windows(
            probabilities, max_window_s=MAX_WINDOW_S, max_gap_s=MAX_GAP_S, pad_s=PAD_S, samples=len(audio)
        )
        total = sum(end - start for start, end in windows)
        decoded = 0
        segments: list[Segment] = []
        for start, end in windows:
            with self._engine():
                words = list(self._words(audio[start:end], offset_s + start / SAMPLE_RATE_HZ))
            segments += _split_at_pauses(words)
            decoded += end - start
            on_step(_VAD_SHARE + (1 - _VAD_SHARE) * decoded / total)
        if not windows:
            on_step(1.0)
        return Transcript("en" if segments else None, tuple(segments))

    def _words(self, window: Float32, offset_s: float) -> Iterator[Word]:
        decoder = self._decode(window)
        for found in decoder.seg() or ():
            if found.word[0] in "<[+":  # silence and noise
                continue
            yield Word(
                start_s=round(offset_s + found.start_frame / _FRAMES_PER_S, 3),
                end_s=round(offset_s + (found.end_frame + 1) / _FRAMES_PER_S, 3),
                text=found.word.partition("(")[0],  # "read(2)" is the second pronunciation of "read"
                probability=min(1.0, found.prob),
            )

    def _decode(self, window: Float32) -> Decoder:
        decoder = self._decoder
        assert decoder is not None
        # Forgets the noise it learned: without this, times and confidences (now and then words) depend on what was
        # decoded before, even with full_utt.
        decoder.reinit_feat()
        decoder.start_utt()
        try:
            decoder.process_raw((window * 32767).astype("<i2").tobytes(), full_utt=True)
        finally:
            decoder.end_utt()
        return decoder

    @property
    def _loaded_vad(self) -> Vad:
        assert self._vad is not None
        return self._vad


def _split_at_pauses(words: list[Word]) -> Iterator[Segment]:
    first = 0
    for index, word in enumerate(words):
        last = index + 1 == len(words)
        if last or words[index + 1].start_s - word.end_s > PAUSE_S:
            spoken = tuple(words[first : index + 1])
            yield Segment(
                start_s=spoken[0].start_s,
                end_s=word.end_s,
                text=" ".join(one.text for one in spoken),
                words=spoken,
            )
            first = index + 1
