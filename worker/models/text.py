"""Interfaces of all text models and rerankers. Imports no engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shared.errors import InvalidRequest
from worker.models.base import Float32, Model, check_texts

LexicalWeights = Mapping[int, float]
"""Token id of the model's vocabulary -> weight above 0; the dot product of two of them is their lexical similarity."""


@dataclass(frozen=True, slots=True, eq=False)
class TextVectors:
    #: float32 [N, dim], each of length 1.
    dense: Float32
    #: One per text; None: the model has no lexical head.
    lexical: tuple[LexicalWeights, ...] | None
    #: Number of tokens read of each text, special ones included; None: the engine does not tell.
    tokens: tuple[int, ...] | None = None


class TextEmbedder(Model):
    """Embeds texts as unit vectors, whose dot product is their similarity; some models also return lexical weights."""

    #: Whether `encode` returns lexical weights.
    has_lexical: ClassVar[bool] = False

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids; 0 without a lexical head."""
        return 0

    def embed(self, texts: Sequence[str]) -> Float32:
        """The dense vectors of `encode`."""
        return self.encode(texts).dense

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Embed texts, cut at the model's length limit: one vector (and lexical weights, if it has them) per text.

        Raises: InvalidRequest when an item is not a string; ModelFailure.
        """
        texts = check_texts(texts, "embed")
        if not texts:
            return TextVectors(np.zeros((0, self.dim), np.float32), () if self.has_lexical else None, ())
        with self._ready(), self._engine():
            return self._encode(texts)

    def _warm_up(self) -> None:
        self._encode(["warm up"] * self.spec.batch)

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> TextVectors: ...


class Reranker(Model):
    """Scores how well documents answer a query, by reading both together."""

    def rerank(self, query: str, documents: Sequence[str]) -> Float32:
        """Score each document, 0..1, higher is better; comparable within one query. All are cut at the length limit.

        Returns: float32 [len(documents)].
        Raises: InvalidRequest when the query or a document is not a string; ModelFailure.
        """
        if not isinstance(query, str):
            raise InvalidRequest(f"The query is {type(query).__name__}, not a string")
        documents = check_texts(documents, "rerank")
        if not documents:
            return np.zeros(0, np.float32)
        with self._ready(), self._engine():
            return self._rerank(check_texts([query], "rerank")[0], documents)

    @abstractmethod
    def _rerank(self, query: str, documents: Sequence[str]) -> Float32: ...
