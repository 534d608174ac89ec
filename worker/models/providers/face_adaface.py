"""Finds faces with YuNet and embeds them with AdaFace: a 512-d unit vector, and the feature's length as quality.

Source: Kim, Jain, Liu, "AdaFace: Quality Adaptive Margin for Face Recognition" (2022): the norm of a feature grows with
the quality of the picture. Preprocessing as in the code published with it: BGR, (x / 255 - 0.5) / 0.5.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from shared.errors import ModelFailure, ModelUnavailable
from worker.models.base import Float32, Uint8
from worker.models.face import Face, FaceAnalyser
from worker.models.providers.face_align import SIDE_PX, align
from worker.models.providers.face_ir import DIM, UNITS, IrNetwork
from worker.models.providers.face_yunet import LANDMARK_NAMES, Detection, YuNetDetector
from worker.models.providers.tensors import are_tensors, fill, refused
from worker.models.spec import ModelSpec

#: float32 [256]: what each grey level becomes, computed in float64 as the published code does.
_LEVELS: Float32 = ((np.arange(256) / 255.0 - 0.5) / 0.5).astype(np.float32)
#: Layers of the checkpoint that are not used: the classes that the recogniser was trained on.
_DROPPED = "head."
#: What a training run of PyTorch Lightning leaves in a checkpoint beside the weights. It is read as empty shells.
_LIGHTNING = ("pytorch_lightning.", "lightning.pytorch.")


class Shell:
    """Stands for a class of the trainer's: holds whatever is put in, does nothing."""

    def __init__(self, *content: object) -> None:
        self.content = content


class AdaFaceAnalyser(FaceAnalyser):
    """YuNet and AdaFace. `options.architecture`: that of the checkpoint, ir_18, ir_50 or ir_101."""

    landmark_names = LANDMARK_NAMES
    # Faces of different people have cosines around 0 in 512 dimensions; 0.3 is the usual place to cut. To be measured
    # on one's own pictures before it decides anything that matters.
    same_person = 0.7

    _detector: YuNetDetector
    _network: IrNetwork

    def _load(self) -> None:
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        architecture = _architecture(self.spec)
        self._detector = YuNetDetector(self.spec, self._file(self.spec.only_file(".onnx")))
        network = read_network(self.spec, self._file(self.spec.only_file(".ckpt")), architecture)
        self._network = network.place(self.placement.device, getattr(torch, self.placement.dtype))

    def _warm_up(self) -> None:
        self._detector.detect(np.zeros((360, 640, 3), np.uint8))
        self._infer(preprocess([np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)] * self.spec.batch))

    def _analyse(self, images: Sequence[Uint8]) -> list[list[Face]]:
        found: list[list[Detection]] = []
        chips: list[Uint8] = []

        def groups() -> Iterator[list[int]]:
            # As they fill, so that a GPU computes while the next pictures are searched for faces.
            first = 0
            for image in images:
                pixels = np.ascontiguousarray(image)
                faces = [(face, align(pixels, face.landmarks)) for face in self._detector.detect(pixels)]
                found.append([face for face, chip in faces if chip is not None])
                chips.extend(chip for _, chip in faces if chip is not None)
                while len(chips) - first >= self.spec.batch:
                    yield list(range(first, first + self.spec.batch))
                    first += self.spec.batch
            if first < len(chips):
                yield list(range(first, len(chips)))

        computed: list[tuple[list[int], Tensor, Tensor]] = []

        def work(chosen: list[int]) -> None:
            computed.append((chosen, *self._infer(preprocess([chips[index] for index in chosen]))))

        self._compute(groups(), work)
        vectors, norms = np.empty((len(chips), DIM), np.float32), np.empty(len(chips), np.float32)
        for chosen, some, lengths in computed:
            vectors[chosen], norms[chosen] = some.cpu().numpy(), lengths.cpu().numpy()
        if not (np.isfinite(vectors).all() and np.isfinite(norms).all()):
            raise ModelFailure(
                f"Model {self.spec.name} gave a vector that is not finite: are its weights whole, does {self.placement.dtype} "
                "suit them?"
            )
        row = iter(zip(vectors, norms, strict=True))
        return [[_face(detection, *next(row)) for detection in faces] for faces in found]

    def _infer(self, faces: Float32) -> tuple[Tensor, Tensor]:
        """[N, 512] and [N], on the device; a GPU may still be at work on them."""
        dtype = getattr(torch, self.placement.dtype)
        with torch.inference_mode():
            vectors, lengths = self._network(
                torch.from_numpy(faces).to(self.placement.device, non_blocking=True).to(dtype)
            )
        return vectors, lengths


