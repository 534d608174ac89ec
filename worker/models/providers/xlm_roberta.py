"""The network under BGE-M3 and its reranker: XLM-RoBERTa from plain files, with its tokens and its batches.

Source of the architecture: Conneau et al., "Unsupervised Cross-lingual Representation Learning at Scale" (2020), as
transformers implements it. Nothing is looked up on a network and no code of a repository is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import XLMRobertaConfig

from shared.errors import ModelUnavailable
from worker.models.batching import by_length
from worker.models.placement.devices import Placement
from worker.models.providers.packed import pack_linears
from worker.models.providers.tensors import fill, read_json, read_tensors, refused
from worker.models.providers.tokens import pad, read_tokenizer
from worker.models.spec import ModelSpec

#: The files' names in a repository of the model hub; safetensors first, where there are both.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: In the files, but of no use here: the head for whole sequences, and a constant of old releases.
_UNUSED = ("pooler.", "embeddings.position_ids", "roberta.embeddings.position_ids")


class Options(BaseModel):
    """What the catalogue can tell a model of this architecture."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    #: Texts are cut at this many tokens; None: at as many as the network has positions for (BGE-M3: 8192).
    max_tokens: int | None = Field(default=None, ge=16)
    #: Most tokens computed at once, padding included: 32 texts of 512, or 2 of 8192. One text alone may have more.
    batch_tokens: int = Field(default=16_384, gt=0)


class XlmRoberta:
    """One network of this architecture with its tokenizer, on its device.

    Args:
        locate: the path of one of the model's files.
        make: the network for a configuration; made without memory for its weights, which come from the file.

    Raises: ModelUnavailable when a file is missing, damaged, or does not fit the others.
    """

    def __init__(
        self,
        spec: ModelSpec,
        placement: Placement,
        locate: Callable[[str], Path],
        make: Callable[[XLMRobertaConfig], Any],
    ) -> None:
        options = spec.read_options(Options)
        self.config = read_config(spec, locate("config.json"))
        # Positions are counted from behind the padding's id.
        positions = self.config.max_position_embeddings - self.config.pad_token_id - 1
        if options.max_tokens is not None and options.max_tokens > positions:
            raise ModelUnavailable(
                f"Model {spec.name} can't cut texts at max_tokens={options.max_tokens}: it has {positions} positions; "
                "correct its options in models.yaml"
            )
        #: Most tokens it reads at once, <s> and </s> included.
        self.limit = options.max_tokens or positions
        self._batch, self._batch_tokens = spec.batch, options.batch_tokens
        path = locate("tokenizer.json")
        self._tokenizer, ids = read_tokenizer(
            spec, path, self.config.vocab_size, ("<s>", "<pad>", "</s>", "<unk>")
        )
        self._begin, self._pad, self._end, _ = ids.values()
        if self._pad != self.config.pad_token_id:
            raise refused(spec, path, f"<pad> with the id {self.config.pad_token_id}", f"id {self._pad}")
        #: Ids that stand for no part of a text.
        self.special = frozenset(ids.values())
        path = locate(listed(spec, *WEIGHTS))
        with torch.device("meta"):
            network = make(self.config)
        fill(spec, network, read_tensors(spec, path), path, unused=_UNUSED)
        # Constants that no file holds, and that device `meta` left without values.
        embeddings = network.base_model.embeddings
        embeddings.position_ids = torch.arange(self.config.max_position_embeddings).expand((1, -1))
        embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
        self.device, self.dtype = torch.device(placement.device), getattr(torch, placement.dtype)
        self.network = network.to(device=self.device, dtype=self.dtype).eval()
        pack_linears(self.network, placement.device, placement.dtype)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's token ids, uncut, without <s> and </s>."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def single(self, text: Sequence[int]) -> list[int]:
        """What the network reads of one text: <s> text </s>, cut at the limit."""
        return [self._begin, *text[: self.limit - 2], self._end]

    def pair(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        """What the network reads of two texts: <s> first </s></s> second </s>; only the second is cut at the limit.

        A first one that leaves less than a quarter of the limit is cut to three quarters before.
        """
        first = first[: self.limit * 3 // 4]
        second = second[: self.limit - len(first) - 4]
        return [self._begin, *first, self._end, self._end, *second, self._end]

    def groups(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of the rows to compute together."""
        return by_length([len(row) for row in rows], self._batch, padded=self._batch_tokens)

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, int64 [len(rows), longest], on the device."""
        return pad(rows, self.device, self._pad)


def read_config(spec: ModelSpec, path: Path) -> XLMRobertaConfig:
    """A network's configuration.

    Raises: ModelUnavailable when the file is damaged or describes another architecture.
    """
    document = read_json(spec, path, model_type="xlm-roberta")
    try:
        return XLMRobertaConfig(**document)
    except Exception as error:
        # transformers has errors of its own for a field of a wrong type.
        reason = " ".join(str(error).split())
        raise refused(spec, path, "a configuration", f"a wrong one ({reason})") from error


def listed(spec: ModelSpec, *names: str) -> str:
    """The first of these files that the catalogue lists for the model: one it does not list is not checked.

    Raises: ModelUnavailable when it lists none of them.
    """
    found = next((name for name in names if name in spec.all_files), None)
    if found is None:
        raise spec.unloadable(f"models.yaml lists no {' or '.join(names)} among its files; add it")
    return found
