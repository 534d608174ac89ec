"""Sentence embeddings by a BERT encoder with mean pooling: all-MiniLM-L6-v2.

Source of the method: the model card of sentence-transformers/all-MiniLM-L6-v2 (mean of the token vectors, attention mask
respected, then L2). Plain transformers gives the same vectors as sentence-transformers and loads faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from worker.models.base import Float32, TextEmbedder

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: In the file, but no part of a sentence vector: the head for whole sequences, and a constant of old releases.
_UNUSED = ("pooler.", "embeddings.position_ids")


class MiniLmEmbedder(TextEmbedder):
    """all-MiniLM-L6-v2; texts are cut at the length it was trained for (256 tokens)."""

    _tokenizer: Tokenizer | None = None
    _model: BertModel | None = None

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
        weights = load_file(self._file("model.safetensors"))
        model.load_state_dict({name: weights[name] for name in weights if not name.startswith(_UNUSED)})
        self._model = model.to(_DTYPES[self.spec.dtype]).eval()

    def _unload(self) -> None:
        self._tokenizer = self._model = None

    def _warm_up(self) -> None:
        self._embed(["warm up"] * self.spec.batch)

    def _embed(self, texts: Sequence[str]) -> Float32:
        tokenizer, model = self._tokenizer, self._model
        assert tokenizer is not None and model is not None
        # JSON may carry half a surrogate pair, which is no text in UTF-8.
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(whole)]
        vectors = np.empty((len(ids), self.dim), np.float32)
        for chosen in _group([len(row) for row in ids], self.spec.batch):
            width = len(ids[chosen[-1]])
            tokens = torch.zeros((len(chosen), width), dtype=torch.long)
            mask = torch.zeros((len(chosen), width), dtype=torch.long)
            for row, index in enumerate(chosen):
                tokens[row, : len(ids[index])] = torch.tensor(ids[index])
                mask[row, : len(ids[index])] = 1
            with torch.inference_mode():
                states = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            weights = mask.unsqueeze(-1)
            means = (states * weights).sum(1) / weights.sum(1)
            vectors[chosen] = torch.nn.functional.normalize(means, dim=1).numpy()
        return vectors


def _group(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Indices of texts to compute together, the shortest first: at most `batch`, of like length.

    Padding costs as much as text, so a group also ends where the next text is over a quarter (and 8 tokens) longer than
    its first: one long text among short ones would make all of them as dear as itself.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if group and (len(group) == batch or lengths[index] > lengths[group[0]] * 1.25 + 8):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
