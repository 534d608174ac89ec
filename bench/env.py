"""The bench's own virtual environment: tools we compare with, never dependencies of the project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VENV = Path(__file__).parent / ".venv"
PYTHON = VENV / "bin" / "python"

PACKAGES = ("scenedetect-headless==0.7.*",)


def ensure_env() -> Path:
    """Make the environment once; return its Python. Raises CalledProcessError when pip fails."""
    marker = VENV / "packages.txt"
    wanted = "\n".join(PACKAGES)
    if not marker.exists() or marker.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        marker.write_text(wanted)
    return PYTHON
