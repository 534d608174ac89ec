"""A tiny BGE-M3: two layers of width 64 behind a vocabulary of ASCII, in the files of the real repository."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import XLMRobertaModel

from tests.checkpoints import entry
from tests.checkpoints.xlm_roberta import HIDDEN, configure, write_tokenizer
from worker.models.spec import ModelSpec

FILES = ("config.json", "tokenizer.json", "pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt")


def build(folder: Path, *, hidden: int = HIDDEN) -> ModelSpec:
    """Write its files; FlagEmbedding's BGEM3FlagModel loads them too.

    Args:
        hidden: width of the network; the catalogue entry always says 64.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = XLMRobertaModel(configure(write_tokenizer(folder), hidden=hidden)).eval()
    network.config.architectures = ["XLMRobertaModel"]
    network.config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    torch.save(torch.nn.Linear(hidden, 1).state_dict(), folder / "sparse_linear.pt")
    torch.save(torch.nn.Linear(hidden, hidden).state_dict(), folder / "colbert_linear.pt")
    return entry(
        folder, FILES, name="tiny-bge-m3", family="text", provider="bge-m3", dim=HIDDEN, metric="cosine", batch=8
    )  # fmt: skip
