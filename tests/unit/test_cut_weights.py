"""Which weights the split stage gives to the network that judges cuts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.settings import Settings
from worker.models.catalog import load_catalog
from worker.models.weights import verify
from worker.stages.cut_weights import find_weights

WEIGHTS = b"weights of a network"


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a job on a node whose catalogue has a network with these weights."""
    monkeypatch.setattr(verify, "INSTALLED", tmp_path / "installed")
    catalog = load_catalog()
    (file,) = catalog.get("transnetv2").sha256
    spec = catalog.get("transnetv2").model_copy(
        update={"sha256": {file: hashlib.sha256(WEIGHTS).hexdigest()}}
    )
    settings = Settings(models_dir=str(tmp_path))
    return SimpleNamespace(
        runtime=SimpleNamespace(
            settings=settings, catalog=SimpleNamespace(active=lambda settings: {"cuts": spec})
        ),
        file=tmp_path / spec.name / file,
    )


def keep(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def test_weights_that_are_here_are_used(context: Any) -> None:
    keep(context.file, WEIGHTS)
    assert find_weights(context) == context.file
    context.runtime.settings = context.runtime.settings.model_copy(update={"split_mode": "fast"})
    assert find_weights(context) is None


@pytest.mark.parametrize("content", [None, b"", b"others"], ids=["absent", "empty", "others"])
def test_without_its_weights_the_video_is_split_all_the_same(context: Any, content: bytes | None) -> None:
    if content is not None:
        keep(context.file, content)
    assert find_weights(context) is None


def test_weights_that_changed_are_checked_again(context: Any) -> None:
    keep(context.file, WEIGHTS)
    assert find_weights(context) == context.file
    keep(context.file, b"others")
    assert find_weights(context) is None
    keep(context.file, WEIGHTS)
    assert find_weights(context) == context.file
