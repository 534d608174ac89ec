"""What a test needs that does not come with the repository: without it a test skips locally, and fails in CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

VARIABLE = "SCENEFLEET_TEST_ASSETS"


def give_up(reason: str) -> NoReturn:
    """Skip on a developer's machine, fail in CI, where every test has to run.

    Args:
        reason: what is missing, and how to get it.
    """
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def find_assets() -> Path:
    """The folder of real inputs (photographs, speech, detector weights) that SCENEFLEET_TEST_ASSETS names.

    Without it the running test is given up.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        give_up(f"{VARIABLE} is not set: name the folder of real inputs that README.md lists")
    path = Path(folder)
    if not path.is_dir():
        give_up(f"{VARIABLE}={folder} is no folder: name the folder of real inputs that README.md lists")
    return path
