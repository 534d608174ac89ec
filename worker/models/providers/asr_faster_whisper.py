"""Speech recognition by Whisper in CTranslate2 (faster-whisper): the second engine, faster and smaller, for converted checkpoints.

The engine would download what it does not find beside the weights; everything it looks for is checked before it is asked.
"""

from __future__ import annotations

import json
import logging
from typing import Literal

import numpy as np
import torch
from faster_whisper import WhisperModel

from worker.models.base import SAMPLE_RATE_HZ, Float32
from worker.models.placement import devices
from worker.models.providers.asr_windows import (
    HeardSegment,
    HeardWord,
    SpeechOptions,
    WindowedTranscriber,
    read_options,
    refuse_language,
    refuse_translation,
)
from worker.models.providers.tensors import refused

_WEIGHTS, _TOKENIZER, _PREPROCESSOR = "model.bin", "tokenizer.json", "preprocessor_config.json"
#: What the engine takes where the preprocessor's file is missing.
_DEFAULT_MELS = 80


class FasterWhisperOptions(SpeechOptions):
    #: ``int8``: weights in 8 bits, a quarter of the memory; None: as the device computes.
    compute_type: Literal["int8"] | None = None


class FasterWhisperTranscriber(WindowedTranscriber):
    """A Whisper checkpoint converted for CTranslate2, behind the Silero VAD."""

    _model: WhisperModel | None = None
    _options = FasterWhisperOptions()

    def _load(self) -> None:
        # For the VAD.
        torch.set_num_threads(self.threads)
        # One line a window otherwise.
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        options = self._options = read_options(self.spec, FasterWhisperOptions)
        tokenizer, weights = self._file(_TOKENIZER), self._file(_WEIGHTS)
        self._load_vad()
        self._check_json("config.json")
        self._check_json(_PREPROCESSOR)
        try:
            model = WhisperModel(
                str(weights.parent),
                device=self.placement.device,
                compute_type=self._compute_type(),
                cpu_threads=self.threads,
                local_files_only=True,
            )
        except Exception as error:
            if devices.is_out_of_memory(error):
                raise
            # Anything at all, by the files' bytes; tokenizers raises bare Exceptions, CTranslate2 others.
            blamed, what = (tokenizer, "a tokenizer") if type(error) is Exception else (weights, "weights")
            wanted = f"{what} for faster-whisper on {self.placement.device} in {self._compute_type()}"
            reason = f"{error}".splitlines()[0]
            raise refused(self.spec, blamed, wanted, f"this error: {reason!r}") from error
        mels = model.feat_kwargs.get("feature_size", _DEFAULT_MELS)
        if mels != model.model.n_mels:
            raise refused(
                self.spec,
                weights.with_name(_PREPROCESSOR),
                f"feature_size {model.model.n_mels}, that of {_WEIGHTS},",
                str(mels),
            )
        if model.hf_tokenizer.token_to_id("<|startoftranscript|>") is None:
            raise refused(self.spec, tokenizer, "Whisper's tokens", "no <|startoftranscript|>")
        if options.language is not None and not _knows(model, options.language):
            raise refuse_language(self.spec, options.language)
        if options.translate and (not model.model.is_multilingual or "turbo" in self.spec.name):
            raise refuse_translation(self.spec, "it was not trained to")
        self._model = model

    def _unload(self) -> None:
        if self._model is not None:
            self._model.model.unload_model()
        self._model = self._vad = None

    def _warm_up(self) -> None:
        noise = np.random.default_rng(0).normal(0, 0.05, SAMPLE_RATE_HZ).astype(np.float32)
        self._transcribe(noise, 0.0, lambda fraction: None)
        self._decode(noise, "en", 1)

    def _decode(self, window: Float32, language: str, beam: int) -> list[HeardSegment]:
        found, _ = self._engine_model.transcribe(
            window,
            language=language,
            task="translate" if self._options.translate else "transcribe",
            temperature=0.0,
            beam_size=beam,
            condition_on_previous_text=False,
            # Silence is judged with the rest, not left out.
            no_speech_threshold=None,
            word_timestamps=True,
            vad_filter=False,
        )
        # The engine works while its result is gone through, and raises there.
        return [
            HeardSegment(
                tuple(
                    HeardWord(word.word, float(word.start), float(word.end), float(word.probability))
                    for word in segment.words or ()
                ),
                segment.avg_logprob,
                segment.no_speech_prob,
                segment.compression_ratio,
            )
            for segment in found
        ]

    def _detect_language(self, window: Float32) -> tuple[str, float]:
        language, probability, _ = self._engine_model.detect_language(window)
        return language, float(probability)

    def _fixed_language(self) -> str | None:
        return self._options.language if self._engine_model.model.is_multilingual else "en"

    def _held_bytes(self) -> int:
        """On a GPU, what is taken of the whole of it: torch does not see what CTranslate2 takes."""
        if self.placement.device != "cuda":
            return super()._held_bytes()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def _check_json(self, file: str) -> None:
        """Before the engine, which says of neither file what is wrong with it."""
        path = self._file(_WEIGHTS).with_name(file)
        if not path.exists():
            return
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise refused(self.spec, path, "JSON", f"something else ({error})") from error

    def _compute_type(self) -> str:
        """CTranslate2's name of the number format: https://opennmt.net/CTranslate2/quantization.html."""
        if self._options.compute_type is None:
            return self.placement.dtype
        return f"int8_{self.placement.dtype}"

    @property
    def _engine_model(self) -> WhisperModel:
        assert self._model is not None
        return self._model


def _knows(model: WhisperModel, language: str) -> bool:
    if not model.model.is_multilingual:
        return language == "en"
    known = language in model.supported_languages
    return known and model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None
