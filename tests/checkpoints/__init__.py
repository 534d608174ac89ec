"""Tiny checkpoints in the real file formats, made when a test needs them: the real loaders run on them.

Each module has `build(folder)`, which writes one model's files under `folder` and returns its catalogue entry. Weights
are random or scripted; only the formats, names and shapes of the layers are real. Nothing of it is committed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from worker.models.spec import ModelSpec
from worker.models.weights.verify import locate


def entry(folder: Path, files: Iterable[str], **fields: Any) -> ModelSpec:
    """The catalogue entry of the files just written to `folder`, with their checksums.

    Args:
        fields: of `ModelSpec`; name, family and provider at least. `sha256` adds files that lie elsewhere.
    """
    own = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}
    defaults: dict[str, Any] = {"source": f"path:{folder}", "revision": "made-for-tests", "licence": "none"}
    defaults |= {"memory_mb": 200, "profiles": ("full",)}
    elsewhere = fields.pop("sha256", {})
    return ModelSpec(**{**defaults, **fields, "sha256": {**own, **elsewhere}})


def summed(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The entry for its files as they are in `folder` now: a test that damages one gets past the check of checksums."""
    here = [file for file in spec.all_files if (folder / file).is_file()]
    kept = spec.model_dump(exclude={"source", "files"})
    elsewhere = {file: found for file, found in spec.sha256.items() if file not in here}
    return entry(folder, here, **{**kept, "sha256": elsewhere})


def copied(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The entry of a copy of the model's files."""
    for file in spec.all_files:
        shutil.copyfile(locate(spec, file), folder / file)
    return summed(spec, folder)


def write_catalog(path: Path, specs: Iterable[ModelSpec]) -> Path:
    """A catalogue file of these entries, for SCENEFLEET_MODELS_FILE. Returns `path`."""
    document = {"version": 1, "models": [spec.model_dump(mode="json") for spec in specs]}
    path.write_text(yaml.safe_dump(document))
    return path
