"""A machine on which nothing runs, and nothing of whose environment chooses servers, nodes or devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import get_settings

CHOOSERS = (
    "POSTGRES_URL",
    "REDIS_URL",
    "SCENEFLEET_NODES",
    "SCENEFLEET_GPUS",
    "CUDA_VISIBLE_DEVICES",
    "WORKER_MODEL_MEMORY_MB",
)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in CHOOSERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCENEFLEET_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