def preprocess(chips: Sequence[Uint8]) -> Float32:
    """What the network takes: aligned faces, uint8 [112, 112, 3] RGB each, to float32 [N, 3, 112, 112] BGR, -1..1."""
    return np.ascontiguousarray(_LEVELS[np.stack(chips)[..., ::-1]].transpose(0, 3, 1, 2))


def read_network(spec: ModelSpec, path: Path, architecture: str) -> IrNetwork:
    """The recogniser of a PyTorch Lightning checkpoint, as published by AdaFace's authors, on the CPU and in eval mode.

    Raises: ModelUnavailable naming the file, what was expected and what was found.
    """
    document = _read_document(spec, path)
    state = document.get("state_dict") if isinstance(document, dict) else None
    if not are_tensors(state):
        raise refused(spec, path, "tensors as state_dict (PyTorch Lightning)", type(state).__name__)
    # Copied: they are in the mapped file, which could change after its checksum was verified.
    tensors = {name: value.clone() for name, value in state.items() if not name.startswith(_DROPPED)}
    units = len({name.split(".")[2] for name in tensors if name.startswith("model.body.")})
    for other, counts in UNITS.items():
        if other != architecture and units == sum(counts):
            raise ModelUnavailable(
                f"Model {spec.name} can't be loaded: expected {path} to hold {architecture}, found {other} ({units} units); "
                "correct options.architecture in models.yaml, or put the right file there"
            )
    with torch.device("meta"):
        network = IrNetwork(architecture)
    fill(spec, torch.nn.ModuleDict({"model": network}), tensors, path)
    network.eval()
    return network


def _read_document(spec: ModelSpec, path: Path) -> Any:
    """What the file holds, mapped: the classes that the recogniser was trained on are never read. No code is run."""
    expected = "a whole PyTorch checkpoint (a zip archive)"
    if not zipfile.is_zipfile(path):
        raise refused(spec, path, expected, f"{path.stat().st_size} bytes that are none")
    try:
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        shells = {name for name in strange if name.startswith(_LIGHTNING)}
        code = sorted({*strange} - shells - {"argparse.Namespace"})
        if not code:
            with torch.serialization.safe_globals([argparse.Namespace, *((Shell, name) for name in shells)]):
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise refused(spec, path, expected, f"one that can't be read ({reason})") from error
    raise refused(spec, path, "tensors and plain values", f"code ({', '.join(code[:5])}), which was not run")


def _architecture(spec: ModelSpec) -> str:
    options = dict(spec.options)
    architecture = options.pop("architecture", None)
    if architecture not in UNITS or options:
        raise ModelUnavailable(
            f"Model {spec.name} has the options {spec.options} in models.yaml; the provider {spec.provider} takes one, "
            f"architecture: {', '.join(UNITS)}"
        )
    if (spec.dim, spec.metric) != (DIM, "cosine"):
        raise ModelUnavailable(
            f"Model {spec.name} has dim {spec.dim} and metric {spec.metric} in models.yaml; AdaFace has {DIM} and cosine"
        )
    return str(architecture)


def _face(detection: Detection, vec: Float32, norm: np.float32) -> Face:
    landmarks = tuple((float(x), float(y)) for x, y in detection.landmarks)
    return Face(detection.box, detection.score, landmarks, vec, float(norm))
