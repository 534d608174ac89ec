"""Speech recognition by PocketSphinx (US English), for machines with neither a GPU nor a model hub.

Each window of speech is an utterance of its own, given whole (`full_utt`) to a front end that starts again: otherwise a
clip is decoded differently after another clip. A window is at most 10 s long because decoding holds the GIL: nothing else in the
process, such as a heartbeat, runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pocketsphinx import Decoder

from shared.contracts import Segment, Word
from shared.errors import ModelUnavailable
from worker.models.base import SAMPLE_RATE_HZ, Float32
from worker.models.providers.asr_windows import WindowedTranscriber, make_noise, split_at_pauses

MAX_WINDOW_S = 10.0
#: Speech with a shorter silence within shares an utterance: the language model knows more (JFK sample: 4 words of 22
#: wrong, against 6 at 0.6 s).
MAX_GAP_S = 1.2
#: A pause between words that ends a segment.
PAUSE_S = 0.6
PAD_S = 0.25
_FRAMES_PER_S = 100


class PocketSphinxTranscriber(WindowedTranscriber):
    """PocketSphinx behind the Silero VAD. One thread, whatever `threads` says: the decoder uses no more."""

    max_window_s, max_gap_s, pad_s = MAX_WINDOW_S, MAX_GAP_S, PAD_S

    _decoder: Decoder

    def _load(self) -> None:
        torch.set_num_threads(1)
        self._load_vad()
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

    def _warm_up(self) -> None:
        self._transcribe(make_noise(), 0.0, lambda fraction: None)
        self._decode(make_noise())

    def _languages_of(self, windows: Sequence[Float32]) -> Iterator[str]:
        yield from ["en"] * len(windows)

    def _recognise(self, window: Float32, language: str, from_s: float) -> Iterator[Segment]:
        return split_at_pauses(list(self._words(window, from_s)), PAUSE_S)

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
        # Forgets the noise it learned: without this, times and confidences (now and then words) depend on what was
        # decoded before, even with full_utt.
        decoder.reinit_feat()
        decoder.start_utt()
        try:
            decoder.process_raw((window * 32767).astype("<i2").tobytes(), full_utt=True)
        finally:
            decoder.end_utt()
        return decoder
