"""How many rows a transaction takes on: fewer while the database is slow, so that others do not wait for its locks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

#: A transaction that lasts longer than this halves the next one, one that lasts less than half of it doubles it; seconds.
WANTED_S = 0.5
_LEAST = 50


class BatchSize:
    """A number of rows between 50 and ``largest``, by how long the last transaction took."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.rows = min(largest, 5 * _LEAST)

    @contextmanager
    def timed(self) -> Iterator[int]:
        """Run one transaction of the number of rows that this yields."""
        began = time.monotonic()
        yield self.rows
        took_s = time.monotonic() - began
        if took_s > WANTED_S:
            self.rows = max(_LEAST, self.rows // 2)
        elif took_s < WANTED_S / 2:
            self.rows = min(self.largest, self.rows * 2)
