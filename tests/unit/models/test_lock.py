"""`models.lock`: whole or not at all, and nothing is lost between two writers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import ModelUnavailable
from worker.models.weights import lock

ENTRY = lock.Entry(revision="c" * 40, files={"a.bin": lock.LockedFile(sha256="0" * 64, bytes=3)})
#: A process that adds `count` entries, one change each.
WRITER = """
import sys
from pathlib import Path
from worker.models.weights import lock
for number in range(int(sys.argv[3])):
    with lock.changing(Path(sys.argv[1])) as entries:
        entries[f"{sys.argv[2]}-{number}"] = lock.Entry(files={})
"""


def test_none_where_nothing_was_pulled(tmp_path: Path) -> None:
    assert lock.read(tmp_path / "nowhere") == {}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    with lock.changing(tmp_path / "models") as entries:
        entries["tiny"] = ENTRY
    assert lock.read(tmp_path / "models") == {"tiny": ENTRY}
    with lock.changing(tmp_path / "models") as entries:
        entries["other"] = lock.Entry(files={})
    assert set(lock.read(tmp_path / "models")) == {"tiny", "other"}


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    with lock.changing(tmp_path) as entries:
        entries["tiny"] = ENTRY
    with pytest.raises(RuntimeError), lock.changing(tmp_path) as entries:
        entries.clear()
        raise RuntimeError("killed half-way")
    assert lock.read(tmp_path) == {"tiny": ENTRY}


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name, "40"], cwd=Path(__file__).parents[3]
        )
        for name in ("a", "b")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    expected = {f"{name}-{number}" for name in ("a", "b") for number in range(40)}
    assert set(lock.read(tmp_path)) == expected
    assert {path.name for path in tmp_path.iterdir()} == {lock.FILE, f".{lock.FILE}"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'{"models": {"tiny": {"files": {"a": {"sha256": 3}}}}}',
        b'{"more": 1}',
    ],
)
def test_a_damaged_lock_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / lock.FILE
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"restore it, or") as refusal:
        lock.read(tmp_path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(ModelUnavailable), lock.changing(tmp_path):
        raise AssertionError("a damaged lock must not be changed")
    assert path.read_bytes() == content
