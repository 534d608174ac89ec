"""Weights from a file into a network, exactly: the file and the network must name the same tensors, of the same shapes.

Engines are lenient here: transformers draws what is missing at random and only warns. Pickled code is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file

from shared.errors import ModelUnavailable
from worker.models.spec import ModelSpec
from worker.models.weights.verify import remedy

Tensors = Mapping[str, torch.Tensor]


def read_tensors(spec: ModelSpec, path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a file in the format of safetensors (by its ending) or of `torch.save`, in main memory.

    Raises: ModelUnavailable when the file is truncated, of another format, or holds anything but named tensors.
    """
    found = load(spec, path, "a file of weights")
    if not are_tensors(found):
        raise refused(spec, path, "named tensors", f"a {type(found).__name__} of other things")
    return found


def load(spec: ModelSpec, path: Path, expected: str) -> Any:
    """The content of a file in either format; code in it is not run.

    Raises: ModelUnavailable when the file can't be read.
    """
    try:
        if path.suffix == ".safetensors":
            # Copied: they are in the mapped file, which could change after its checksum was verified.
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Anything at all, by the file's bytes; torch adds advice on loading it unsafely, over many lines.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise refused(spec, path, expected, f"one that can't be read ({reason})") from error


def are_tensors(found: Any) -> TypeGuard[dict[str, torch.Tensor]]:
    """Whether something is a dict of tensors."""
    return isinstance(found, dict) and all(isinstance(value, torch.Tensor) for value in found.values())


def fill(
    spec: ModelSpec, network: torch.nn.Module, tensors: Tensors, path: Path, *, unused: Sequence[str] = ()
) -> None:
    """Put the tensors in place of the network's parameters, without a copy; it may have been made on device `meta`.

    Args:
        tensors: as `path` has them; the path is for messages.
        unused: beginnings of names that the file may have and the network does not use.

    Raises: ModelUnavailable naming the first tensor that is missing, has another shape, or has no place.
    """
    wanted = network.state_dict()
    given = {name: tensors[name] for name in tensors if not name.startswith(tuple(unused))}
    for name, parameter in wanted.items():
        shape = list(parameter.shape)
        if name not in given:
            missing = len(wanted.keys() - given.keys())
            raise refused(spec, path, f"{name} {shape}", f"no such tensor ({missing} are missing)")
        if list(given[name].shape) != shape:
            raise refused(spec, path, f"{name} {shape}", f"{name} {list(given[name].shape)}")
    if surplus := sorted(given.keys() - wanted.keys()):
        found = f"{len(given)}: {surplus[0]} has no place in the network"
        raise refused(spec, path, f"{len(wanted)} tensors", found)
    network.load_state_dict(given, assign=True)


def read_json(spec: ModelSpec, path: Path, *, model_type: str | None = None) -> dict[str, Any]:
    """A model's settings: the object in a JSON file.

    Raises: ModelUnavailable when the file is damaged, holds something else, or is for another type of model.
    """
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise refused(spec, path, "JSON", f"a file that can't be read ({describe(error)})") from error
    if not isinstance(document, dict):
        raise refused(spec, path, "a JSON object", f"a {type(document).__name__}")
    if model_type is not None and document.get("model_type") != model_type:
        raise refused(spec, path, f"model_type {model_type!r}", repr(document.get("model_type")))
    return document


def describe(error: Exception) -> str:
    """An engine's error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def refused(spec: ModelSpec, path: Path, expected: str, found: str) -> ModelUnavailable:
    """The error for a file that is not what the model needs."""
    return spec.unloadable(f"expected {expected} in {path}, found {found}; {remedy(spec)}")
