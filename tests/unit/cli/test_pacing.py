"""A node that keeps ending waits longer and longer, one that runs does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from local.restart_backoff import FREE_STARTS, LONGEST_S, WINDOW_S, pause_s


def test_quick_ends_wait_longer_each_time_up_to_a_limit(tmp_path: Path) -> None:
    record = tmp_path / "deep" / "face.starts"
    pauses = [pause_s(record, 1000.0 + second) for second in range(12)]
    assert pauses[:FREE_STARTS] == [0.0] * FREE_STARTS
    assert pauses[FREE_STARTS : FREE_STARTS + 3] == [2.0, 4.0, 8.0]
    assert pauses[-1] == LONGEST_S


@pytest.mark.parametrize("now_s", [9000.0 + WINDOW_S, 1000.0])
def test_an_old_start_or_a_clock_set_back_does_not_keep_a_node_away(tmp_path: Path, now_s: float) -> None:
    record = tmp_path / "face.starts"
    for _ in range(10):
        pause_s(record, 9000.0)
    assert pause_s(record, now_s) == 0.0


@pytest.mark.parametrize("damage", ["", "[1, 2", "null", '{"a": 1}', '["x"]'])
def test_a_damaged_record_is_begun_again(tmp_path: Path, damage: str) -> None:
    record = tmp_path / "face.starts"
    record.write_text(damage)
    assert pause_s(record, 5.0) == 0.0
    assert pause_s(record, 6.0) == 0.0
