"""Scores how well a document answers a query with bge-reranker-v2-m3, which reads both together.

Source of the method: the model card of BAAI/bge-reranker-v2-m3: XLM-RoBERTa for sequence classification with one output,
through a sigmoid. Results equal those of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import XLMRobertaForSequenceClassification

from worker.models.base import Float32
from worker.models.providers.tensors import refused
from worker.models.providers.xlm_roberta import XlmRoberta, read_config
from worker.models.text import Reranker


class BgeReranker(Reranker):
    """BAAI/bge-reranker-v2-m3, from the files of its repository; options: see `xlm_roberta.Options`."""

    _encoder: XlmRoberta

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        config_path = self._file("config.json")
        outputs = read_config(self.spec, config_path).num_labels
        if outputs != 1:
            raise refused(self.spec, config_path, "one label (id2label)", str(outputs))
        self._encoder = XlmRoberta(self.spec, self.placement, self._file, XLMRobertaForSequenceClassification)

    def _warm_up(self) -> None:
        self._rerank("warm up", ["warm up"] * self.spec.batch)

    def _rerank(self, query: str, documents: Sequence[str]) -> Float32:
        encoder = self._encoder
        asked, *read = encoder.tokenise([query, *documents])
        rows = [encoder.pair(asked, document) for document in read]
        scores = np.empty(len(rows), np.float32)

        def work(chosen: list[int]) -> None:
            tokens, mask = encoder.padded([rows[index] for index in chosen])
            with torch.inference_mode():
                logits = encoder.network(input_ids=tokens, attention_mask=mask).logits
                scores[chosen] = torch.sigmoid(logits.float().squeeze(1)).cpu().numpy()

        self._compute(encoder.groups(rows), work)
        return scores
