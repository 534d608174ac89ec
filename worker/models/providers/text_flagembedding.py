"""BGE-M3 by its authors' own library, FlagEmbedding: the second engine.

It gives the vectors and weights of `text_bge_m3` (a contract test compares them) for about twice the computing, since it runs
a call's first batch once more to try its size, and 140 MB more of memory. By itself it draws missing heads at random, takes a
wrong path for a repository to download, and loads any other file in the folder. So all files are read and compared with the
network before, as for the other engine, and the library gets a folder that holds these files and no other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from FlagEmbedding import BGEM3FlagModel
from transformers.utils import logging as transformers_logging

from worker.models.placement import devices
from worker.models.providers.tensors import refused
from worker.models.providers.text_bge_m3 import SPARSE_HEAD, BgeM3Embedder
from worker.models.providers.xlm_roberta import WEIGHTS, listed
from worker.models.text import LexicalWeights, TextVectors

COLBERT_HEAD = "colbert_linear.pt"


class FlagEmbedder(BgeM3Embedder):
    """BAAI/bge-m3 in `BGEM3FlagModel`; options: see `xlm_roberta.Options`. Of the encoder only the tokenizer is used."""

    _model: BGEM3FlagModel

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        encoder = self._read_encoder(devices.Placement("cpu", "float32"))
        # The library loads its own.
        encoder.network = None
        self._read_head(SPARSE_HEAD, 1)
        self._read_head(COLBERT_HEAD, self.dim)
        with tempfile.TemporaryDirectory(prefix="scenefleet-bge-m3-") as folder:
            weights = listed(self.spec, *WEIGHTS)
            for name in ("config.json", "tokenizer.json", weights, SPARSE_HEAD, COLBERT_HEAD):
                (Path(folder) / name).symlink_to(self._file(name).resolve())
            # One on standard error for each load.
            transformers_logging.disable_progress_bar()
            try:
                self._model = BGEM3FlagModel(
                    folder,
                    devices=self.placement.device,
                    use_fp16=self.placement.dtype == "float16",
                    use_bf16=self.placement.dtype == "bfloat16",
                    trust_remote_code=False,
                )
            except Exception as error:
                if devices.is_out_of_memory(error):
                    raise
                reason = f"this error: {' '.join(str(error).split())[:200]!r}"
                own = self._file("config.json").parent
                raise refused(self.spec, own, "a model for FlagEmbedding", reason) from error
        self._encoder = encoder

    def _encode(self, texts: Sequence[str]) -> TextVectors:
        model, encoder = self._model, self._encoder
        rows = [encoder.single(text) for text in encoder.tokenise(texts)]
        dense = np.empty((len(rows), self.dim), np.float32)
        lexical: list[LexicalWeights] = [{}] * len(rows)

        def work(chosen: list[int]) -> None:
            found: dict[str, Any] = model.encode(
                [texts[index] for index in chosen],
                # Above the number of texts: at it the library draws bars of progress.
                batch_size=len(chosen) + 1,
                max_length=encoder.limit,
                return_dense=True,
                return_sparse=True,
                return_colbert_vecs=False,
            )
            vectors = np.asarray(found["dense_vecs"], np.float32)
            # Of length 1 in the number format that was computed in.
            dense[chosen] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            for index, weights in zip(chosen, found["lexical_weights"], strict=True):
                lexical[index] = {int(token): float(weight) for token, weight in weights.items()}

        # Groups of similar length and bounded size: the library pads 32 long texts to the longest.
        self._compute(encoder.groups(rows), work)
        return TextVectors(dense, tuple(lexical), tuple(map(len, rows)))
