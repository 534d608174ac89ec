"""Splits files of a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from worker.media.limits import MediaLimits
from worker.media.results import SplitResult
from worker.media.split import split

Split = Callable[..., SplitResult]
FIELDS = {field.name for field in fields(MediaLimits)}


@pytest.fixture
def split_file(tmp_path: Path) -> Split:
    """Split a file into the folder "out", with the default limits but for those among the options."""

    def run(path: Path, **options: Any) -> SplitResult:
        limits = MediaLimits(**{name: options.pop(name) for name in FIELDS & options.keys()})
        return split(path, tmp_path / "out", limits=limits, **options)

    return run
