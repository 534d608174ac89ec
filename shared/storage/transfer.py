"""Bytes from an object to a file, whole or not at all: the half of ``get_file`` that every backend shares."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import InvalidRequest, LimitExceeded, StorageUnavailable
from ..permissions import FILE_MODE
from .objects import MiB, OnProgress

CHUNK_BYTES = MiB
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def receive(
    path: Path,
    chunks: Iterable[bytes],
    *,
    size_bytes: int,
    max_bytes: int | None,
    on_progress: OnProgress | None,
    source: str,
) -> int:
    """Write ``chunks`` to ``path`` by a temporary file beside it; return the number of bytes.

    Args:
        size_bytes: what the storage says the object has; another number arriving is an error.
        source: the object, for messages.

    Raises:
        LimitExceeded: the object has more than ``max_bytes`` bytes; nothing is read then.
        StorageUnavailable: fewer or more bytes came than announced, or there is no room at ``path``.
        InvalidRequest: the folder of ``path`` does not exist or can't be written.
    """
    check_size(size_bytes, max_bytes, source)
    done_bytes = 0
    with _appearing(path) as target:
        for chunk in chunks:
            with local_errors(path):
                write_all(target, chunk)
            done_bytes += len(chunk)
            if on_progress is not None:
                on_progress(done_bytes, size_bytes)
        if done_bytes != size_bytes:
            raise StorageUnavailable(
                f"{source} broke off after {done_bytes} of {size_bytes} bytes: it is read again"
            )
    return done_bytes


def check_size(size_bytes: int, max_bytes: int | None, source: str) -> None:
    """Refuse what is larger than the caller wants.

    Raises:
        LimitExceeded: ``size_bytes`` is over ``max_bytes``.
    """
    if max_bytes is not None and size_bytes > max_bytes:
        raise LimitExceeded(
            f"{source} has {size_bytes} bytes, at most {max_bytes} are allowed: send less, or raise the limit"
        )


@contextmanager
def source_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file to be stored, open for reading, and its size in bytes.

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
        yield file, os.fstat(file.fileno()).st_size


def read_source(file: BinaryIO, size_bytes: int, path: Path) -> bytes:
    """Up to ``size_bytes`` bytes of the file to be stored; none at its end.

    Raises:
        InvalidRequest: it can't be read.
    """
    try:
        return file.read(size_bytes)
    except OSError as error:
        raise InvalidRequest(f"file {path} can't be read ({error.strerror}): check its disk") from error


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
def _appearing(path: Path) -> Iterator[int]:
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
