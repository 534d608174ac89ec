"""The caller's files: read while they are stored, written whole or not at all when an object is fetched."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import Conflict, InvalidRequest, StorageUnavailable
from ..permissions import FILE_MODE

MiB = 2**20
CHUNK_BYTES = MiB
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Source:
    """The bytes to be stored: of a file, as many as it had when it was opened."""

    def __init__(self, file: BinaryIO, size_bytes: int, name: str = "") -> None:
        self.size_bytes = size_bytes
        self._file = file
        self._left_bytes = size_bytes
        self._name = name

    def read(self, size_bytes: int) -> bytes:
        """Return up to ``size_bytes`` of the bytes that are left; none at the end.

        Raises:
            InvalidRequest: the file can't be read.
            Conflict: it became shorter.
        """
        try:
            data = self._file.read(min(size_bytes, self._left_bytes))
        except OSError as error:
            raise InvalidRequest(
                f"file {self._name} can't be read ({error.strerror}): check its disk"
            ) from error
        if not data and self._left_bytes:
            raise Conflict(
                f"file {self._name} became shorter while it was stored: store it once it is complete"
            )
        self._left_bytes -= len(data)
        return data


@contextmanager
def source_file(path: Path) -> Iterator[Source]:
    """The file to be stored.

    Raises:
        InvalidRequest: there is no readable regular file at ``path``.
    """
    try:
        # O_NONBLOCK: a pipe without a writer would otherwise hold us up for ever.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise InvalidRequest(
            f"file {path} can't be read ({error.strerror}): correct its path or permissions"
        ) from error
    with file:
        if not path.is_file():
            raise InvalidRequest(f"{path} is not a regular file: give the path of a file")
        yield Source(file, os.fstat(file.fileno()).st_size, str(path))


@contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system at ``path``, the caller's side of a transfer, into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageUnavailable(no_room(path.parent)) from error
        raise InvalidRequest(
            f"file {path} can't be written ({error.strerror}): correct its folder or permissions"
        ) from error


def no_room(folder: Path) -> str:
    """The sentence for a full disk, with what is left on it."""
    try:
        free_bytes = f"{shutil.disk_usage(folder).free} bytes free"
    except OSError as error:
        free_bytes = f"free bytes unknown: {error.strerror}"
    return f"no room left to write in {folder} ({free_bytes}): free some space or raise its quota"


def write_all(target: int, data: bytes) -> None:
    """Write ``data`` to a file descriptor, however little each write takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


@contextmanager
def appearing(path: Path) -> Iterator[int]:
    """A descriptor to write to; the file is at ``path`` afterwards, or nowhere."""
    # The temporary name is not derived from the file's, which may be at the limit of its length.
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    with local_errors(path):
        target = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            yield target
        finally:
            with local_errors(path):  # a full network disk may say so only now
                os.close(target)
        with local_errors(path):
            partial.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
