"""Embeds texts of up to 8192 tokens with BGE-M3: a dense vector and lexical weights, in over a hundred languages.

Source of the method: Chen et al., "BGE M3-Embedding" (2024), sections 3.1-3.2, and the FlagEmbedding library, whose results
it equals: dense is the state of <s>, of length 1; a token's lexical weight is relu(w . state + b), and an id that stands
several times in a text keeps its greatest. FlagEmbedding is not used: it draws missing heads at random, takes a wrong
path for a repository to download, and takes 540 MB to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from transformers import XLMRobertaModel

from worker.models.placement.devices import Placement
from worker.models.providers.tensors import fill, read_tensors, refused
from worker.models.providers.xlm_roberta import XlmRoberta, listed, read_config
from worker.models.text import LexicalWeights, TextEmbedder, TextVectors

SPARSE_HEAD = "sparse_linear.pt"


class BgeM3Embedder(TextEmbedder):
    """BAAI/bge-m3, from the files of its repository; options: see `xlm_roberta.Options`."""

    has_lexical: ClassVar[bool] = True

    _encoder: XlmRoberta
    #: Linear [hidden -> 1].
    _sparse: torch.nn.Linear

    @property
    def vocabulary_size(self) -> int:
        return int(read_config(self.spec, self._file("config.json")).vocab_size)

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        self._encoder = self._read_encoder(self.placement)
        # In float32 whatever the network computes in: it costs nothing beside it.
        self._sparse = self._read_head(SPARSE_HEAD, 1).to(device=self._encoder.device, dtype=torch.float32)

    def _read_encoder(self, placement: Placement) -> XlmRoberta:
        path = self._file("config.json")
        width = read_config(self.spec, path).hidden_size
        if width != self.dim:
            raise refused(self.spec, path, f"hidden_size {self.dim} (models.yaml)", str(width))
        return XlmRoberta(
            self.spec, placement, self._file, lambda config: XLMRobertaModel(config, add_pooling_layer=False)
        )

    def _read_head(self, file: str, outputs: int) -> torch.nn.Linear:
        path = self._file(listed(self.spec, file))
        head = torch.nn.Linear(self.dim, outputs, device="meta").eval()
        fill(self.spec, head, read_tensors(self.spec, path), path)
        return head

    def _encode(self, texts: Sequence[str]) -> TextVectors:
        encoder, sparse = self._encoder, self._sparse
        rows = [encoder.single(text) for text in encoder.tokenise(texts)]
        dense = np.empty((len(rows), self.dim), np.float32)
        lexical: list[LexicalWeights] = [{}] * len(rows)

        def work(chosen: list[int]) -> None:
            tokens, mask = encoder.padded([rows[index] for index in chosen])
            with torch.inference_mode():
                states = encoder.network(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
                vectors = torch.nn.functional.normalize(states[:, 0], dim=1)
                weights = torch.relu(sparse(states)).squeeze(2)
            dense[chosen] = vectors.cpu().numpy()
            for index, found in zip(chosen, weights.cpu().tolist(), strict=True):
                lexical[index] = _greatest(rows[index], found, encoder.special)

        self._compute(encoder.groups(rows), work)
        return TextVectors(dense, tuple(lexical), tuple(map(len, rows)))


def _greatest(tokens: Sequence[int], weights: Sequence[float], special: frozenset[int]) -> dict[int, float]:
    """Each token id's greatest weight, where it is above 0; `weights` may go on over padding."""
    found: dict[int, float] = {}
    for token, weight in zip(tokens, weights, strict=False):
        if weight > found.get(token, 0.0) and token not in special:
            found[token] = weight
    return found
