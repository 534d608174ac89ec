"""Speech recognition by Whisper in CTranslate2 (faster-whisper): the second engine, faster and smaller, for converted checkpoints.

The engine downloads files that are missing beside the weights, so their presence is checked before.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from faster_whisper import WhisperModel

from worker.models.base import Float32
from worker.models.placement import devices
from worker.models.providers.asr_windows import SpeechOptions, WhisperBase
from worker.models.providers.tensors import read_json, refused

_WEIGHTS, _TOKENIZER, _PREPROCESSOR = "model.bin", "tokenizer.json", "preprocessor_config.json"
#: What the engine takes where the preprocessor's file is missing.
_DEFAULT_MELS = 80


class FasterWhisperOptions(SpeechOptions):
    #: ``int8``: weights in 8 bits, a quarter of the memory; None: as the device computes.
    compute_type: Literal["int8"] | None = None


class FasterWhisperTranscriber(WhisperBase):
    """A Whisper checkpoint converted for CTranslate2, behind the Silero VAD."""

    _model: WhisperModel
    _options = FasterWhisperOptions()

    def _open(self) -> WhisperModel:
        # One line a window otherwise.
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        tokenizer, weights = self._file(_TOKENIZER), self._file(_WEIGHTS)
        for name in ("config.json", _PREPROCESSOR):
            # The engine does not say what is wrong with them.
            if (path := weights.with_name(name)).exists():
                read_json(self.spec, path)
        # CTranslate2's name of the number format: https://opennmt.net/CTranslate2/quantization.html.
        compute_type = (
            self.placement.dtype if self._options.compute_type is None else f"int8_{self.placement.dtype}"
        )
        try:
            model = WhisperModel(
                str(weights.parent),
                device=self.placement.device,
                compute_type=compute_type,
                cpu_threads=self.threads,
                local_files_only=True,
            )
        except Exception as error:
            if devices.is_out_of_memory(error):
                raise
            # Anything at all, by the files' bytes; tokenizers raises bare Exceptions, CTranslate2 others.
            blamed, what = (tokenizer, "a tokenizer") if type(error) is Exception else (weights, "weights")
            wanted = f"{what} for faster-whisper on {self.placement.device} in {compute_type}"
            reason = f"{error}".splitlines()[0]
            raise refused(self.spec, blamed, wanted, f"this error: {reason!r}") from error
        mels = model.feat_kwargs.get("feature_size", _DEFAULT_MELS)
        if mels != model.model.n_mels:
            wanted = f"feature_size {model.model.n_mels}, that of {_WEIGHTS},"
            raise refused(self.spec, weights.with_name(_PREPROCESSOR), wanted, str(mels))
        if model.hf_tokenizer.token_to_id("<|startoftranscript|>") is None:
            raise refused(self.spec, tokenizer, "Whisper's tokens", "no <|startoftranscript|>")
        return model

    def _unload(self) -> None:
        if hasattr(self, "_model"):
            self._model.model.unload_model()
        super()._unload()

    def _languages(self) -> Collection[str]:
        if not self._model.model.is_multilingual:
            return ("en",)
        tokenizer = self._model.hf_tokenizer
        return [
            code
            for code in self._model.supported_languages
            if tokenizer.token_to_id(f"<|{code}|>") is not None
        ]

    def _run(self, window: Float32, beam: int, **settings: Any) -> Iterable[Mapping[str, Any]]:
        found, _ = self._model.transcribe(window, beam_size=beam, vad_filter=False, **settings)
        # A generator: the engine computes, and raises, while it is iterated.
        return map(asdict, found)

    def _detect_language(self, window: Float32) -> tuple[str, float]:
        language, probability, _ = self._model.detect_language(window)
        return language, float(probability)

    def _held_bytes(self) -> int:
        """On a GPU, the memory in use of the whole GPU: torch does not know what CTranslate2 allocates."""
        if self.placement.device != "cuda":
            return super()._held_bytes()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)
