"""Objects that arrive piece by piece: what a resumable upload needs of a storage, beside ``Storage`` itself.

Imports nothing of the backends. ``tests/contracts/test_storage.py`` checks both against these docstrings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

Bucket = Literal["uploads", "sidecars", "tmp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """An object that is being received. Plain strings and numbers: its owner stores it between two requests."""

    bucket: Bucket
    #: Where the object appears when it is complete.
    key: str
    #: Its announced size.
    size_bytes: int
    #: Folder of the tmp bucket for what a backend has to store beside the object; ends with ``/``.
    folder: str
    #: The backend's own name for what was received so far.
    handle: str


class Appender(ABC):
    """One writer of an incoming object.

    Two at once do no harm as long as they write the same bytes: what one has stored, another one that began earlier never
    takes back.
    """

    #: Number of bytes received, including those that ``flush`` has not stored yet.
    offset_bytes: int

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Append ``data``; it may wait in memory (at most one part of S3) for ``flush``."""

    @abstractmethod
    def flush(self) -> None:
        """Store what waits: afterwards ``offset_bytes`` bytes survive the end of this process."""
