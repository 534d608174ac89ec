"""This process as a node: its settings and its runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared import settings as settings_module
from worker.runtime import Runtime, get_runtime

Configure = Callable[..., Runtime]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Configure]:
    """Set variables and give the runtime made of them. Nothing listens at its Redis unless a test names another."""

    def forget() -> None:
        settings_module.get_settings.cache_clear()
        get_runtime.cache_clear()

    def set_all(**variables: str) -> Runtime:
        home = {"SCENEFLEET_HOME": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:9/0"}
        for name, value in {**home, **variables}.items():
            monkeypatch.setenv(name, value)
        forget()
        return get_runtime()

    set_all()
    yield set_all
    forget()
