"""Sentence embeddings by a BERT encoder with mean pooling: all-MiniLM-L6-v2.

Source of the method: the model card of sentence-transformers/all-MiniLM-L6-v2 (mean of the token vectors, attention mask
respected, then L2). The encoder is BERT's in plain torch: to import transformers costs 3 CPU seconds more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from worker.models.batching import by_length
from worker.models.providers.packed import pack_linears
from worker.models.providers.tensors import Tensors, fill, read_tensors
from worker.models.providers.tokens import pad
from worker.models.text import TextEmbedder, TextVectors

#: In the file, but no part of a sentence vector: the head for whole sequences, and a constant of old releases.
_UNUSED = ("pooler.", "embeddings.position_ids")
#: A layer's tensors: the network's name -> the names in the file, joined.
_LAYER = {
    "heads.*": [f"attention.self.{part}.*" for part in ("query", "key", "value")],
    "joined.*": ["attention.output.dense.*"],
    "norm1.*": ["attention.output.LayerNorm.*"],
    "wide.*": ["intermediate.dense.*"],
    "narrow.*": ["output.dense.*"],
    "norm2.*": ["output.LayerNorm.*"],
}
#: A batch of at most this many tokens is computed by one thread: to wake others takes longer.
_FEW_TOKENS = 48


class Layer(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """One layer of BERT's encoder."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, wide, epsilon = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self._heads = config["num_attention_heads"]
        self.heads, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, wide), nn.Linear(wide, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """States [N, T, width]; ``mask`` bool [N, 1, 1, T], true for tokens; None: there is no padding."""
        count, length, width = states.shape
        split = self.heads(states).view(count, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*split.unbind(0), attn_mask=mask)
        states = self.norm1(states + self.joined(seen.transpose(1, 2).reshape(count, length, width)))
        return self.norm2(states + self.narrow(nn.functional.gelu(self.wide(states))))


class Bert(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """BERT's encoder (Devlin et al., 2018), by the fields of its `config.json`.

    Raises: ValueError for another activation than `gelu`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        if config["hidden_act"] != "gelu":
            raise ValueError(f"hidden_act is {config['hidden_act']!r}, not 'gelu'")
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config["vocab_size"], width),
                "position_embeddings": nn.Embedding(config["max_position_embeddings"], width),
                "token_type_embeddings": nn.Embedding(config["type_vocab_size"], width),
                "LayerNorm": nn.LayerNorm(width, epsilon),
            }
        )
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids and attention mask [N, T] to a vector for each token [N, T, width]."""
        given = self.embeddings
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        states = given["LayerNorm"](
            given["word_embeddings"](tokens)
            + given["token_type_embeddings"].weight[0]
            + given["position_embeddings"](positions)
        )
        shown = None if len(tokens) == 1 else mask[:, None, None, :] != 0
        for layer in self.layers:
            states = layer(states, shown)
        return states

    def named_as_here(self, stored: Tensors) -> Tensors:
        """A file's tensors under the names of this network; those that make up no layer as they are."""
        tensors = dict(stored)
        for layer in range(len(self.layers)):
            for ours, theirs in _LAYER.items():
                for kind in ("weight", "bias"):
                    names = [f"encoder.layer.{layer}.{name.replace('*', kind)}" for name in theirs]
                    if all(name in tensors for name in names):
                        joined = torch.cat([tensors.pop(name) for name in names])
                        tensors[f"layers.{layer}.{ours.replace('*', kind)}"] = joined
        return tensors


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads of the CPU."""
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


class MiniLmEmbedder(TextEmbedder):
    """all-MiniLM-L6-v2; texts are cut at the length it was trained for (256 tokens)."""

    _tokenizer: Tokenizer
    _model: Bert

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        limit = json.loads(self._file("sentence_bert_config.json").read_text())["max_seq_length"]
        tokenizer = Tokenizer.from_file(str(self._file("tokenizer.json")))
        # The file asks for padding to 128 tokens and truncation there.
        tokenizer.no_padding()
        tokenizer.enable_truncation(limit)
        self._tokenizer = tokenizer
        model = Bert(json.loads(self._file("config.json").read_text()))
        path = self._file("model.safetensors")
        fill(self.spec, model, model.named_as_here(read_tensors(self.spec, path)), path, unused=_UNUSED)
        device, dtype = self.placement.device, self.placement.dtype
        self._model = model.to(device=device, dtype=getattr(torch, dtype)).eval()
        pack_linears(self._model, device, dtype)

    def _encode(self, texts: Sequence[str]) -> TextVectors:
        tokenizer, model = self._tokenizer, self._model
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(ids), self.dim), np.float32)
        device = torch.device(self.placement.device)

        def work(chosen: list[int]) -> None:
            tokens, mask = pad([ids[index] for index in chosen], device)
            with torch.inference_mode(), _threads(self.threads if tokens.numel() > _FEW_TOKENS else 1):
                states = model(tokens, mask).float()
            weights = mask.unsqueeze(-1)
            means = (states * weights).sum(1) / weights.sum(1)
            vectors[chosen] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()

        lengths = tuple(map(len, ids))
        self._compute(by_length(lengths, self.spec.batch), work)
        return TextVectors(vectors, None, lengths)
