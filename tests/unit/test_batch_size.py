"""Batches become smaller while the database is slow, and larger again."""

from __future__ import annotations

import pytest

from worker.stages import batch_size
from worker.stages.batch_size import BatchSize


def test_a_slow_transaction_halves_the_next_and_quick_ones_double_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(batch_size.time, "monotonic", lambda: now[0])
    size = BatchSize(1000)
    seen = []
    for took_s in (0.1, 0.1, 0.1, 0.4, 0.6, 9.0, 9.0, 9.0, 9.0, 9.0, 0.0):
        with size.timed() as rows:
            now[0] += took_s
        seen.append(rows)
    assert seen == [250, 500, 1000, 1000, 1000, 500, 250, 125, 62, 50, 50]
    assert size.rows == 100 and BatchSize(100).rows == 100
