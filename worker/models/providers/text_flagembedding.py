"""BGE-M3 by its authors' own library, FlagEmbedding: the second engine.

It gives the vectors and weights that `text_bge_m3` gives (a contract test compares them) for about twice the computing, since
it runs a call's first batch once more to try its size, and 140 MB more of memory. Left alone it draws missing heads at random, takes a wrong path for a repository to download, and loads
any other file in the folder: so all files are read and compared with the network before, as the other engine does, and
the library gets a folder that holds these files and no other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from FlagEmbedding import BGEM3FlagModel
from transformers import XLMRobertaModel
from transformers.utils import logging as transformers_logging

from worker.models.placement import devices
from worker.models.placement.devices import Placement
from worker.models.providers.tensors import fill, read_tensors, refused
from worker.models.providers.text_bge_m3 import SPARSE_HEAD
from worker.models.providers.xlm_roberta import WEIGHTS, XlmRoberta, listed, read_config
from worker.models.text import LexicalWeights, TextEmbedder, TextVectors

COLBERT_HEAD = "colbert_linear.pt"


class FlagEmbedder(TextEmbedder):
    """BAAI/bge-m3 in `BGEM3FlagModel`; options: see `xlm_roberta.Options`."""

    has_lexical: ClassVar[bool] = True

    _model: BGEM3FlagModel | None = None
    #: For the lengths of texts; without its network.
    _tokens: XlmRoberta | None = None

    @property
    def vocabulary_size(self) -> int:
        return int(read_config(self.spec, self._file("config.json")).vocab_size)

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        config_path = self._file("config.json")
        width = int(read_config(self.spec, config_path).hidden_size)
        if width != self.dim:
            raise refused(self.spec, config_path, f"hidden_size {self.dim} (models.yaml)", str(width))
        for name, outputs in ((SPARSE_HEAD, 1), (COLBERT_HEAD, width)):
            head = self._file(listed(self.spec, name))
            fill(
                self.spec, torch.nn.Linear(width, outputs, device="meta"), read_tensors(self.spec, head), head
            )
        tokens = XlmRoberta(
            self.spec,
            Placement("cpu", "float32"),
            self._file,
            lambda config: XLMRobertaModel(config, add_pooling_layer=False),
        )
        # The library loads its own.
        tokens.network = None
        with tempfile.TemporaryDirectory(prefix="scenefleet-bge-m3-") as folder:
            for name in (
                "config.json",
                "tokenizer.json",
                listed(self.spec, *WEIGHTS),
                SPARSE_HEAD,
                COLBERT_HEAD,
            ):
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
                reason = " ".join(str(error).split())[:200]
                raise refused(
                    self.spec, config_path.parent, "a model for FlagEmbedding", f"this error: {reason!r}"
                ) from error
        self._tokens = tokens

    def _unload(self) -> None:
        self._model = self._tokens = None

    def _encode(self, texts: Sequence[str]) -> TextVectors:
        model, tokens = self._model, self._tokens
        assert model is not None and tokens is not None
        rows = [tokens.single(text) for text in tokens.tokenise(texts)]
        dense = np.empty((len(rows), self.dim), np.float32)
        lexical: list[LexicalWeights] = [{}] * len(rows)

        def work(chosen: list[int]) -> None:
            found: dict[str, Any] = model.encode(
                [texts[index] for index in chosen],
                # Above the number of texts: at it the library draws bars of progress.
                batch_size=len(chosen) + 1,
                max_length=tokens.limit,
                return_dense=True,
                return_sparse=True,
                return_colbert_vecs=False,
            )
            vectors = np.asarray(found["dense_vecs"], np.float32)
            # Of length 1 in the number format that was computed in.
            dense[chosen] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            for index, weights in zip(chosen, found["lexical_weights"], strict=True):
                lexical[index] = {int(token): float(weight) for token, weight in weights.items()}

        # Groups of like length and bounded size: the library pads 32 long texts to the longest.
        self._compute(tokens.groups(rows), work)
        return TextVectors(dense, tuple(lexical))
