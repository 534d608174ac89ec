"""The folder backend against what a folder can suffer: links, a disk that is full, away or read-only, races."""

from __future__ import annotations

import errno
import os
import shutil
import stat as modes
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from shared.errors import Conflict, InvalidKey, InvalidRequest, ObjectMissing, StorageUnavailable
from shared.storage import Storage, StorageConfig, open_storage
from shared.storage.local import PARTIAL, PARTIAL_TTL_S

KEY = "uploads/u1/v1/clip.mp4"
OCTETS = "application/octet-stream"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def storage(root: Path) -> Storage:
    storage = open_storage(StorageConfig(root=root))
    storage.ensure_buckets()
    return storage


def partials(root: Path) -> list[str]:
    """Unfinished files left in any bucket."""
    return [path.name for path in root.glob(f"*/{PARTIAL}/*")]


def run(*arguments: str, inside: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A Python of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*inside, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def refuse(patch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """Let a function of ``os`` fail."""
    patch.setattr(os, call, Mock(side_effect=OSError(code, os.strerror(code))))


# --- links


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    return outside


def test_a_linked_folder_leads_nowhere(storage: Storage, root: Path, outside: Path) -> None:
    (root / "uploads" / "uploads").symlink_to(outside)
    for operation in (
        lambda: storage.get_bytes("uploads", "uploads/secret"),
        lambda: storage.stat("uploads", "uploads/secret"),
        lambda: storage.local_path("uploads", "uploads/secret"),
        lambda: storage.put_bytes("uploads", "uploads/secret", b"x", OCTETS),
        lambda: storage.put_bytes("uploads", "uploads/new/file", b"x", OCTETS),
        lambda: storage.delete("uploads", "uploads/secret"),
        lambda: list(storage.list("uploads", "uploads/")),
    ):
        with pytest.raises(InvalidKey, match="symbolic link"):
            operation()
    assert list(storage.list("uploads", "")) == []
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert partials(root) == []


def test_a_linked_object_is_not_read_or_written_through(storage: Storage, root: Path, outside: Path) -> None:
    storage.put_bytes("uploads", "uploads/u1/v1/other", b"x", OCTETS)
    (root / "uploads" / KEY).symlink_to(outside / "secret")
    with pytest.raises(InvalidKey, match="symbolic link"):
        storage.get_bytes("uploads", KEY)
    assert [info.key for info in storage.list("uploads", "")] == ["uploads/u1/v1/other"]
    storage.put_bytes("uploads", KEY, b"mine", OCTETS)  # takes the link's place
    assert storage.get_bytes("uploads", KEY) == b"mine"
    assert (outside / "secret").read_text() == "secret"


def test_deleting_removes_links_not_what_they_lead_to(storage: Storage, root: Path, outside: Path) -> None:
    storage.put_bytes("uploads", "uploads/u1/v1/a", b"x", OCTETS)
    (root / "uploads/uploads/u1/v1/file").symlink_to(outside / "secret")
    (root / "uploads/uploads/u1/v1/folder").symlink_to(outside)
    assert storage.delete_prefix("uploads", "uploads/u1/v1/") == 1
    assert (outside / "secret").read_text() == "secret"
    assert not (root / "uploads/uploads").exists()


def test_a_root_may_be_a_link_and_a_bucket_may_not(storage: Storage, root: Path, outside: Path) -> None:
    root.rename(root.with_name("disk"))
    root.symlink_to(root.with_name("disk"))
    storage.put_bytes("uploads", KEY, b"x", OCTETS)
    assert (root.with_name("disk") / "uploads" / KEY).read_bytes() == b"x"
    shutil.rmtree(root / "tmp")
    (root / "tmp").symlink_to(outside)
    with pytest.raises(InvalidKey, match="symbolic link"):
        storage.get_bytes("tmp", "secret")
    with pytest.raises(StorageUnavailable, match="symbolic link"):
        storage.check()


def test_swapping_a_folder_for_a_link_never_leads_out(storage: Storage, root: Path, outside: Path) -> None:
    """A check of the path followed by its use would lose this race."""
    storage.put_bytes("uploads", "uploads/u1/secret", b"inside", OCTETS)
    folder, aside, stop = root / "uploads/uploads/u1", root / "uploads/uploads/aside", threading.Event()

    def swap() -> None:
        while not stop.is_set():
            folder.rename(aside)
            folder.symlink_to(outside)
            folder.unlink()
            aside.rename(folder)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen, refused = set(), 0
    try:
        for _ in range(2000):
            try:
                seen.add(storage.get_bytes("uploads", "uploads/u1/secret"))
            except (InvalidKey, ObjectMissing):
                refused += 1
    finally:
        stop.set()
        swapper.join()
    assert seen <= {b"inside"}
    assert refused  # the race took place
    assert storage.get_bytes("uploads", "uploads/u1/secret") == b"inside"


def test_what_is_not_a_file_is_not_an_object(storage: Storage, root: Path) -> None:
    os.mkfifo(root / "uploads" / "pipe")
    assert not storage.exists("uploads", "pipe")
    (root / "uploads" / "bad\nname").write_text("put here by hand, and no key can name it")
    assert list(storage.list("uploads", "")) == []


# --- the disk is away


def test_a_vanished_root_is_not_made_again(storage: Storage, root: Path) -> None:
    storage.put_bytes("uploads", KEY, b"x", OCTETS)
    root.rename(root.with_name("away"))
    for operation in (
        lambda: storage.put_bytes("uploads", KEY, b"y", OCTETS),
        lambda: storage.get_bytes("uploads", KEY),
        lambda: storage.exists("uploads", KEY),
        lambda: storage.delete("uploads", KEY),
        lambda: storage.delete_prefix("uploads", "uploads/u1/"),
        lambda: list(storage.list("uploads", "")),
        storage.check,
    ):
        with pytest.raises(StorageUnavailable, match=f"{root}/uploads is not there"):
            operation()
    assert not root.exists()
    root.mkdir()  # what is left where a disk was unmounted
    with pytest.raises(StorageUnavailable, match="mount its disk"):
        storage.put_bytes("uploads", KEY, b"x", OCTETS)
    root.rmdir()  # empty
    root.with_name("away").rename(root)
    assert storage.get_bytes("uploads", KEY) == b"x"


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EROFS, "Read-only file system"), (errno.EACCES, r"Permission denied.*correct its permissions")],
)
def test_a_read_only_root(storage: Storage, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    refuse(monkeypatch, "write", code)
    with pytest.raises(StorageUnavailable, match=words):
        storage.check()
    with pytest.raises(StorageUnavailable, match=words):
        storage.put_bytes("uploads", KEY, b"x", OCTETS)


# --- the disk is full


FULL_DISK = """
import os, sys
from pathlib import Path
from shared.errors import StorageUnavailable
from shared.storage import StorageConfig, open_storage

def say_refusal(operation):
    try:
        operation()
    except StorageUnavailable as error:
        print(error)
    else:
        sys.exit("4 MiB went into 1 MiB")

root, big = map(Path, sys.argv[1:])
storage = open_storage(StorageConfig(root=root))
storage.ensure_buckets()
storage.put_bytes("uploads", "uploads/u1/v1/kept", b"k" * 1000, "")
say_refusal(lambda: storage.put_file("uploads", "uploads/u1/v1/big", big, ""))
say_refusal(lambda: storage.put_bytes("uploads", "uploads/u1/v1/kept", big.read_bytes(), ""))
assert [i.key for i in storage.list("uploads", "")] == ["uploads/u1/v1/kept"]
assert storage.get_bytes("uploads", "uploads/u1/v1/kept") == b"k" * 1000
assert os.listdir(root / "uploads/.partial") == []
elsewhere = open_storage(StorageConfig(root=big.parent / "elsewhere"))
elsewhere.ensure_buckets()
elsewhere.put_file("tmp", "tmp/big", big, "")
say_refusal(lambda: elsewhere.get_file("tmp", "tmp/big", root / "fetched"))
assert sorted(os.listdir(root)) == ["sidecars", "tmp", "uploads"]
try:
    while True:
        storage.put_bytes("tmp", f"tmp/{os.urandom(4).hex()}", bytes(4096), "")
except StorageUnavailable:
    say_refusal(storage.check)
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """On a real file system of 1 MiB, mounted in a namespace of its own."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "big").write_bytes(bytes(4 * 2**20))
    (tmp_path / "full.py").write_text(FULL_DISK)
    mount = 'mount -t tmpfs -o size=1m,mode=0700 none "$1" && shift && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    namespace = [*unshare, "sh", "-c", mount, "sh", str(tmp_path / "disk")]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts in a user namespace; the next test injects the error")
    result = run(str(tmp_path / "full.py"), str(tmp_path / "disk"), str(tmp_path / "big"), inside=namespace)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"no room left to write in {tmp_path / 'disk'}") == 4
    assert result.stdout.count("bytes free") == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
