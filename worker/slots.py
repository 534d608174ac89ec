"""Shared memory between a node's main process and its children: two pages per slot, no file, no lock.

Created before the fork. Only the child writes one page (the states of its models), only the main process the other
(commands). A child may be killed at any moment: a page keeps the last but one record, so that a reader always finds a
complete one.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

LOADING, READY, FAILED = 0, 1, 2
STATE_NAMES = ("loading", "ready", "failed")
#: Maximum size of a record. Unused memory costs nothing.
RECORD_BYTES = 256 * 1024
#: A reader tries again if two records were written while it read.
_LOOKS = 5
#: Maximum length of a string in a record that would be too long.
SHORT_CHARS = 300
_HEAD = struct.Struct("<QI")  # sequence, length of the JSON that follows
_CHECKSUM = struct.Struct("<I")  # of both
_PREFIX_BYTES = _HEAD.size + _CHECKSUM.size


class Page:
    """One record, written completely or not at all, by a single writer; ``at``: where the page begins in ``memory``."""

    BYTES = 2 * RECORD_BYTES

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory, self._at = memory, at

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record."""
        sequence = self.read()[0] + 1
        body = _encode(record, RECORD_BYTES - _PREFIX_BYTES)
        head = _HEAD.pack(sequence, len(body))
        whole = head + _CHECKSUM.pack(zlib.crc32(head + body)) + body
        # Over the older record: the newest stays readable until this one is complete.
        at = self._place(sequence)
        self._memory[at : at + len(whole)] = whole

    def read(self) -> tuple[int, dict[str, Any]]:
        """The newest complete record and its sequence; 0 and nothing before the first."""
        for _ in range(_LOOKS):
            sequence, body = max(self._half(0), self._half(1))
            if sequence:
                return sequence, json.loads(body)
        return 0, {}

    def _half(self, parity: int) -> tuple[int, bytes]:
        at = self._place(parity)
        prefix = self._memory[at : at + _PREFIX_BYTES]
        head, checksum = prefix[: _HEAD.size], prefix[_HEAD.size :]
        sequence, length = _HEAD.unpack(head)
        body = self._memory[
            at + _PREFIX_BYTES : at + _PREFIX_BYTES + min(length, RECORD_BYTES - _PREFIX_BYTES)
        ]
        # A wrong checksum: never written, being written now, or its writer was killed meanwhile.
        return (sequence, body) if checksum == _CHECKSUM.pack(zlib.crc32(head + body)) else (0, b"")

    def _place(self, sequence: int) -> int:
        return self._at + sequence % 2 * RECORD_BYTES


@dataclass(frozen=True)
class Slot:
    """The state of one child."""

    state: int = LOADING
    #: 0: no child has published anything yet.
    pid: int = 0
    #: What the child has published (`worker.child`).
    report: dict[str, Any] = field(default_factory=dict)
    #: Grows with every record.
    sequence: int = 0


class Slots:
    """Shared memory for ``count`` children."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, count * 2 * Page.BYTES)

    def write(self, index: int, state: int, pid: int, report: dict[str, Any]) -> None:
        """Called by the child that owns slot ``index``."""
        self._page(index, 0).write({"state": state, "pid": pid, "report": report})

    def read(self, index: int) -> Slot:
        sequence, record = self._page(index, 0).read()
        return Slot(**record, sequence=sequence)

    def read_all(self) -> list[Slot]:
        return [self.read(index) for index in range(self.count)]

    def write_command(self, index: int, command: dict[str, Any]) -> None:
        """Called by the main process."""
        self._page(index, 1).write(command)

    def read_command(self, index: int) -> dict[str, Any]:
        """The last command to slot ``index``; empty: none yet."""
        return self._page(index, 1).read()[1]

    def _page(self, index: int, side: int) -> Page:
        return Page(self._memory, (2 * index + side) * Page.BYTES)


def _encode(record: dict[str, Any], room: int) -> bytes:
    """The record as JSON of at most ``room`` bytes: long strings are cut, then models are left out and counted."""
    body = json.dumps(record).encode()
    if len(body) <= room:
        return body
    record = _shortened(record)
    report = record.get("report", {})
    models = report.get("models", [])
    kept = len(models)
    while len(body := json.dumps(record).encode()) > room and kept:
        kept //= 2
        report |= {"models": models[:kept], "models_left_out": len(models) - kept}
    return body


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= SHORT_CHARS else value[: SHORT_CHARS - 3] + "..."
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return value
