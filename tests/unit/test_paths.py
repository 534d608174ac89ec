"""What a caller is told names no folder of this machine; the node's log does."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import BadMedia, ModelUnavailable, StorageUnavailable
from shared.paths import hide_paths, without_paths
from shared.settings import get_settings
from shared.storage import Storage, StorageConfig, open_storage
from tasks.requests import REQUEST
from worker.app import app
from worker.models.catalog import load_catalog
from worker.models.weights.verify import verify


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCENEFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("STORAGE_ROOT", str(tmp_path / "objects"))
    get_settings.cache_clear()
    return tmp_path


def test_folders_are_called_by_what_they_are_for(folders: Path) -> None:
    said = hide_paths(
        f"{folders}/weights/bge-m3/model.bin and {folders}/home/work/x and {folders}/objects/uploads: "
        f"see {tempfile.gettempdir()}/y and {sys.prefix}/lib"
    )
    assert said.startswith(
        "MODELS_DIR/bge-m3/model.bin and SCENEFLEET_HOME/work/x and STORAGE_ROOT/uploads: "
    )
    assert str(folders) not in said and tempfile.gettempdir() not in said and sys.prefix not in said


def test_other_words_stay() -> None:
    for said in ("uploads/u/v/film.mp4 is no video", "video/mp4", "https://host/models/x", "1/2"):
        assert hide_paths(said) == said


def complain() -> None:
    raise BadMedia(f"{tempfile.gettempdir()}/tmpabc/film.mp4 holds no picture")


def storage() -> Storage:
    return open_storage(StorageConfig(backend="local", root=get_settings().storage_dir))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: verify(load_catalog().get("bge-m3"), models_dir=get_settings().models_dir),
            ModelUnavailable,
            "MODELS_DIR/bge-m3",
        ),
        (lambda: storage().get_bytes("uploads", "uploads/u/v/x"), StorageUnavailable, "STORAGE_ROOT"),
        (lambda: (get_settings().home / "secret.mp4").read_bytes(), FileNotFoundError, "[Errno 2]"),
        (complain, BadMedia, "film.mp4 holds no picture"),
    ],
)
def test_an_error_of_a_request_keeps_its_class_and_sense_and_names_no_folder(
    folders: Path, call: Callable[[], object], error: type[Exception], said: str
) -> None:
    @app.task(name=f"tests.raise.{error.__name__}", **REQUEST)
    def task() -> None:
        call()

    with pytest.raises(error) as caught:
        task()
    shown = f"{caught.value} {caught.value.args} {caught.value!r}"
    assert said in shown and str(folders) not in shown and tempfile.gettempdir() not in shown


def test_a_plain_error_is_cleaned_in_place(folders: Path) -> None:
    error: OSError = PermissionError(13, "Permission denied", str(folders / "weights" / "x"))
    without_paths(error)
    assert str(error) == "[Errno 13] Permission denied: 'MODELS_DIR/x'"
