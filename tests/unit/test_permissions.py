"""What is written on this machine is for its user alone, whatever the umask and whatever stood there before."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.home import Home
from shared import permissions
from shared.errors import InvalidRequest, StorageUnavailable
from shared.settings import Settings
from shared.storage import StorageConfig, open_storage
from tests.support.fleet import ROOT
from worker.models.weights import lock


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """That of a shell, which lets others read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_paths(root: Path) -> list[str]:
    """Whatever at or below a folder others can read, write or enter."""
    return [
        f"{path} {stat.S_IMODE(path.lstat().st_mode):o}"
        for path in (root, *root.rglob("*"))
        if path.lstat().st_mode & permissions.OTHERS
    ]


def home_of(folder: Path) -> Home:
    return Home(Settings(SCENEFLEET_HOME=folder))


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777])
def test_a_home_that_others_can_read_is_refused_with_the_command(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "a home"
    (root / "logs").mkdir(parents=True, mode=0o755)
    (root / "secrets.json").write_text("{}")
    root.chmod(mode)
    with pytest.raises(InvalidRequest, match=f"mode {mode:04o}") as caught:
        home_of(root).acquire()
    command = str(caught.value).split("`")[1]
    assert command == f"chmod -R go-rwx {shlex.quote(str(root))}"
    assert not (root / "up.lock").exists()
    subprocess.run(shlex.split(command), check=True)
    assert open_paths(root) == []
    home = home_of(root)
    home.acquire()
    home.release()


@pytest.mark.parametrize("earlier", [(), ("logs", "redis", "work", "storage")])
def test_what_a_home_holds_is_private_after_an_upgrade(tmp_path: Path, earlier: tuple[str, ...]) -> None:
    root = tmp_path / "new" / "home"
    for name in earlier:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.parent.chmod(0o700)
        (root / name).mkdir(mode=0o755)
    home = home_of(root)
    home.acquire()
    home.secret("redis")
    home.write_run({"redis_url": "unix://:secret@/x"})
    home.release()
    assert open_paths(tmp_path / "new") == []


def test_storage_and_the_record_of_models_are_private(tmp_path: Path) -> None:
    storage = open_storage(StorageConfig(backend="local", root=tmp_path / "some" / "storage"))
    storage.ensure_buckets()
    storage.put_bytes("uploads", "uploads/u/v/film.mp4", b"film", "video/mp4")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    storage.put_file("sidecars", "sidecars/u/v/run1.json", source, "application/json")
    storage.get_file("uploads", "uploads/u/v/film.mp4", tmp_path / "some" / "fetched")
    with lock.changing(tmp_path / "some" / "models") as entries:
        entries["x"] = lock.Entry(files={})
    assert open_paths(tmp_path / "some") == []


def test_storage_that_others_can_read_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "storage"
    storage = open_storage(StorageConfig(backend="local", root=root))
    storage.ensure_buckets()
    storage.check()
    root.chmod(0o755)
    with pytest.raises(InvalidRequest, match=r"STORAGE_ROOT=.*`chmod -R go-rwx"):
        storage.ensure_buckets()
    with pytest.raises(StorageUnavailable, match=r"STORAGE_ROOT=.*`chmod -R go-rwx"):
        storage.check()


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (["up"], "SCENEFLEET_HOME"),
        (["up", "--detach"], "SCENEFLEET_HOME"),
        (["node", "search"], "STORAGE_ROOT"),
    ],
)
def test_a_command_refuses_a_folder_others_can_read(tmp_path: Path, command: list[str], folder: str) -> None:
    root = tmp_path / "open"
    root.mkdir()
    root.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "cli", *command],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "SCENEFLEET_HOME": str(tmp_path / "home"),
            "POSTGRES_URL": "postgresql://u:p@127.0.0.1:1/x",
            "REDIS_URL": "redis://127.0.0.1:1/0",
            folder: str(root),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert f"chmod -R go-rwx {root}" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert list(root.iterdir()) == []
