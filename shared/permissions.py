"""Permissions of new folders (0700) and files (0600), whatever the caller's umask.

Existing folders are not changed: one that others can read is refused, with the
command that fixes it.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from .errors import InvalidRequest

FOLDER_MODE = 0o700
FILE_MODE = 0o600
UMASK = 0o077
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keep_private() -> None:
    """Make this process and its children create files that only their user can read."""
    os.umask(UMASK)


def make_private_folder(path: Path) -> None:
    """Create a folder, and its parents, that only this user can enter; an existing one does not change."""
    for folder in reversed((path, *path.parents)):
        if not folder.exists():
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def tighten(path: Path, mode: int = FOLDER_MODE) -> None:
    """Remove the rights of others from a folder or file, if it exists."""
    try:
        if path.stat().st_mode & OTHERS:
            path.chmod(mode)
    except FileNotFoundError:
        return


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w") as file:
        file.write(text)
    draft.replace(path)


def require_private(path: Path, name: str) -> None:
    """Refuse an existing folder that other users of this machine can enter, list or write.

    Args:
        path: the folder.
        name: the setting that names it.

    Raises:
        InvalidRequest: names the command that fixes it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        # Missing or not accessible: its user reports this.
        return
    if mode & OTHERS:
        raise InvalidRequest(
            f"{name}={str(path)!r} is open to other users of this machine (mode {mode:04o}): "
            f"run `chmod -R go-rwx {shlex.quote(str(path))}`"
        )
