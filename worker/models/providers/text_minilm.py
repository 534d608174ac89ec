"""Sentence embeddings by a BERT encoder with mean pooling: all-MiniLM-L6-v2.

Source of the method: the model card of sentence-transformers/all-MiniLM-L6-v2 (mean of the token vectors, attention mask
respected, then L2). Plain transformers gives the same vectors as sentence-transformers and loads faster.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from worker.models.batching import by_length
from worker.models.providers.tensors import fill, read_tensors
from worker.models.providers.tokens import pad
from worker.models.text import TextEmbedder, TextVectors

#: In the file, but no part of a sentence vector: the head for whole sequences, and a constant of old releases.
_UNUSED = ("pooler.", "embeddings.position_ids")


class MiniLmEmbedder(TextEmbedder):
    """all-MiniLM-L6-v2; texts are cut at the length it was trained for (256 tokens)."""

    _tokenizer: Tokenizer
    _model: BertModel

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        limit = json.loads(self._file("sentence_bert_config.json").read_text())["max_seq_length"]
        tokenizer = Tokenizer.from_file(str(self._file("tokenizer.json")))
        # The file asks for padding to 128 tokens and truncation there.
        tokenizer.no_padding()
        tokenizer.enable_truncation(limit)
        self._tokenizer = tokenizer
        # Not by from_pretrained: it draws progress bars into the log, and only warns when a weight is missing.
        model = BertModel(BertConfig.from_json_file(str(self._file("config.json"))), add_pooling_layer=False)
        path = self._file("model.safetensors")
        fill(self.spec, model, read_tensors(self.spec, path), path, unused=_UNUSED)
        self._model = model.to(
            device=self.placement.device, dtype=getattr(torch, self.placement.dtype)
        ).eval()

    def _encode(self, texts: Sequence[str]) -> TextVectors:
        tokenizer, model = self._tokenizer, self._model
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(ids), self.dim), np.float32)

        def work(chosen: list[int]) -> None:
            tokens, mask = pad([ids[index] for index in chosen], model.device)
            with torch.inference_mode():
                states = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            weights = mask.unsqueeze(-1)
            means = (states * weights).sum(1) / weights.sum(1)
            vectors[chosen] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()

        self._compute(by_length([len(row) for row in ids], self.spec.batch), work)
        return TextVectors(vectors, None)
