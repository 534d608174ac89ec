"""Folders by file descriptor, one name at a time, no symbolic link followed: what keeps local keys inside their root.

Paths as strings are resolved by the kernel at each call, links and all, so a check made before is worth nothing.
Imports nothing of the storage but the rule for keys.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from ..errors import InvalidKey
from ..permissions import FOLDER_MODE
from .keys import is_key

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# NONBLOCK: opening a planted pipe must not hold us up.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


@contextmanager
def walk(base_fd: int, names: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """The descriptor of the folder reached from ``base_fd`` by ``names``.

    With ``create`` the missing ones are made at once and synced to the disk when the caller is done with the folder:
    between the two, each empty folder may be pruned by a delete, so that time must be short.

    Raises:
        FileNotFoundError: it is not there (with ``create``: it was removed while we made it).
        NotADirectoryError: a part of the path is a file.
        InvalidKey: a part of the path is a symbolic link.
    """
    opened = [os.dup(base_fd)]
    grown: list[int] = []
    try:
        for name in names:
            try:
                next_fd = open_folder(opened[-1], name)
            except FileNotFoundError:
                if not create:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(name, FOLDER_MODE, dir_fd=opened[-1])
                grown.append(opened[-1])
                next_fd = open_folder(opened[-1], name)
            opened.append(next_fd)
            while len(opened) > 1 and opened[0] not in grown:
                os.close(opened.pop(0))
        yield opened[-1]
        for folder_fd in grown:
            os.fsync(folder_fd)
    finally:
        for folder_fd in opened:
            os.close(folder_fd)


def open_folder(parent_fd: int, name: str) -> int:
    """A descriptor of one folder inside another; raises as ``walk``."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent_fd)
    except OSError as error:
        # Linux says ENOTDIR for a link opened as a folder, other systems ELOOP.
        if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(parent_fd, name):
            _refuse_link(name)
        raise


def open_file(folder_fd: int, name: str, access: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file, to read unless ``access`` says otherwise.

    Raises:
        FileNotFoundError: there is none, or something that is no regular file.
        InvalidKey: it is a symbolic link.
    """
    try:
        file_fd = os.open(name, access | _FILE, dir_fd=folder_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse_link(name)
        if error.errno != errno.ENXIO:  # a socket
            raise
    else:
        if modes.S_ISREG(os.fstat(file_fd).st_mode):
            return file_fd
        os.close(file_fd)
    raise FileNotFoundError(errno.ENOENT, "not a regular file", name)


def scan(folder_fd: int, path: str, start: str) -> Iterator[tuple[str, os.stat_result]]:
    """Key and stat of each object below a folder whose first name begins with ``start``; one descriptor per level."""
    with os.scandir(folder_fd) as entries:
        for entry in entries:
            key = path + entry.name
            if not entry.name.startswith(start) or not is_key(key):
                continue
            try:
                found = entry.stat(follow_symlinks=False)
                if modes.S_ISREG(found.st_mode):
                    yield key, found
                elif modes.S_ISDIR(found.st_mode):
                    with walk(folder_fd, [entry.name]) as inner_fd:
                        yield from scan(inner_fd, key + "/", "")
            except FileNotFoundError:
                continue  # deleted since the folder was read


def clear(folder_fd: int) -> int:
    """Remove all below a folder (of a link, the link itself); return the number of regular files removed.

    What others store there meanwhile may stay, with its folder.
    """
    removed = 0
    for name in os.listdir(folder_fd):
        try:
            mode = os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode
            if modes.S_ISDIR(mode):
                with walk(folder_fd, [name]) as inner_fd:
                    removed += clear(inner_fd)
                remove_empty(folder_fd, name)
            else:
                os.unlink(name, dir_fd=folder_fd)
                removed += modes.S_ISREG(mode)
        except FileNotFoundError:
            continue  # another delete was faster
    os.fsync(folder_fd)
    return removed


def prune(base_fd: int, names: Sequence[str]) -> None:
    """Remove the folders on the way to ``names``, the innermost first, as long as they are empty; never the base."""
    for depth in range(len(names), 0, -1):
        try:
            with walk(base_fd, names[: depth - 1]) as parent_fd:
                if not remove_empty(parent_fd, names[depth - 1]):
                    return
        except FileNotFoundError:
            continue  # another delete was faster


def remove_empty(parent_fd: int, name: str) -> bool:
    """Remove a folder if it is empty; whether it was."""
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in _NOT_EMPTY:
            return False
        raise
    return True


def sweep(folder_fd: int, older_than_s: float) -> None:
    """Remove the files of a folder that were last written longer ago than that."""
    for name in os.listdir(folder_fd):
        with suppress(FileNotFoundError):
            if time.time() - os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mtime > older_than_s:
                os.unlink(name, dir_fd=folder_fd)


def _is_link(folder_fd: int, name: str) -> bool:
    return modes.S_ISLNK(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)


def _refuse_link(name: str) -> NoReturn:
    raise InvalidKey(
        f"the key leads through a symbolic link at {name!r} in the storage folder: remove the link"
    )
