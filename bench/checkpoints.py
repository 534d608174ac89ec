"""Models of the real widths with four layers and random weights: what they find means nothing, what they cost does.

The formats are the real ones, made by the same code as the tiny checkpoints of the tests. Vocabularies are small: looking
a token up costs the same in a small table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    SiglipConfig,
    SiglipModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from tests.checkpoints import (
    adaface,
    bge_m3,
    bge_reranker,
    entry,
    siglip,
    whisper_scripted,
)
from worker.models.spec import ModelSpec

LAYERS = 4
#: Most pictures computed at once, here; on a GPU it is 32.
PICTURES = 8
#: XLM-RoBERTa large, as under BGE-M3 and its reranker.
_XLM_R = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 8194,
    "initializer_range": 0.02,
}
#: SigLIP so400m, patches of 14 px.
_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": LAYERS,
}


def build_bge_m3(folder: Path) -> ModelSpec:
    bge_m3.build(folder)
    network = XLMRobertaModel(_widen(folder)).eval()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    width = network.config.hidden_size
    torch.save(torch.nn.Linear(width, 1).state_dict(), folder / "sparse_linear.pt")
    torch.save(torch.nn.Linear(width, width).state_dict(), folder / "colbert_linear.pt")
    return entry(
        folder, bge_m3.FILES, name="wide-bge-m3", family="text", provider="bge-m3", dim=width, metric="cosine",
        batch=32, memory_mb=1000,
    )  # fmt: skip


def build_flagembedding(folder: Path) -> ModelSpec:
    """The same network and files, to be run by FlagEmbedding."""
    return build_bge_m3(folder).model_copy(
        update={"name": "wide-bge-m3-flagembedding", "provider": "flagembedding", "memory_mb": 1600}
    )


def build_tiny_flagembedding(folder: Path) -> ModelSpec:
    return bge_m3.build(folder).model_copy(update={"provider": "flagembedding", "memory_mb": 1200})


def build_reranker(folder: Path) -> ModelSpec:
    bge_reranker.build(folder)
    network = XLMRobertaForSequenceClassification(_widen(folder)).eval()
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return entry(
        folder, bge_reranker.FILES, name="wide-bge-reranker", family="text", kind="rerank", provider="bge-reranker",
        batch=32, memory_mb=1000, preload=False,
    )  # fmt: skip


def _widen(folder: Path) -> XLMRobertaConfig:
    config = XLMRobertaConfig.from_pretrained(folder)
    config.update(_XLM_R)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    return config


def build_siglip(folder: Path) -> ModelSpec:
    siglip.build(folder)
    config = SiglipConfig.from_pretrained(folder)
    config.text_config.update({**_SIGLIP, "projection_size": _SIGLIP["hidden_size"]})
    config.vision_config.update({**_SIGLIP, "image_size": 384, "patch_size": 14})
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    scaling = folder / "preprocessor_config.json"
    scaling.write_text(json.dumps({**json.loads(scaling.read_text()), "size": {"height": 384, "width": 384}}))
    files = ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"]
    return entry(
        folder, files, name="wide-siglip", family="vision", provider="siglip", dim=_SIGLIP["hidden_size"],
        metric="cosine", batch=PICTURES, memory_mb=1000,
    )  # fmt: skip


def build_whisper(folder: Path) -> ModelSpec:
    """Whisper medium's width, 4 of its 24 layers in each half; says one sentence a window, whatever it hears."""
    model = whisper_scripted.network(width=1024, heads=16, layers=LAYERS, audio_layers=LAYERS)
    # The script marks time in one head; alignment takes all heads of some layers, and one that sees nothing spoils it.
    for block in model.decoder.blocks:
        for layer in (block.cross_attn.query, block.cross_attn.key):
            marked = layer.weight[layer.weight.any(dim=1)]
            with torch.no_grad():
                layer.weight.copy_(marked.repeat(16, 1))
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.half() for key, value in model.state_dict().items()}
    torch.save({"dims": asdict(model.dims), "model_state_dict": weights}, folder / "medium-4.pt")
    # Nobody is asked to guess the language: the bare engine is told, too.
    return entry(
        folder, ["medium-4.pt"], name="wide-whisper", family="asr", provider="openai-whisper", memory_mb=2000,
        options={"translate": False, "language": "en"}, sha256=whisper_scripted.GATE,
    )  # fmt: skip


def build_adaface(folder: Path) -> ModelSpec:
    """AdaFace IR-50, whole, behind YuNet's real weights.

    Raises: pytest's Skipped when SCENEFLEET_TEST_ASSETS does not lead to them.
    """
    adaface.build(folder)
    adaface.write(folder / adaface.CHECKPOINT, adaface.make_network("ir_50").state_dict())
    return adaface.describe(folder, name="wide-adaface", options={"architecture": "ir_50"}, batch=PICTURES)


#: Name in the table -> (of the real width, tiny).
CHECKPOINTS: dict[str, tuple[Callable[[Path], ModelSpec], Callable[..., Any]]] = {
    "whisper": (build_whisper, whisper_scripted.build),
    "bge-m3": (build_bge_m3, bge_m3.build),
    "bge-m3-flagembedding": (build_flagembedding, build_tiny_flagembedding),
    "bge-reranker": (build_reranker, bge_reranker.build),
    "siglip": (build_siglip, siglip.build),
    "adaface": (build_adaface, adaface.build),
}