def test_no_room(storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str) -> None:
    storage.put_bytes("uploads", "uploads/u0/v1/old", b"old", OCTETS)
    with monkeypatch.context() as patch:
        refuse(patch, call, code)
        said = rf"no room left to write in {root}/uploads \(\d+ bytes free\)"
        with pytest.raises(StorageUnavailable, match=said):
            storage.put_bytes("uploads", KEY, b"x" * 100, OCTETS)
    assert partials(root) == []
    assert [info.key for info in storage.list("uploads", "")] == ["uploads/u0/v1/old"]
    storage.put_bytes("uploads", KEY, b"x" * 100, OCTETS)


def test_short_writes_are_continued(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda target, data: write(target, bytes(data[:7])))
    storage.put_bytes("uploads", KEY, b"0123456789" * 10, OCTETS)
    assert storage.get_bytes("uploads", KEY) == b"0123456789" * 10


# --- half-done work


WRITER = """
import os, sys
from pathlib import Path
from shared.storage import StorageConfig, open_storage
import shared.storage.local as local

def die(target, data, write=os.write):
    write(target, bytes(data[: len(data) // 2]))
    os._exit(9)

storage = open_storage(StorageConfig(root=Path(sys.argv[1])))
local.os.write = die
storage.put_bytes("uploads", "uploads/u1/v1/clip.mp4", b"x" * 1000, "")
"""


