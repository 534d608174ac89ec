"""The home folder: one owner at a time, secrets that stay secret."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from local.home import Home, configured_settings, write_private
from shared.errors import Conflict, InvalidRequest
from shared.settings import Settings, load_settings

HOLD = """
import sys
from pathlib import Path
from local.home import Home
from shared.settings import Settings
home = Home(Settings(SCENEFLEET_HOME=Path(sys.argv[1])))
home.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def home_of(folder: Path) -> Home:
    return Home(Settings(SCENEFLEET_HOME=folder))


def test_a_second_owner_is_refused_until_the_first_dies_however_it_dies(tmp_path: Path) -> None:
    home = home_of(tmp_path / "a home")
    assert not home.is_locked() and home.owner_pid() is None and home.read_run() == {}
    assert not home.root.exists()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
        assert home.is_locked() and home.owner_pid() == owner.pid
        with pytest.raises(Conflict, match=f"process {owner.pid}"):
            home.acquire()
        owner.kill()
        owner.wait()
        assert not home.is_locked()
        home.acquire()
        assert home.owned
        home.release()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="SCENEFLEET_HOME"):
        home_of(tmp_path / "file" / "home").acquire()


def test_secrets_are_kept_and_private(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    first = home.secret("postgres")
    assert home.secret("redis") != first
    assert home_of(tmp_path).secret("postgres") == first
    assert stat.S_IMODE(home.secrets_file.stat().st_mode) == 0o600


def test_private_files_replace_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    write_private(path, {"pid": 1})
    assert json.loads(path.read_text()) == {"pid": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_stale_run_file_is_not_taken_for_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENEFLEET_HOME", str(tmp_path))
    monkeypatch.delenv("REDIS_URL", raising=False)
    home_of(tmp_path).write_run({"redis_url": "redis://127.0.0.1:1/0"})
    assert load_settings().redis_url == "redis://127.0.0.1:1/0"
    assert configured_settings().redis_url == ""
