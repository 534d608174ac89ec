"""Locks by which one job runs alone on its node: after the death of a process, so that a further one is the job's own fault.

POSIX locks on a file without a name, which is made before the children are forked. They belong to a process, so the kernel
frees those of a child that dies, and a replacement has them too. A process uses them from one thread.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from typing import Final

#: Bytes of the file: who begins a job passes the first one, who runs a job shares the second one.
_GATE, _JOBS = 0, 1
#: How long a child that begins a job may have the gate, seconds: it passes at once.
_PASSING_S = 1.0
_LOOK_S: Final = 0.01


class JobLocks:
    """The locks of one node's children; each child runs one job at a time."""

    def __init__(self) -> None:
        # Locks belong to the process and the file: the descriptor may be inherited, and must stay open.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def begin(self) -> bool:
        """Take part in the node's jobs. False: a job runs alone, or waits until it does."""
        if not self._try(_GATE, fcntl.LOCK_SH):
            return False
        # Free for sharing: whoever has it alone has closed the gate.
        begun = self._try(_JOBS, fcntl.LOCK_SH)
        self._free(_GATE)
        return begun

    def close_gate(self) -> bool:
        """Let no other job begin. False: another job of this node does the same."""
        until_s = time.monotonic() + _PASSING_S
        while not self._try(_GATE, fcntl.LOCK_EX):
            if time.monotonic() > until_s:
                return False
            time.sleep(_LOOK_S)
        return True

    def is_alone(self) -> bool:
        """Whether no other job runs, and none begins until this one ends; after ``close_gate``."""
        return self._try(_JOBS, fcntl.LOCK_EX)

    def end(self) -> None:
        """The job has ended."""
        self._free(_JOBS)
        self._free(_GATE)

    def _try(self, byte: int, how: int) -> bool:
        try:
            fcntl.lockf(self._file, how | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _free(self, byte: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