def test_a_writer_that_dies_leaves_no_object_and_is_swept(storage: Storage, root: Path) -> None:
    storage.put_bytes("uploads", KEY, b"old", OCTETS)
    assert run("-c", WRITER, str(root)).returncode == 9
    assert storage.get_bytes("uploads", KEY) == b"old"
    assert [info.key for info in storage.list("uploads", "")] == [KEY]
    (left,) = (root / "uploads" / PARTIAL).iterdir()
    storage.ensure_buckets()
    assert left.exists()  # it may still be at work
    os.utime(left, (0, left.stat().st_mtime - PARTIAL_TTL_S - 1))
    storage.ensure_buckets()
    assert not left.exists()


def test_a_shrunk_source_is_refused(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(3 * 2**20))
    write = os.write

    def shrink(target: int, data: bytes) -> int:
        os.truncate(source, 2**20)
        return write(target, data)

    monkeypatch.setattr(os, "write", shrink)
    with pytest.raises(Conflict, match="shorter"):
        storage.put_file("uploads", KEY, source, OCTETS)
    assert not storage.exists("uploads", KEY)


def test_an_object_is_on_the_disk_before_it_has_its_name(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave a key with no bytes behind it."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(fd: int) -> None:
        fsync(fd)
        steps.append("folder" if modes.S_ISDIR(os.fstat(fd).st_mode) else f"file of {os.fstat(fd).st_size}")

    def record_rename(*names: object, **folders: object) -> None:
        rename(*names, **folders)  # type: ignore[arg-type]
        steps.append("rename")

    storage.put_bytes("tmp", "tmp/u1/v1/first", b"", OCTETS)  # makes the folders
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    storage.put_bytes("tmp", "tmp/u1/v1/a", b"12345", OCTETS)
    assert steps == ["file of 5", "rename", "folder"]


def test_an_object_that_loses_bytes_while_it_is_read(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes("uploads", KEY, bytes(3 * 2**20), OCTETS)
    path = storage.local_path("uploads", KEY)
    assert path is not None
    target = tmp_path / "target"
    with pytest.raises(StorageUnavailable, match="broke off after"):
        storage.get_file("uploads", KEY, target, on_progress=lambda *_: os.truncate(path, 2**20 + 5))
    assert not target.exists()


def test_an_object_can_not_lie_inside_another(storage: Storage, root: Path) -> None:
    storage.put_bytes("uploads", "a/b", b"x", OCTETS)
    with pytest.raises(InvalidKey, match="inside another object"):
        storage.put_bytes("uploads", "a/b/c", b"x", OCTETS)
    with pytest.raises(InvalidKey, match="folder of other objects"):
        storage.put_bytes("uploads", "a", b"x", OCTETS)
    assert partials(root) == []
    (root / "uploads/a/empty").mkdir()  # a delete that died may leave this
    storage.put_bytes("uploads", "a/empty", b"x", OCTETS)
    assert storage.get_bytes("uploads", "a/empty") == b"x"


def test_empty_folders_go_but_the_bucket_stays(storage: Storage, root: Path) -> None:
    storage.put_bytes("tmp", "tmp/u1/v1/j.1/a", b"x", OCTETS)
    storage.put_bytes("tmp", "tmp/u1/v1/j.2/a", b"x", OCTETS)
    storage.delete_prefix("tmp", "tmp/u1/v1/j.1/")
    assert (root / "tmp/tmp/u1/v1").exists() and not (root / "tmp/tmp/u1/v1/j.1").exists()
    storage.delete("tmp", "tmp/u1/v1/j.2/a")
    assert sorted(path.name for path in (root / "tmp").iterdir()) == [PARTIAL]


@pytest.mark.parametrize(("disk_s", "puts"), [(0.0, 150), (0.005, 50)])
def test_storing_while_folders_are_pruned(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, disk_s: float, puts: int
) -> None:
    """Every put must succeed although a delete keeps taking its folder away, also on a disk that is slow to sync."""
    stop = threading.Event()
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (time.sleep(disk_s), sync(fd)))

    def delete() -> None:
        while not stop.is_set():
            storage.delete_prefix("tmp", "tmp/u1/v1/")

    with ThreadPoolExecutor(3) as pool:
        deletes = [pool.submit(delete) for _ in range(2)]
        try:
            for number in range(puts):
                storage.put_bytes("tmp", f"tmp/u1/v1/{number}/x", b"x", OCTETS)
        finally:
            stop.set()
        for done in deletes:
            done.result()
    storage.delete_prefix("tmp", "tmp/u1/v1/")
    assert list(storage.list("tmp", "")) == []


# --- size


def test_listing_takes_no_memory_to_speak_of(storage: Storage, root: Path) -> None:
    """A folder of 10,000 objects: the listing must not hold them all."""
    folder = root / "tmp" / "many"
    folder.mkdir()
    for number in range(10_000):
        os.close(os.open(folder / str(number), os.O_CREAT | os.O_WRONLY))
    tracemalloc.start()
    try:
        assert sum(1 for _ in storage.list("tmp", "many/")) == 10_000
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 250_000


def test_no_descriptor_is_left_open(storage: Storage, root: Path, tmp_path: Path) -> None:
    (root / "uploads/link").symlink_to(tmp_path)
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("counting open files needs Linux's /proc")
    before = len(list(open_files.iterdir()))
    for number in range(20):
        storage.put_bytes("uploads", KEY, b"x", OCTETS)
        storage.get_file("uploads", KEY, tmp_path / "target")
        next(iter(storage.list("uploads", "")))  # never finished
        storage.delete_prefix("uploads", "uploads/u1/")
        for key in ("link/x", "link", "missing", f"{number}/missing"):
            with pytest.raises((InvalidKey, ObjectMissing)):
                storage.get_bytes("uploads", key)
    assert len(list(open_files.iterdir())) == before


# --- configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({"bucket_tmp": name}, "STORAGE_BUCKET_TMP")
            for name in ("..", "a", "a/b", "Uploads", "", "a..b", "-ab", "x" * 64)
        ),
        ({"bucket_tmp": "uploads"}, "must differ"),
        ({"root": None}, "STORAGE_ROOT is not set"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        open_storage(StorageConfig(**{"root": tmp_path, **changes}))


def test_a_folder_has_no_urls(storage: Storage) -> None:
    with pytest.raises(InvalidRequest, match="put_file"):
        storage.presign_put("uploads", KEY, 60)
    with pytest.raises(InvalidRequest, match="local_path"):
        storage.presign_get("uploads", KEY, 60)


def test_importing_the_package_loads_no_backend() -> None:
    code = "import sys, shared.storage; assert not {'minio', 'urllib3', 'sqlalchemy'} & {*sys.modules}"
    assert run("-c", code).returncode == 0
