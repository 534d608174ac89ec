"""Speech recognition by OpenAI's Whisper, in OpenAI's engine.

The checkpoint is read here and not by the engine, which knows the alignment heads only of models it downloaded itself, draws
random weights before it reads the real ones, and keeps float32 on a GPU. The network, decoding and word times are the engine's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from whisper import _ALIGNMENT_HEADS
from whisper.audio import N_FRAMES, log_mel_spectrogram, pad_or_trim
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, Whisper
from whisper.timing import find_alignment
from whisper.tokenizer import LANGUAGES, get_tokenizer

from shared.errors import ModelUnavailable
from worker.models.base import Float32
from worker.models.placement import devices
from worker.models.providers.asr_windows import SpeechOptions, WhisperBase, make_noise
from worker.models.providers.tensors import are_tensors, fill, load, refused
from worker.models.spec import ModelSpec

#: What all of OpenAI's checkpoints have: the engine's audio code and tokenizers know nothing else.
_KNOWN_DIMS = {"n_mels": (80, 128), "n_audio_ctx": (1500,), "n_vocab": (51864, 51865, 51866)}
#: Layers whose weights are used in the number format of the computation; the others are in float32 whatever it is.
_COMPUTED = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Embedding)


class WhisperOptions(SpeechOptions):
    #: Whose alignment heads the checkpoint has, by OpenAI's name of a model; None: from the file name or revision.
    alignment_heads: str | None = None


class WhisperTranscriber(WhisperBase):
    """A Whisper checkpoint of OpenAI's, of any size, behind the Silero VAD."""

    _model: Whisper
    _options = WhisperOptions()

    def _open(self) -> Whisper:
        self.placement = self._choose_placement()
        path = self._file(self.spec.only_file(".pt"))
        dims, tensors = _read(self.spec, path)
        model = _make_network(dims)
        fill(self.spec, model, tensors, path)
        self._set_alignment_heads(model, path)
        return self._placed(model).eval()

    def _warm_up(self) -> None:
        """Also align words: that code is compiled at its first use (about 2 s)."""
        super()._warm_up()
        model = self._model
        tokenizer = get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language="en")
        find_alignment(model, tokenizer, tokenizer.encode(" warm up"), self._mel(make_noise()), N_FRAMES)

    def _languages(self) -> Collection[str]:
        model = self._model
        return tuple(LANGUAGES)[: model.num_languages] if model.is_multilingual else ("en",)

    def _checkpoint_name(self) -> str:
        return Path(self.spec.only_file(".pt")).stem + self.spec.revision

    def _run(self, window: Float32, beam: int, **settings: Any) -> Iterable[Mapping[str, Any]]:
        width = beam if beam > 1 else None
        fp16 = self.placement.dtype == "float16"
        found: dict[str, list[Any]] = self._model.transcribe(window, beam_size=width, fp16=fp16, **settings)
        return found["segments"]

    def _detect_language(self, window: Float32) -> tuple[str, float]:
        _, probabilities = self._model.detect_language(self._mel(window))
        language = max(probabilities, key=lambda code: probabilities[code])
        return language, probabilities[language]

    def _mel(self, window: Float32) -> torch.Tensor:
        """[mels, 3000] where and as the network computes."""
        model = self._model
        mel = log_mel_spectrogram(pad_or_trim(window), model.dims.n_mels, device=model.device)
        return mel.to(getattr(torch, self.placement.dtype))

    def _placed(self, model: Whisper) -> Whisper:
        dtype = getattr(torch, self.placement.dtype)
        for module in model.modules():
            wanted = dtype if isinstance(module, _COMPUTED) else torch.float32
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(self.placement.device, wanted)
        return model.to(self.placement.device)

    def _choose_placement(self) -> devices.Placement:
        """The engine knows no bfloat16; what `auto` means on a GPU is then float16."""
        if self.placement.dtype != "bfloat16":
            return self.placement
        if self.spec.dtype != "auto":
            raise self.spec.unloadable(
                "provider openai-whisper computes in float16 or float32, not in bfloat16; set dtype: float16 or auto in "
                "models.yaml"
            )
        return replace(self.placement, dtype="float16")

    def _set_alignment_heads(self, model: Whisper, path: Path) -> None:
        """By the option, the file's name (medium.pt) or the revision (openai-medium); another model keeps the default:
        all heads of the last half of the layers."""
        named = self._options.alignment_heads
        if named is not None and named not in _ALIGNMENT_HEADS:
            raise ModelUnavailable(
                f"Model {self.spec.name} has a wrong option alignment_heads ({named!r}); correct models.yaml, it can be "
                f"{', '.join(_ALIGNMENT_HEADS)}"
            )
        guesses = (named, path.stem, self.spec.revision.removeprefix("openai-"))
        name = next((guess for guess in guesses if guess in _ALIGNMENT_HEADS), None)
        if name is None:
            return
        try:
            model.set_alignment_heads(_ALIGNMENT_HEADS[name])
        except RuntimeError as error:
            found = f"one of {model.dims.n_text_layer} layers of {model.dims.n_text_head} heads"
            raise refused(self.spec, path, f"a network of the shape of Whisper {name}", found) from error


def _read(spec: ModelSpec, path: Path) -> tuple[ModelDimensions, dict[str, torch.Tensor]]:
    """The two parts of OpenAI's format: {"dims": {...}, "model_state_dict": {...}}.

    Raises: ModelUnavailable when the file is truncated, something else, or of a shape the engine can't compute.
    """
    found = load(spec, path, "a Whisper checkpoint")
    parts = sorted(map(str, found)) if isinstance(found, dict) else [type(found).__name__]
    if parts != ["dims", "model_state_dict"]:
        raise refused(spec, path, "a Whisper checkpoint (dims, model_state_dict)", ", ".join(parts[:5]))
    dims, tensors = found["dims"], found["model_state_dict"]
    if not are_tensors(tensors):
        raise refused(spec, path, "named tensors as model_state_dict", f"a {type(tensors).__name__}")
    names = {field.name for field in fields(ModelDimensions)}
    if (
        not isinstance(dims, dict)
        or set(dims) != names
        or not all(isinstance(value, int) and value > 0 for value in dims.values())
    ):
        raise refused(spec, path, f"dims with whole numbers {', '.join(sorted(names))}", str(dims))
    for name, known in _KNOWN_DIMS.items():
        if dims[name] not in known:
            raise refused(spec, path, f"{name} {' or '.join(map(str, known))}", str(dims[name]))
    return ModelDimensions(**dims), tensors


def _make_network(dims: ModelDimensions) -> Whisper:
    """A network on device `meta`, to be filled: drawing random weights first would take 6 s for medium."""
    # As small as can be: the class can't be made on `meta` itself, whose tensors can't be sparse.
    model = Whisper(ModelDimensions(80, 1, 4, 1, 1, _KNOWN_DIMS["n_vocab"][0], 1, 4, 1, 1))
    with torch.device("meta"):
        model.encoder = AudioEncoder(
            dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer
        )
        model.decoder = TextDecoder(
            dims.n_vocab, dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer
        )
    model.dims = dims
    # No parameters, so not in the file: as the class makes them.
    mask = torch.full((dims.n_text_ctx, dims.n_text_ctx), -torch.inf).triu_(1)
    model.decoder.register_buffer("mask", mask, persistent=False)
    heads = torch.zeros(dims.n_text_layer, dims.n_text_head, dtype=torch.bool)
    heads[dims.n_text_layer // 2 :] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model
