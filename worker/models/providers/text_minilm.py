"""Sentence embeddings by a BERT encoder with mean pooling: all-MiniLM-L6-v2.

Source of the method: the model card of sentence-transformers/all-MiniLM-L6-v2 (mean of the token vectors, attention mask
respected, then L2). The encoder is torch's own, whose layer is BERT's: to import transformers costs 3 CPU seconds more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from worker.models.batching import by_length
from worker.models.providers.tensors import Tensors, fill, read_tensors
from worker.models.providers.tokens import pad
from worker.models.text import TextEmbedder, TextVectors

#: In the file, but no part of a sentence vector: the head for whole sequences, and a constant of old releases.
_UNUSED = ("pooler.", "embeddings.position_ids")
#: A layer's tensors: torch's name -> the names in the file, joined.
_LAYER = {
    "self_attn.in_proj_*": [f"attention.self.{part}.*" for part in ("query", "key", "value")],
    "self_attn.out_proj.*": ["attention.output.dense.*"],
    "norm1.*": ["attention.output.LayerNorm.*"],
    "linear1.*": ["intermediate.dense.*"],
    "linear2.*": ["output.dense.*"],
    "norm2.*": ["output.LayerNorm.*"],
}


class Bert(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """BERT's encoder (Devlin et al., 2018), by the fields of its `config.json`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config["vocab_size"], width),
                "position_embeddings": nn.Embedding(config["max_position_embeddings"], width),
                "token_type_embeddings": nn.Embedding(config["type_vocab_size"], width),
                "LayerNorm": nn.LayerNorm(width, epsilon),
            }
        )
        layer = nn.TransformerEncoderLayer(
            width,
            config["num_attention_heads"],
            config["intermediate_size"],
            activation=config["hidden_act"],
            layer_norm_eps=epsilon,
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config["num_hidden_layers"], enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids and attention mask [N, T] to a vector for each token [N, T, width]."""
        given = self.embeddings
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = (
            given["word_embeddings"](tokens)
            + given["token_type_embeddings"].weight[0]
            + given["position_embeddings"](positions)
        )
        return self.encoder(given["LayerNorm"](embedded), src_key_padding_mask=mask == 0)

    def named_as_here(self, stored: Tensors) -> Tensors:
        """A file's tensors under the names of this network; those that make up no layer as they are."""
        tensors = dict(stored)
        for layer in range(len(self.encoder.layers)):
            for ours, theirs in _LAYER.items():
                for kind in ("weight", "bias"):
                    names = [f"encoder.layer.{layer}.{name.replace('*', kind)}" for name in theirs]
                    if all(name in tensors for name in names):
                        joined = torch.cat([tensors.pop(name) for name in names])
                        tensors[f"encoder.layers.{layer}.{ours.replace('*', kind)}"] = joined
        return tensors


class MiniLmEmbedder(TextEmbedder):
    """all-MiniLM-L6-v2; texts are cut at the length it was trained for (256 tokens)."""

    _tokenizer: Tokenizer
    _model: Bert

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        # Its fused layer takes 1.4 times as long on a CPU.
        torch.backends.mha.set_fastpath_enabled(False)
        limit = json.loads(self._file("sentence_bert_config.json").read_text())["max_seq_length"]
        tokenizer = Tokenizer.from_file(str(self._file("tokenizer.json")))
        # The file asks for padding to 128 tokens and truncation there.
        tokenizer.no_padding()
        tokenizer.enable_truncation(limit)
        self._tokenizer = tokenizer
        model = Bert(json.loads(self._file("config.json").read_text()))
        path = self._file("model.safetensors")
        fill(self.spec, model, model.named_as_here(read_tensors(self.spec, path)), path, unused=_UNUSED)
        self._model = model.to(
            device=self.placement.device, dtype=getattr(torch, self.placement.dtype)
        ).eval()

    def _count_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts)))

    def _encode(self, texts: Sequence[str]) -> TextVectors:
        tokenizer, model = self._tokenizer, self._model
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(ids), self.dim), np.float32)
        device = torch.device(self.placement.device)

        def work(chosen: list[int]) -> None:
            tokens, mask = pad([ids[index] for index in chosen], device)
            with torch.inference_mode():
                states = model(tokens, mask).float()
            weights = mask.unsqueeze(-1)
            means = (states * weights).sum(1) / weights.sum(1)
            vectors[chosen] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()

        lengths = tuple(map(len, ids))
        self._compute(by_length(lengths, self.spec.batch), work)
        return TextVectors(vectors, None, lengths)
