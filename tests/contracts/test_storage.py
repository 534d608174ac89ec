"""The contract of a storage, kept by every backend: a folder, and S3 over HTTP on two independent servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.errors import (
    Conflict,
    InvalidKey,
    InvalidRequest,
    LimitExceeded,
    ObjectMissing,
    StorageUnavailable,
)
from shared.storage import Bucket, Incoming, Storage, StorageConfig, open_storage
from tests.support.s3_servers import with_own_buckets

MiB = 2**20
KEY = "uploads/u1/v1/clip.mp4"
OCTETS = "application/octet-stream"


@pytest.fixture(params=["local", "moto", "swift"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> StorageConfig:
    """A configuration whose buckets do not exist yet."""
    if request.param == "local":
        return StorageConfig(backend="local", root=tmp_path / "storage")
    return with_own_buckets(request.getfixturevalue(request.param))


@pytest.fixture
def storage(config: StorageConfig) -> Storage:
    storage = open_storage(config)
    storage.ensure_buckets()
    return storage


def put(storage: Storage, *keys: str, bucket: Bucket = "uploads") -> None:
    for key in keys:
        storage.put_bytes(bucket, key, key.encode(), OCTETS)


def listed(storage: Storage, prefix: str, bucket: Bucket = "uploads") -> list[str]:
    return sorted(info.key for info in storage.list(bucket, prefix))


# --- whole objects


@pytest.mark.parametrize("size_bytes", [0, 1, MiB + 1, 33 * MiB + 7])  # the last one: three parts on S3
def test_objects_come_back_as_they_went(storage: Storage, tmp_path: Path, size_bytes: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    data = os.urandom(size_bytes)
    source.write_bytes(data)
    storage.put_file("uploads", KEY, source, "video/mp4")
    assert storage.get_file("uploads", KEY, target) == size_bytes
    assert target.read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["source", "target"]
    storage.put_bytes("tmp", KEY, data, OCTETS)
    assert storage.get_bytes("tmp", KEY) == data
    assert storage.stat("tmp", KEY).size_bytes == size_bytes


def test_the_last_one_stored_counts(storage: Storage) -> None:
    storage.put_bytes("uploads", KEY, b"first, and longer", OCTETS)
    storage.put_bytes("uploads", KEY, b"second", OCTETS)
    assert storage.get_bytes("uploads", KEY) == b"second"
    assert listed(storage, "") == [KEY]


def test_odd_names_are_names_like_any_other(storage: Storage) -> None:
    for name in (
        *("with space.mp4", " lead and trail ", "плюс+минус.mp4", "日本語.mp4", "\N{GRINNING FACE}.mp4"),
        *("%2e%2e%2f.mp4", "a?b=c&d#e.mp4", "<x>&amp;\"quotes'.mp4", "semi;colon:at@~!$*(),.mp4"),
        *("...", "l\N{ZERO WIDTH JOINER}r", "x" * 200),
    ):
        key = f"uploads/u1/v1/{name}"
        put(storage, key)
        assert storage.get_bytes("uploads", key) == key.encode()
        assert storage.stat("uploads", key).size_bytes == len(key.encode())
        assert listed(storage, "uploads/u1/") == [key]
        assert listed(storage, key) == [key]
        storage.delete("uploads", key)
        assert listed(storage, "") == []


def test_stat_gives_the_time_in_utc(storage: Storage) -> None:
    put(storage, KEY)
    modified_at = storage.stat("uploads", KEY).modified_at
    assert modified_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - modified_at) < timedelta(minutes=1)
    (info,) = storage.list("uploads", "")
    assert abs(info.modified_at - modified_at) < timedelta(seconds=2)  # S3 tells the time to the second
    assert info.size_bytes == len(KEY)


# --- parts of objects


@pytest.mark.parametrize("data", [b"0123456789", b""])
def test_ranges(storage: Storage, data: bytes) -> None:
    storage.put_bytes("tmp", "tmp/u/v", data, OCTETS)
    for offset, length in (
        *((0, None), (0, 0), (0, 4), (3, None), (3, 0), (3, 4)),
        *((9, 1), (9, 99), (10, None), (10, 1), (11, 5), (99, None)),
    ):
        end = None if length is None else offset + length
        assert storage.get_bytes("tmp", "tmp/u/v", offset=offset, length=length) == data[offset:end]
    for offset, length in ((-1, None), (0, -1)):
        with pytest.raises(InvalidRequest, match="negative"):
            storage.get_bytes("tmp", "tmp/u/v", offset=offset, length=length)


# --- files


def test_progress_ends_with_the_size(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes("uploads", KEY, bytes(3 * MiB + 5), OCTETS)
    seen: list[tuple[int, int | None]] = []
    storage.get_file(
        "uploads", KEY, tmp_path / "target", on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (3 * MiB + 5, 3 * MiB + 5)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) >= 4  # a chunk is at most 1 MiB


def test_more_than_wanted_is_not_read(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes("uploads", KEY, b"0123456789", OCTETS)
    assert storage.get_bytes("uploads", KEY, max_bytes=10) == b"0123456789"
    assert storage.get_bytes("uploads", KEY, offset=5, max_bytes=5) == b"56789"
    assert storage.get_file("uploads", KEY, tmp_path / "fits", max_bytes=10) == 10
    with pytest.raises(LimitExceeded, match="10 bytes, at most 9"):
        storage.get_bytes("uploads", KEY, max_bytes=9)
    with pytest.raises(LimitExceeded, match="10 bytes, at most 9"):
        storage.get_file("uploads", KEY, tmp_path / "target", max_bytes=9)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["fits"]


def test_an_interrupted_fetch_leaves_the_old_file(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes("uploads", KEY, bytes(3 * MiB), OCTETS)
    target = tmp_path / "target"
    target.write_bytes(b"old")

    class Stop(Exception):
        pass

    def stop(done_bytes: int, total_bytes: int | None) -> None:
        raise Stop

    with pytest.raises(Stop):
        storage.get_file("uploads", KEY, target, on_progress=stop)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["target"]
    assert storage.get_file("uploads", KEY, target) == 3 * MiB  # the connection is not left in the middle
    assert target.stat().st_size == 3 * MiB


def test_a_target_that_can_not_be_written_is_the_callers_mistake(storage: Storage, tmp_path: Path) -> None:
    put(storage, KEY)
    with pytest.raises(InvalidRequest, match="can't be written"):
        storage.get_file("uploads", KEY, tmp_path / "no" / "such" / "folder")


def test_what_can_not_be_stored_is_the_callers_mistake(storage: Storage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidRequest, match=str(path)):
            storage.put_file("uploads", KEY, path, OCTETS)
    assert listed(storage, "") == []


def test_local_path_is_the_object_itself_or_nothing(storage: Storage, config: StorageConfig) -> None:
    put(storage, KEY)
    path = storage.local_path("uploads", KEY)
    if config.backend == "minio":
        assert path is None and storage.open_file("uploads", KEY) is None
    else:
        assert path is not None and path.read_bytes() == KEY.encode()
        opened = storage.open_file("uploads", KEY)
        assert opened is not None
        with os.fdopen(opened, "rb") as file:
            assert file.read() == KEY.encode()
        for find in (storage.local_path, storage.open_file):
            with pytest.raises(ObjectMissing):
                find("uploads", "uploads/u1/v1/missing")


# --- what is not there


def test_a_missing_object(storage: Storage, tmp_path: Path) -> None:
    put(storage, "uploads/u1/v1/clip.mp4")
    for key in ("uploads/u1/v1/other.mp4", "uploads/u1/v1", "uploads/u1/v1/clip.mp4/inside"):
        assert not storage.exists("uploads", key)
        for read in (
            lambda key=key: storage.stat("uploads", key),
            lambda key=key: storage.get_bytes("uploads", key),
            lambda key=key: storage.get_bytes("uploads", key, offset=3),
            lambda key=key: storage.get_bytes("uploads", key, length=0),
            lambda key=key: storage.get_file("uploads", key, tmp_path / "target"),
        ):
            with pytest.raises(ObjectMissing, match=key):
                read()
    assert not (tmp_path / "target").exists()


def operations(storage: Storage, bucket: Bucket, key: str, tmp_path: Path) -> list[Callable[[], object]]:
    """Each method that takes a key, called with this one."""
    source = tmp_path / "operand"
    source.write_bytes(b"x")
    return [
        lambda: storage.put_bytes(bucket, key, b"x", OCTETS),
        lambda: storage.put_file(bucket, key, source, OCTETS),
        lambda: storage.get_bytes(bucket, key),
        lambda: storage.get_file(bucket, key, tmp_path / "target"),
        lambda: storage.stat(bucket, key),
        lambda: storage.exists(bucket, key),
        lambda: storage.delete(bucket, key),
        lambda: list(storage.list(bucket, key)),
        lambda: storage.delete_prefix(bucket, key + "/"),
    ]


def test_a_missing_bucket_is_an_outage_never_a_missing_object(config: StorageConfig, tmp_path: Path) -> None:
    storage = open_storage(config)  # nobody called ensure_buckets
    for operation in operations(storage, "uploads", "uploads/u1/v1", tmp_path):
        with pytest.raises(StorageUnavailable, match=config.bucket_uploads):
            operation()
    with pytest.raises(StorageUnavailable, match=config.bucket_uploads):
        storage.check()
    storage.ensure_buckets()
    storage.check()
    assert listed(storage, "") == []
    put(storage, KEY)
    storage.ensure_buckets()
    assert listed(storage, "") == [KEY]


def test_an_unknown_role_is_refused(storage: Storage, tmp_path: Path) -> None:
    for operation in operations(storage, "photos", "uploads/u1/v1", tmp_path):  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="photos"):
            operation()


def test_a_malformed_key_is_refused_everywhere(storage: Storage, tmp_path: Path) -> None:
    for key in ("..", "a/../b", "/etc/passwd", "a//b", "a\\b", "a\0b", "a\nb", ".partial/x"):
        for operation in operations(storage, "uploads", key, tmp_path):
            with pytest.raises(InvalidKey):
                operation()
        for presign in (storage.presign_get, storage.presign_put):
            with pytest.raises(InvalidKey):
                presign("uploads", key, 60)
    assert listed(storage, "") == []


# --- listing and deleting


def test_listing_takes_any_prefix(storage: Storage) -> None:
    keys = ["uploads/u1/v1/a", "uploads/u1/v1/b/c", "uploads/u1/v10/a", "uploads/u10/v1/a", "x"]
    put(storage, *keys)
    assert listed(storage, "") == keys
    assert listed(storage, "uploads/") == keys[:4]
    assert listed(storage, "uploads/u1") == keys[:4]
    assert listed(storage, "uploads/u1/") == keys[:3]
    assert listed(storage, "uploads/u1/v1") == keys[:3]
    assert listed(storage, "uploads/u1/v1/") == keys[:2]
    assert listed(storage, "uploads/u1/v1/b/c") == [keys[1]]
    assert listed(storage, "uploads/u1/v1/b/c/") == []
    assert listed(storage, "uploads/u2") == []
    assert listed(storage, "nothing/at/all") == []
    with pytest.raises(InvalidKey):
        storage.list("uploads", "../")  # when asked for, not when read


def test_deleting_twice_is_deleting(storage: Storage) -> None:
    put(storage, "uploads/u1/v1/a", "uploads/u1/v1/b")
    storage.delete("uploads", "uploads/u1/v1/a")
    storage.delete("uploads", "uploads/u1/v1/a")
    storage.delete("uploads", "uploads/never/was/there")
    storage.delete("uploads", "uploads/u1/v1")  # a folder, not an object
    assert listed(storage, "") == ["uploads/u1/v1/b"]


def test_deleting_a_folder_takes_all_of_it_and_nothing_else(storage: Storage) -> None:
    put(
        storage,
        "tmp/u1/v1/a",
        "tmp/u1/v1/b/c/d",
        "tmp/u1/v1/b/e",
        "tmp/u1/v10/a",
        "tmp/u2/v1/a",
        bucket="tmp",
    )
    put(storage, "tmp/u1/v1/a", bucket="uploads")
    assert storage.delete_prefix("tmp", "tmp/u1/v1/") == 3
    assert storage.delete_prefix("tmp", "tmp/u1/v1/") == 0
    assert listed(storage, "", bucket="tmp") == ["tmp/u1/v10/a", "tmp/u2/v1/a"]
    assert listed(storage, "", bucket="uploads") == ["tmp/u1/v1/a"]
    assert storage.delete_prefix("tmp", "tmp/u1/") == 1
    storage.check()  # the bucket itself stays, even empty
    assert storage.delete_prefix("tmp", "tmp/u2/v1/a/") == 0
    assert storage.delete_prefix("tmp", "tmp/u2/") == 1
    put(storage, "tmp/u1/v1/again", bucket="tmp")


def test_deleting_what_is_being_listed(storage: Storage) -> None:
    keys = {f"tmp/u1/v{number % 5}/{number}/x" for number in range(30)}
    put(storage, *keys, bucket="tmp")
    seen = set()
    for info in storage.list("tmp", "tmp/u1/"):
        storage.delete("tmp", info.key)
        seen.add(info.key)
    assert seen == keys
    assert listed(storage, "", bucket="tmp") == []


def test_too_wide_a_prefix_is_not_deleted(storage: Storage) -> None:
    put(storage, "uploads/u1/v1/a")
    for prefix in ("", "/", "uploads", "uploads/", "uploads/u1", "uploads/u1/..", "uploads/../", "../../"):
        with pytest.raises(InvalidKey):
            storage.delete_prefix("uploads", prefix)
    assert listed(storage, "") == ["uploads/u1/v1/a"]


def test_many_objects_are_deleted_and_those_that_are_not_there_are_no_error(storage: Storage) -> None:
    for name in ("a", "b", "b2", "c"):
        put(storage, f"uploads/u1/v1/{name}")
    storage.delete_many("uploads", [f"uploads/u1/v1/{name}" for name in ("a", "b", "gone")])
    assert listed(storage, "") == ["uploads/u1/v1/b2", "uploads/u1/v1/c"]
    storage.delete_many("uploads", [])
    with pytest.raises(InvalidKey):
        storage.delete_many("uploads", ["uploads/u1/v1/c", "../c"])
    assert listed(storage, "") == ["uploads/u1/v1/b2", "uploads/u1/v1/c"]


# --- together


def test_many_threads_share_a_storage(storage: Storage, tmp_path: Path) -> None:
    def work(number: int) -> bytes:
        key = f"tmp/u1/v{number % 3}/{number}"
        storage.put_bytes("tmp", key, bytes([number]) * 1000, OCTETS)
        storage.get_file("tmp", key, tmp_path / str(number))
        return (tmp_path / str(number)).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(40)))
    assert results == [bytes([number]) * 1000 for number in range(40)]
    assert len(listed(storage, "tmp/u1/", bucket="tmp")) == 40


def test_readers_see_one_writer_or_the_other(storage: Storage) -> None:
    versions = [bytes([number]) * 200_000 for number in range(4)]
    storage.put_bytes("tmp", "tmp/u/v", versions[0], OCTETS)
    with ThreadPoolExecutor(6) as pool:
        writes = [pool.submit(storage.put_bytes, "tmp", "tmp/u/v", data, OCTETS) for data in versions * 4]
        reads = [pool.submit(storage.get_bytes, "tmp", "tmp/u/v") for _ in range(20)]
        for write in writes:
            write.result()
        assert all(read.result() in versions for read in reads)


def test_where_it_is_is_told_without_credentials(storage: Storage, config: StorageConfig) -> None:
    told = storage.describe() + repr(config) + str(config)
    assert str(config.root or config.endpoint) in storage.describe()
    for secret in filter(None, (config.secret_key.get_secret_value(), config.access_key)):
        assert secret not in told


# --- objects that arrive in pieces

FOLDER = "incoming/u1/0123/"


def begin(storage: Storage, size_bytes: int, key: str = KEY) -> Incoming:
    return storage.begin("uploads", key, size_bytes, "video/mp4", folder=FOLDER)


def send(storage: Storage, incoming: Incoming, data: bytes, *, fence: int = 1, step: int = 3 * MiB) -> int:
    """Append as a server does that receives ``step`` bytes at a time; the offset afterwards."""
    with storage.append(incoming, fence=fence) as appender:
        for start in range(0, len(data), step):
            appender.write(data[start : start + step])
        appender.flush()
        return appender.offset_bytes


def test_an_object_arrives_in_pieces_of_any_size(storage: Storage) -> None:
    data = os.urandom(19 * MiB + 7)
    incoming = begin(storage, len(data))
    done = 0
    for fence, size in enumerate((5, 3 * MiB, 0, 5 * MiB - 5, 1, 9 * MiB, len(data)), 1):
        again = Incoming(**asdict(incoming))  # its owner keeps it as JSON
        assert storage.received_bytes(again) == done
        done = send(storage, again, data[done : done + size], fence=fence)
        assert not storage.exists("uploads", KEY)
        if done < len(data):
            with pytest.raises(Conflict, match=f"{done} of {len(data)} bytes"):
                storage.complete(again)
    assert done == storage.received_bytes(incoming) == len(data)
    storage.complete(incoming)
    assert storage.get_bytes("uploads", KEY) == data
    storage.complete(incoming)  # the answer to the first call was lost
    storage.abort(incoming)  # too late, and harmless
    assert storage.get_bytes("uploads", KEY) == data
    assert listed(storage, "") == [KEY]
    assert listed(storage, "", bucket="tmp") == []


def test_a_writer_that_was_given_up_takes_nothing_back(storage: Storage) -> None:
    data = os.urandom(9 * MiB)
    incoming = begin(storage, len(data))
    with storage.append(incoming, fence=1) as old:
        old.write(data[:100])
        old.flush()
        old.write(data[100:200])
        stored = storage.received_bytes(incoming)  # a folder has the bytes at once
        assert stored in (100, 200)
        assert send(storage, incoming, data[stored:1000], fence=2) == 1000
        old.flush()
        assert storage.received_bytes(incoming) == 1000
        send(storage, incoming, data[1000 : 8 * MiB + 50], fence=3)
        old.write(data[200:300])
        old.flush()
    assert storage.received_bytes(incoming) == 8 * MiB + 50
    send(storage, incoming, data[8 * MiB + 50 :], fence=4)
    storage.complete(incoming)
    assert storage.get_bytes("uploads", KEY) == data


def test_what_arrives_never_replaces_what_is_there(storage: Storage) -> None:
    put(storage, KEY)
    incoming = begin(storage, 3)
    send(storage, incoming, b"new")
    with pytest.raises(Conflict, match="exists already"):
        storage.complete(incoming)
    assert storage.get_bytes("uploads", KEY) == KEY.encode()
    storage.abort(incoming)
    with pytest.raises(ObjectMissing):
        storage.append(incoming, fence=2).__enter__()
    with pytest.raises(ObjectMissing):
        storage.complete(incoming)  # what is there has another size
    assert listed(storage, "", bucket="tmp") == []


def test_only_old_incoming_objects_are_swept(storage: Storage, request: pytest.FixtureRequest) -> None:
    incoming = begin(storage, 3)
    send(storage, incoming, b"ab")
    if "moto" not in request.node.name:  # moto says of each upload that it was begun in 2010
        storage.sweep_incoming("uploads", 60)
        assert storage.received_bytes(incoming) == 2
    storage.sweep_incoming("uploads", -60)
    with pytest.raises(ObjectMissing):
        storage.received_bytes(incoming)
    storage.abort(incoming)


def test_an_incoming_object_needs_a_size_a_key_and_its_own_name(storage: Storage) -> None:
    with pytest.raises(InvalidRequest, match="0 bytes"):
        begin(storage, 0)
    with pytest.raises(InvalidKey):
        begin(storage, 3, "../x")
    incoming = begin(storage, 3)
    for handle in ("", "../" + incoming.handle, "0" * 32, "/etc/passwd"):
        with pytest.raises(ObjectMissing):
            storage.received_bytes(replace(incoming, handle=handle))
