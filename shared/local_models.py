"""Models in the caller's own process, for calls that the fleet does not answer. Loads no engine before it needs one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from .contracts import TextVectors
from .errors import ModelUnavailable

#: Embeds texts in place of the fleet.
TextEmbedder = Callable[[Sequence[str]], TextVectors]


def local_embedder(model: str, *, name: str | None = None, device: str = "cpu") -> TextEmbedder:
    """Return an embedder of the package ``sentence-transformers``, which the caller has installed.

    The model is loaded when the first texts arrive, under a lock; calls then run one at a time.

    Args:
        model: a folder, or a name in Hugging Face's hub, from which it is downloaded unless it is in the local cache.
        name: the answers' ``model``. Give the fleet's name of the same model only: vectors of one name are compared.
            Default: ``local:`` and the model's name.
        device: where PyTorch runs it.

    Raises:
        ModelUnavailable: sentence-transformers is not installed.
    """
    if find_spec("sentence_transformers") is None:
        raise ModelUnavailable(
            "sentence-transformers is not installed: run `pip install sentence-transformers`, or give no fallback"
        )
    return _SentenceTransformer(model, name or f"local:{model}", device)


class _SentenceTransformer:
    def __init__(self, model: str, name: str, device: str) -> None:
        self._source, self._name, self._device = model, name, device
        self._lock = threading.Lock()
        self._model: Any = None
        self._dim = 0

    def __call__(self, texts: Sequence[str]) -> TextVectors:
        with self._lock:
            if self._model is None:
                self._model = self._load()
                self._dim = len(self._encode([""])[0])
            vectors = self._encode(texts)
        return TextVectors(model=self._name, revision="local", dim=self._dim, vectors=vectors)

    def _encode(self, texts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
        found = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return tuple(tuple(map(float, vector)) for vector in found)

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(self._source, device=self._device)
        except (OSError, ValueError) as error:
            raise ModelUnavailable(
                f"the local model {self._source!r} can't be loaded ({type(error).__name__}): install it, or give no fallback"
            ) from error
