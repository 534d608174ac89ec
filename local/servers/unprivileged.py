"""Run a program as ``nobody`` when we are root: Postgres refuses to run as root.

``python unprivileged.py FOLDER PROGRAM ARGUMENT...`` enters the folder and replaces itself by the program.
On Linux the program reaches that folder as ``OWN_FOLDER``, whoever may enter the folders above it, so that it needs no
right of root. Only where the program itself is in a folder that is closed to others, as a checkout below ``/root`` (mode
0700) is, it keeps the right to pass through folders (CAP_DAC_OVERRIDE); no folder gets other permissions than it
had. Where the kernel refuses that (a container without the right) the program runs without it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
import sys
from pathlib import Path

ACCOUNT = "nobody"
#: The folder a process is in, for those who could not go there; a link of Linux's proc that asks for no permissions.
OWN_FOLDER = "/proc/self/cwd"

# linux/prctl.h, linux/securebits.h, linux/capability.h
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1


def account_ids() -> tuple[int, int]:
    """User and group id that Postgres runs under when we are root."""
    entry = pwd.getpwnam(ACCOUNT)
    return entry.pw_uid, entry.pw_gid


def wrap(command: list[str], folder: Path) -> list[str]:
    """The command to start instead of ``command``: itself, or through this module when we are root."""
    if os.geteuid() != 0:
        return command
    # By its file: the folder it starts in is not the package's.
    return [sys.executable, "-P", str(Path(__file__)), str(folder), *command]


def seen_from_inside(folder: Path) -> str:
    """How a wrapped program names the folder that it is started in."""
    return OWN_FOLDER if os.geteuid() == 0 and sys.platform == "linux" else str(folder)


def is_open(path: Path) -> bool:
    """Whether every user may reach a file, by the permissions of the folders above it."""
    folders = {*path.absolute().parents, *path.resolve().parents}
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def own(path: Path) -> None:
    """Give a folder to the account the wrapped program runs under."""
    if os.geteuid() == 0:
        os.chown(path, *account_ids())


def drop_privileges(*, pass_folders: bool) -> None:
    """Become ``nobody``, for good; ``pass_folders``: but keep the right to pass through folders."""
    uid, gid = account_ids()
    libc = ctypes.CDLL(None, use_errno=True) if pass_folders and sys.platform == "linux" else None
    # Without this bit the kernel takes every right away at setuid, and access(2) ignores those that are left.
    kept = libc is not None and libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0) == 0
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if libc is not None and kept:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        right = 1 << _CAP_DAC_OVERRIDE
        # Two blocks of (effective, permitted, inheritable).
        if libc.capset(header, (ctypes.c_uint32 * 6)(right, right, right, 0, 0, 0)) != 0:
            # Not ours to keep: leave with no right at all.
            libc.capset(header, (ctypes.c_uint32 * 6)(0, 0, 0, 0, 0, 0))
        else:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def main() -> None:
    folder, *command = sys.argv[1:]
    os.chdir(folder)
    drop_privileges(pass_folders=not is_open(Path(command[0])))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
