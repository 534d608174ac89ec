"""Run a program as ``nobody`` when we are root: Postgres refuses to run as root.

``python -m cli.embedded.unprivileged PROGRAM ARGUMENT...`` replaces itself by the program. On Linux it keeps the one
right to pass through folders (CAP_DAC_OVERRIDE), because a checkout below ``/root`` (mode 0700) is not reachable for
another user otherwise; nobody's folders get other permissions than they had. Where the kernel refuses (a container
without that right) the program runs without it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from pathlib import Path

ACCOUNT = "nobody"

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


def wrap(command: list[str]) -> list[str]:
    """The command to start instead of ``command``: itself, or through this module when we are root."""
    if os.geteuid() != 0:
        return command
    return [sys.executable, "-m", "cli.embedded.unprivileged", *command]


def own(path: Path) -> None:
    """Give a folder to the account the wrapped program runs under."""
    if os.geteuid() == 0:
        os.chown(path, *account_ids())


def drop_privileges() -> None:
    """Become ``nobody``, for good."""
    uid, gid = account_ids()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
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
    drop_privileges()
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
