"""Virtual environments of the benchmarks: tools we compare with, never dependencies of the project."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BENCH = Path(__file__).parent
PYTHON = BENCH / ".venv" / "bin" / "python"

PACKAGES = ("scenedetect-headless==0.7.*",)


def ensure_env(folder: Path = BENCH / ".venv", packages: Sequence[str] = PACKAGES) -> Path:
    """Make an environment once; return its Python. Raises CalledProcessError when pip fails."""
    marker, python = folder / "packages.txt", folder / "bin" / "python"
    wanted = "\n".join(packages)
    if not marker.exists() or marker.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # Where the installed torch comes from, if not from PyPI.
        index = os.environ.get("TORCH_INDEX_URL")
        more = ["--extra-index-url", index] if index else []
        subprocess.run([str(python), "-m", "pip", "install", "-q", *more, *packages], check=True)
        marker.write_text(wanted)
    return python


def same_torch() -> str:
    """The torch that is installed here, as a requirement: of another build, a comparison would be one of builds."""
    return f"torch=={importlib.metadata.version('torch')}"
