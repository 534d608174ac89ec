"""Splits files of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.media.limits import MediaLimits
from worker.media.results import Mode, SplitResult
from worker.media.split import split

Split = Callable[..., SplitResult]


@pytest.fixture
def split_file(tmp_path: Path) -> Split:
    """Split a file into the folder "out", with the default limits but for those named."""

    def run(
        path: Path,
        mode: Mode = "exact",
        part_s: float = 120.0,
        on_progress: Callable[[float], None] | None = None,
        **limits: Any,
    ) -> SplitResult:
        return split(
            path,
            tmp_path / "out",
            limits=MediaLimits(**limits),
            mode=mode,
            part_s=part_s,
            on_progress=on_progress,
        )

    return run
