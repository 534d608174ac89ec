"""A tiny bge-reranker-v2-m3: two layers of width 64 with one output, in the files of the real repository."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import XLMRobertaForSequenceClassification

from tests.checkpoints import entry
from tests.checkpoints.xlm_roberta import configure, write_tokenizer
from worker.models.spec import ModelSpec

FILES = ("config.json", "tokenizer.json", "model.safetensors")


def build(folder: Path, *, labels: int = 1) -> ModelSpec:
    """Write its files; FlagEmbedding's FlagReranker and transformers load them too."""
    folder.mkdir(parents=True, exist_ok=True)
    network = XLMRobertaForSequenceClassification(configure(write_tokenizer(folder), labels=labels)).eval()
    # Weights of 1.0 would make every score 0 or 1.
    with torch.no_grad():
        network.classifier.out_proj.weight.mul_(0.2)
    network.config.architectures = ["XLMRobertaForSequenceClassification"]
    network.config.save_pretrained(folder)
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return entry(
        folder, FILES, name="tiny-bge-reranker", family="text", kind="rerank", provider="bge-reranker", batch=8,
        preload=False,
    )  # fmt: skip
