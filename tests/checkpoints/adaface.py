"""AdaFace IR-18 with random weights in a PyTorch Lightning checkpoint, and YuNet's real weights from the test assets."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.checkpoints import entry
from tests.support.assets import find_assets
from worker.models.providers.face_ir import DIM, IrNetwork
from worker.models.spec import ModelSpec

CHECKPOINT, DETECTOR = "adaface_ir18_random.ckpt", "face_detection_yunet.onnx"
ARCHITECTURE = "ir_18"


def build(folder: Path) -> ModelSpec:
    """Gives the test up where there are no assets: a random detector would find nothing."""
    assets = find_assets()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(assets / "yunet_n_dynamic.onnx", folder / DETECTOR)
    write(folder / CHECKPOINT, make_network().state_dict())
    return describe(folder)


def describe(folder: Path, **fields: Any) -> ModelSpec:
    """The catalogue entry of the files that lie in `folder` now."""
    defaults: dict[str, Any] = {"options": {"architecture": ARCHITECTURE}, "dim": DIM, "metric": "cosine"}
    defaults |= {
        "name": "tiny-adaface",
        "family": "face",
        "provider": "adaface",
        "memory_mb": 500,
        "batch": 4,
    }
    return entry(folder, (CHECKPOINT, DETECTOR), **defaults | fields)


def make_network(architecture: str = ARCHITECTURE) -> IrNetwork:
    """Always the same random weights. Two passes in training mode give the normalisations means and variances that fit
    them: without, all faces look alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(18)
        network = IrNetwork(architecture)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                module.momentum = None
        network.train()
        with torch.no_grad():
            for _ in range(2):
                coarse = torch.rand(16, 3, 14, 14) * 2 - 1
                network(torch.nn.functional.interpolate(coarse, (112, 112), mode="bilinear"))
    return network.eval()


def write(path: Path, weights: Mapping[str, Tensor]) -> None:
    """A checkpoint as PyTorch Lightning leaves it: the recogniser under `model.`, the classes of its training under
    `head.`, and what it needs to go on training."""
    state = {f"model.{name}": value for name, value in weights.items()}
    state |= {"head.kernel": torch.zeros(DIM, 8), "head.t": torch.zeros(1)}
    training = {"epoch": 25, "global_step": 1000, "pytorch-lightning_version": "1.4.4", "callbacks": {}}
    settings = {"optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs"}
    told = Namespace(arch=ARCHITECTURE, head="adaface", m=0.4, h=0.333)
    torch.save({**training, **settings, "state_dict": state, "hyper_parameters": told}, path)
