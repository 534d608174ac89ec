"""What the pool's children tell their parent: a page of shared memory per slot, written by one side only.

The parent can't see a child's model; the child writes its state here and the parent's event loop reads it. Made
before the fork, so that parent and children share it; no file, no lock.
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass
from typing import Any

LOADING, READY, FAILED = 0, 1, 2
_RECORD_BYTES = 16 * 1024
_HEAD = struct.Struct("<BIII")  # state, pid, sequence, length of the JSON that follows


@dataclass(frozen=True)
class Slot:
    """One child as its parent sees it."""

    state: int
    pid: int
    #: Grows with every load, so that a failed load is counted once.
    sequence: int
    #: {"models": [...]} when ready, {"error": "..."} when failed.
    report: dict[str, Any]


class Slots:
    """Shared memory for ``count`` children."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, count * _RECORD_BYTES)

    def write(self, index: int, state: int, pid: int, sequence: int, report: dict[str, Any]) -> None:
        """Called by the child that owns slot ``index``."""
        body = json.dumps(report).encode()
        if len(body) > _RECORD_BYTES - _HEAD.size:
            body = json.dumps({"error": str(report.get("error", ""))[:4000]}).encode()
        at = index * _RECORD_BYTES
        self._memory[at + _HEAD.size : at + _HEAD.size + len(body)] = body
        # The head last: a reader never sees a state whose report is not there yet.
        self._memory[at : at + _HEAD.size] = _HEAD.pack(state, pid, sequence, len(body))

    def read(self, index: int) -> Slot:
        at = index * _RECORD_BYTES
        state, pid, sequence, length = _HEAD.unpack(self._memory[at : at + _HEAD.size])
        body = self._memory[at + _HEAD.size : at + _HEAD.size + length]
        try:
            report = json.loads(body) if body else {}
        except ValueError:
            # The child is writing at this moment; the next look sees it whole.
            report = {}
        return Slot(state, pid, sequence, report)

    def read_all(self) -> list[Slot]:
        return [self.read(index) for index in range(self.count)]
