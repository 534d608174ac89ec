"""The tiny BGE-M3 (see `bge_m3`), to be run by FlagEmbedding."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import bge_m3
from worker.models.spec import ModelSpec


def build(folder: Path) -> ModelSpec:
    """Write its files."""
    bge_m3.build(folder)
    # The library's import is most of it.
    small = bge_m3.describe(folder, provider="flagembedding")
    return small.model_copy(update={"name": "tiny-bge-m3-flagembedding", "memory_mb": 1200})
