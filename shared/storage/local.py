"""Objects as files: ``{root}/{bucket}/{key}``, for one machine, tests and the embedded setup.

Every key is walked by file descriptor (``folders.py``), so that nothing planted inside the root can lead out of it.
Files are written under ``{bucket}/.partial/``, fsynced, then renamed: a reader sees a whole object or none. Only
``ensure_buckets`` creates the root and the buckets: when a disk is away, writes fail instead of filling the folder it
was mounted on.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from ..errors import InvalidKey, InvalidRequest, ObjectMissing, StorageUnavailable
from ..permissions import FILE_MODE, make_private_folder, require_private
from . import folders as tree
from .incoming import Appender, Incoming
from .keys import check_key
from .objects import Bucket, ObjectInfo, ObjectStat, Storage, StorageConfig
from .transfer import CHUNK_BYTES, NO_ROOM, Source, no_room, write_all

PARTIAL = ".partial"  # no key begins with a dot, so no key can name it
#: Objects that arrive in pieces, by handle; in their own bucket, which may be a disk of its own.
INCOMING = ".incoming"
_HANDLE = re.compile(r"[0-9a-f]{32}", re.ASCII)
PARTIAL_TTL_S = 24 * 3600.0
#: A folder may be pruned between our making it and our using it; another try succeeds unless deletes never end.
_SETTLE_S = 10.0
_WITHOUT_URLS = {
    "PUT": ("upload", "store the file with put_file"),
    "GET": ("download", "read the file at local_path"),
}


class LocalStorage(Storage):
    """Implements ``Storage`` on a folder of this machine (or one mounted on several)."""

    def __init__(self, config: StorageConfig) -> None:
        """Raises InvalidRequest when the configuration has no root or bucket names that can't be folders."""
        if config.root is None:
            raise InvalidRequest("STORAGE_ROOT is not set: name the folder that holds the storage")
        super().__init__(config)
        self._root = config.root.expanduser().absolute()

    def _put(self, bucket: Bucket, key: str, source: Source, content_type: str) -> None:
        with (
            self._reported(bucket),
            self._bucket(bucket) as bucket_fd,
            _partial(bucket_fd) as (partial_fd, partial),
        ):
            with _created(partial_fd, partial) as target:
                while chunk := source.read(CHUNK_BYTES):
                    write_all(target, chunk)
                os.fsync(target)
            _settle(bucket_fd, key, partial_fd, partial)

    @contextmanager
    def _open(
        self, bucket: Bucket, key: str, offset: int, length: int | None
    ) -> Iterator[tuple[Iterator[bytes], int]]:
        with self._file(bucket, key) as (source, found):
            size_bytes = max(0, found.st_size - offset)
            size_bytes = size_bytes if length is None else min(length, size_bytes)
            yield self._chunks(bucket, source, offset, size_bytes), size_bytes

    def _chunks(self, bucket: Bucket, source: int, offset: int, size_bytes: int) -> Iterator[bytes]:
        end = offset + size_bytes
        with self._reported(bucket):
            while chunk := os.pread(source, min(CHUNK_BYTES, end - offset), offset):
                offset += len(chunk)
                yield chunk

    def stat(self, bucket: Bucket, key: str) -> ObjectStat:
        with self._file(bucket, key) as (_, found):
            return ObjectStat(size_bytes=found.st_size, modified_at=_modified_at(found))

    def local_path(self, bucket: Bucket, key: str) -> Path | None:
        with self._file(bucket, key):
            return self._root / self._name(bucket) / key

    def open_file(self, bucket: Bucket, key: str) -> int | None:
        with self._file(bucket, key) as (source, _):
            return os.dup(source)

    @contextmanager
    def _file(self, bucket: Bucket, key: str) -> Iterator[tuple[int, os.stat_result]]:
        """The object's file descriptor and its stat."""
        *names, name = check_key(key).split("/")
        with self._reported(bucket), self._bucket(bucket) as bucket_fd:
            try:
                with tree.walk(bucket_fd, names) as folder_fd:
                    source = tree.open_file(folder_fd, name)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ObjectMissing(f"there is no object {bucket}:{key}: upload it first") from error
        try:
            yield source, os.fstat(source)
        finally:
            os.close(source)

    def _list(self, bucket: Bucket, prefix: str) -> Iterator[ObjectInfo]:
        folder, _, start = prefix.rpartition("/")
        with self._reported(bucket), self._bucket(bucket) as bucket_fd:
            try:
                with tree.walk(bucket_fd, folder.split("/") if folder else []) as folder_fd:
                    for key, found in tree.scan(folder_fd, f"{folder}/" if folder else "", start):
                        yield ObjectInfo(
                            key=key,
                            size_bytes=found.st_size,
                            modified_at=_modified_at(found),
                        )
            except (FileNotFoundError, NotADirectoryError):
                return  # no such folder: nothing begins like this

    def delete(self, bucket: Bucket, key: str) -> None:
        *names, name = check_key(key).split("/")
        with self._reported(bucket), self._bucket(bucket) as bucket_fd:
            try:
                with tree.walk(bucket_fd, names) as folder_fd:
                    os.unlink(name, dir_fd=folder_fd)
                    os.fsync(folder_fd)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return  # no such object
            tree.prune(bucket_fd, names)

    def _delete_prefix(self, bucket: Bucket, prefix: str) -> int:
        names = prefix.removesuffix("/").split("/")
        with self._reported(bucket), self._bucket(bucket) as bucket_fd:
            try:
                with tree.walk(bucket_fd, names) as folder_fd:
                    removed = tree.clear(folder_fd)
            except (FileNotFoundError, NotADirectoryError):
                return 0  # no such folder
            tree.prune(bucket_fd, names)
        return removed

    def _begin(self, bucket: Bucket, key: str, content_type: str, folder: str) -> str:
        handle = secrets.token_hex(16)
        with (
            self._reported(bucket),
            self._bucket(bucket) as bucket_fd,
            tree.walk(bucket_fd, [INCOMING], create=True) as incoming_fd,
        ):
            with _created(incoming_fd, handle):
                pass
            os.fsync(incoming_fd)
        return handle

    def received_bytes(self, incoming: Incoming) -> int:
        with self._arriving(incoming) as (_, source):
            return os.fstat(source).st_size

    @contextmanager
    def append(self, incoming: Incoming, *, fence: int) -> Iterator[Appender]:
        with self._arriving(incoming, os.O_WRONLY) as (_, target):
            yield _FileAppender(target, lambda: self._reported(incoming.bucket))

    def _has_appeared(self, incoming: Incoming) -> bool:
        try:
            self.received_bytes(incoming)
        except ObjectMissing:
            with suppress(ObjectMissing):
                return self.stat(incoming.bucket, incoming.key).size_bytes == incoming.size_bytes
        return False

    def _complete(self, incoming: Incoming) -> None:
        with self._arriving(incoming) as (incoming_fd, source):
            os.fsync(source)
            with self._bucket(incoming.bucket) as bucket_fd:
                _settle(bucket_fd, incoming.key, incoming_fd, incoming.handle)

    def abort(self, incoming: Incoming) -> None:
        with suppress(ObjectMissing), self._arriving(incoming) as (incoming_fd, _):
            os.unlink(incoming.handle, dir_fd=incoming_fd)

    def sweep_incoming(self, bucket: Bucket, older_than_s: float) -> None:
        with (
            self._reported(bucket),
            self._bucket(bucket) as bucket_fd,
            suppress(FileNotFoundError),
            tree.walk(bucket_fd, [INCOMING]) as incoming_fd,
        ):
            tree.sweep(incoming_fd, older_than_s)

    @contextmanager
    def _arriving(self, incoming: Incoming, access: int = os.O_RDONLY) -> Iterator[tuple[int, int]]:
        """The folder of incoming objects and the file of this one."""
        check_key(incoming.key)
        with self._reported(incoming.bucket), self._bucket(incoming.bucket) as bucket_fd:
            missing = f"nothing is being received for object {incoming.bucket}:{incoming.key}: begin again"
            if not _HANDLE.fullmatch(incoming.handle):
                raise ObjectMissing(missing)
            with ExitStack() as opened:
                try:
                    incoming_fd = opened.enter_context(tree.walk(bucket_fd, [INCOMING]))
                    source = tree.open_file(incoming_fd, incoming.handle, access)
                except FileNotFoundError as error:
                    raise ObjectMissing(missing) from error
                opened.callback(os.close, source)
                yield incoming_fd, source

    def _presign(
        self,
        method: str,
        bucket: Bucket,
        key: str,
        expires_s: int,
        download_name: str | None = None,
        content_type: str | None = None,
    ) -> str:
        purpose, instead = _WITHOUT_URLS[method]
        raise InvalidRequest(f"STORAGE_BACKEND=local has no {purpose} URLs: {instead}, or use minio")

    def ensure_buckets(self) -> None:
        with self._reported(None):
            require_private(self._root, "STORAGE_ROOT")
            make_private_folder(self._root)
            for role, name in self._names.items():
                make_private_folder(self._root / name)
                with (
                    self._bucket(role) as bucket_fd,
                    tree.walk(bucket_fd, [PARTIAL], create=True) as partial_fd,
                ):
                    tree.sweep(partial_fd, PARTIAL_TTL_S)

    def _check(self) -> None:
        with self._reported(None):
            require_private(self._root, "STORAGE_ROOT")
        for role in self._names:  # write a byte where every object begins, and take it away
            with (
                self._reported(role),
                self._bucket(role) as bucket_fd,
                _partial(bucket_fd) as (partial_fd, partial),
            ):
                with _created(partial_fd, partial) as target:
                    write_all(target, b"?")
                    os.fsync(target)
                os.unlink(partial, dir_fd=partial_fd)

    def describe(self) -> str:
        return f"folder {self._root}"

    @contextmanager
    def _bucket(self, bucket: Bucket) -> Iterator[int]:
        """The descriptor of a bucket's folder. The root may be a link (its owner's choice), the bucket may not."""
        name = self._name(bucket)
        try:
            root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                bucket_fd = tree.open_folder(root_fd, name)
            finally:
                os.close(root_fd)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageUnavailable(
                f"storage folder {self._root / name} is not there: mount its disk or correct STORAGE_ROOT; "
                "a new storage is made by `scenefleet up`"
            ) from error
        try:
            yield bucket_fd
        finally:
            os.close(bucket_fd)

    @contextmanager
    def _reported(self, bucket: Bucket | None) -> Iterator[None]:
        """Turn the file system's errors into one sentence each."""
        try:
            yield
        except OSError as error:
            folder = self._root if bucket is None else self._root / self._name(bucket)
            if error.errno in NO_ROOM:
                raise StorageUnavailable(no_room(folder)) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise StorageUnavailable(
                    f"storage folder {folder} can't be used by this user ({error.strerror}): correct its permissions"
                ) from error
            raise StorageUnavailable(
                f"storage folder {folder} does not work ({error.strerror}): check its disk or mount"
            ) from error


