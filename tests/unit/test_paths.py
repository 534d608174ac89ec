"""What a caller is told names no folder of this machine; the node's log does."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from shared import settings as settings_module
from shared.errors import BadMedia, ModelUnavailable, StorageUnavailable
from shared.paths import hide_paths, without_paths
from shared.settings import get_settings
from shared.storage import open_storage
from shared.storage.objects import StorageConfig
from tasks.requests import REQUEST, Request
from worker.app import app
from worker.models.catalog import load_catalog
from worker.models.weights.verify import verify
from worker.search.plan import sentence


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCENEFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("STORAGE_ROOT", str(tmp_path / "objects"))
    settings_module.get_settings.cache_clear()
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


def raised_by(call: object) -> list[BaseException]:
    """What a request task raises for it."""
    assert callable(call)

    @app.task(name=f"tests.raise.{id(call)}", **REQUEST)
    def task() -> None:
        call()

    assert isinstance(task, Request)
    with pytest.raises(Exception) as caught:
        task()
    return [caught.value]


def lose_weights() -> None:
    spec = load_catalog().get("bge-m3")
    verify(spec, models_dir=get_settings().models_dir)


def lose_storage() -> None:
    open_storage(StorageConfig(backend="local", root=get_settings().storage_dir)).get_bytes(
        "uploads", "uploads/u/v/x"
    )


def lose_file() -> None:
    (get_settings().home / "work" / "secret.mp4").read_bytes()


def complain() -> None:
    raise BadMedia(f"{tempfile.gettempdir()}/tmpabc/film.mp4 holds no picture")


@pytest.mark.parametrize("call", [lose_weights, lose_storage, lose_file, complain])
def test_no_error_of_a_request_names_a_folder(folders: Path, call: object) -> None:
    for error in raised_by(call):
        said = f"{error} {error.args} {error!r}"
        assert str(folders) not in said and tempfile.gettempdir() not in said, said


def test_errors_keep_their_class_and_sense(folders: Path) -> None:
    (lost,) = raised_by(lose_weights)
    assert isinstance(lost, ModelUnavailable) and "MODELS_DIR/bge-m3" in str(lost)
    (away,) = raised_by(lose_storage)
    assert isinstance(away, StorageUnavailable) and "STORAGE_ROOT" in str(away)
    (gone,) = raised_by(lose_file)
    assert isinstance(gone, FileNotFoundError) and gone.errno


def test_what_a_search_leaves_out_is_said_without_folders(folders: Path) -> None:
    assert str(folders) not in sentence(ModelUnavailable(f"no file {folders}/weights/x"))
    assert str(folders) not in sentence(OSError(2, "No such file", f"{folders}/weights/x"))


def test_a_plain_error_is_cleaned_in_place(folders: Path) -> None:
    error: OSError = PermissionError(13, "Permission denied", str(folders / "weights" / "x"))
    without_paths(error)
    assert str(error) == "[Errno 13] Permission denied: 'MODELS_DIR/x'"
