"""Who may read what we write: folders are 0700 and files 0600, whatever the caller's umask.

A folder that was there before is not changed behind its owner's back: one that others can read is refused, with the
command that mends it.
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
    """Let this process and those that it starts make files which only their user can read."""
    os.umask(UMASK)


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it, that only this user can enter; one that is there stays as it is."""
    for folder in reversed((path, *path.parents)):
        if not folder.exists():
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def tighten(path: Path, mode: int = FOLDER_MODE) -> None:
    """Take others' rights from a folder or file of ours, if it is there and has any."""
    try:
        if path.stat().st_mode & OTHERS:
            path.chmod(mode)
    except FileNotFoundError:
        return


def require_private(path: Path, name: str) -> None:
    """Refuse a folder that other users of this machine can enter, list or write; one that is not there is none.

    Args:
        path: the folder.
        name: the setting that names it.

    Raises:
        InvalidRequest: says which command mends it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        # Not there, or not to be reached: whoever uses it says so.
        return
    if mode & OTHERS:
        raise InvalidRequest(
            f"{name}={str(path)!r} is open to other users of this machine (mode {mode:04o}): "
            f"run `chmod -R go-rwx {shlex.quote(str(path))}`"
        )