class _FileAppender(Appender):
    """Writes at the offset that it counts, not at the end: a writer that was given up appends nothing twice."""

    def __init__(self, target: int, reported: Callable[[], AbstractContextManager[None]]) -> None:
        self._target = target
        self._reported = reported
        self.offset_bytes = os.fstat(target).st_size

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._reported():
            while view:
                done = os.pwrite(self._target, view, self.offset_bytes)
                self.offset_bytes += done
                view = view[done:]

    def flush(self) -> None:
        with self._reported():
            os.fsync(self._target)


@contextmanager
def _partial(bucket_fd: int) -> Iterator[tuple[int, str]]:
    """The folder of unfinished files and a fresh name in it; a file of that name is gone afterwards."""
    with tree.walk(bucket_fd, [PARTIAL], create=True) as partial_fd:
        name = secrets.token_hex(16)
        try:
            yield partial_fd, name
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=partial_fd)
            raise


@contextmanager
def _created(folder_fd: int, name: str) -> Iterator[int]:
    target = os.open(
        name,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
        FILE_MODE,
        dir_fd=folder_fd,
    )
    try:
        yield target
    finally:
        os.close(target)


def _settle(bucket_fd: int, key: str, partial_fd: int, partial: str) -> None:
    """Rename the finished file to its key, making the folders on the way."""
    names = key.split("/")
    give_up_at = time.monotonic() + _SETTLE_S
    while True:
        try:
            _rename(bucket_fd, names[:-1], names[-1], partial_fd, partial)
            return
        except FileNotFoundError:
            if time.monotonic() > give_up_at:
                raise
        except NotADirectoryError as error:
            raise InvalidKey(f"key {key!r} is inside another object: choose another key") from error
        except IsADirectoryError as error:
            raise InvalidKey(f"key {key!r} is the folder of other objects: choose another key") from error


def _rename(bucket_fd: int, names: Sequence[str], name: str, partial_fd: int, partial: str) -> None:
    with tree.walk(bucket_fd, names, create=True) as folder_fd:
        try:
            os.rename(partial, name, src_dir_fd=partial_fd, dst_dir_fd=folder_fd)
        except IsADirectoryError:
            if not tree.remove_empty(folder_fd, name):  # a delete that died may leave an empty folder
                raise
            os.rename(partial, name, src_dir_fd=partial_fd, dst_dir_fd=folder_fd)
        os.fsync(folder_fd)


def _modified_at(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)
