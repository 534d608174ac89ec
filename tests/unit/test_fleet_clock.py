"""The fleet's clock: what a message says about time does not depend on the clock of its sender, nor of its reader."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from shared.fleet_clock import FleetClock
from tests.support.messages import make_message
from worker.broker import celery_patches
from worker.broker.celery_patches import HidingRequest, checked_task
from worker.broker.messages import check_unacknowledged
from worker.online import batch

AHEAD_S = 3600.0


def ahead() -> tuple[int, int]:
    """The answer of a Redis whose machine is an hour ahead of this one."""
    return int(time.time() + AHEAD_S), 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FleetClock:
    found = FleetClock(ahead)
    for module in (celery_patches, batch):
        monkeypatch.setattr(module, "fleet_clock", found)
    return found


def test_it_is_the_servers_and_is_asked_rarely() -> None:
    asked: list[int] = []

    def ask() -> Any:
        asked.append(1)
        return ahead()

    clock = FleetClock(ask)
    assert abs(clock.now() - time.time() - AHEAD_S) < 60
    assert abs((clock.after(30) - datetime.now(UTC)).total_seconds() - AHEAD_S - 30) < 60
    assert len(asked) == 1


def test_without_an_answer_the_last_reading_counts_and_before_it_the_own_clock() -> None:
    def away() -> Any:
        raise ConnectionError

    clock = FleetClock(away)
    assert abs(clock.now() - time.time()) < 60
    clock.read(ahead)
    clock.read(away)
    assert abs(clock.now() - time.time() - AHEAD_S) < 60


def expired(expires: datetime) -> tuple[bool, bool]:
    """Whether a node's main process, and its child, take a message for expired."""
    request = SimpleNamespace(id="m", expires=expires)
    return HidingRequest.maybe_expire(request), batch.is_expired({"expires": expires.isoformat()})


def test_a_message_expires_by_the_fleets_clock(clock: FleetClock) -> None:
    assert expired(clock.after(60)) == (False, False)
    assert expired(clock.after(-60)) == (True, True)
    # By this machine's clock it has an hour left.
    assert expired(datetime.fromtimestamp(time.time() + 0.5 * AHEAD_S, UTC)) == (True, True)


def test_a_message_keeps_the_time_at_which_it_was_taken_first(
    clock: FleetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bare ``send_task``, which does not say when it was sent."""
    monkeypatch.setattr(celery_patches, "_is_known", lambda task: True)
    raw = make_message("tasks.video.cancel", {"video_id": "v1", "user_id": "u1"}, "search")
    taken = checked_task(raw, "search")
    assert taken is not None
    at = taken["headers"]["sent_at"]
    assert abs(at - time.time() - AHEAD_S) < 60
    # As the node notes it in Redis, and as it is put back when that node is gone.
    again, queue = check_unacknowledged(json.dumps([taken, "", "search"]))
    monkeypatch.setattr(clock, "now", lambda: at + 7200)
    delivered = checked_task(again, queue)
    assert delivered is not None and delivered["headers"]["sent_at"] == at


@pytest.mark.parametrize("sent_at", ["yesterday", -1.0, 1e12, float("nan"), True])
def test_a_time_that_is_none_drops_the_message(sent_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_patches, "_is_known", lambda task: True)
    raw = make_message("tasks.video.cancel", {}, "search", **{"headers.sent_at": sent_at})
    assert checked_task(raw, "search") is None
