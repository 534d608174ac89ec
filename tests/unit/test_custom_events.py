"""Celery events of our own, over a broker in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from worker.broker.celery_patches import FleetEvents
from worker.child import Child
from worker.slots import Slots
from worker.telemetry import custom_events


@pytest.fixture(autouse=True)
def none_waiting() -> Iterator[None]:
    custom_events._waiting.clear()
    yield
    custom_events._waiting.clear()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    found = Celery("events", broker="memory://", events=FleetEvents, set_as_current=False)
    monkeypatch.setattr(custom_events, "current_app", found)
    return found


def capture(app: Celery) -> list[dict[str, Any]]:
    """What is sent now."""
    events: list[dict[str, Any]] = []
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        with receiver.consumer_context() as (consuming, _, _):
            custom_events.flush()
            while True:
                try:
                    consuming.drain_events(timeout=0.2)
                except TimeoutError:
                    return events


STATE: dict[str, Any] = {
    "name": "minilm", "family": "text", "device": "cpu", "loaded": True, "loads": 1, "memory_bytes": 9_000_000,
    "load_s": 0.5, "warm_up_s": None,
}  # fmt: skip


def test_events_are_sent_with_their_fields(app: Celery) -> None:
    custom_events.model_loaded({**STATE, "warm_up_s": 0.0123, "error": "not sent"})
    with custom_events.embedding("minilm", 384, 2, job_id=7):
        pass
    custom_events.embedding_generated("minilm", 384, 12.5, request_id="id1")
    loaded, job, request = capture(app)
    assert (loaded["type"], loaded["model"], loaded["memory_bytes"]) == ("model-loaded", "minilm", 9_000_000)
    assert (loaded["load_ms"], loaded["warm_up_ms"], loaded["device"]) == (500.0, 12.3, "cpu")
    assert "error" not in loaded
    assert (job["type"], job["job_id"], job["items"]) == ("embedding-generated", 7, 2)
    assert (request["dimension"], request["latency_ms"], request["request_id"]) == (384, 12.5, "id1")
    assert capture(app) == []


def test_a_child_tells_of_a_load_once_and_again_after_the_warm_up() -> None:
    child = Child(Slots(1), 0, 1)
    states: list[dict[str, Any]] = []

    class Cache:
        budget_mb = evictions = 0

        def states(self) -> list[dict[str, Any]]:
            return [dict(state) for state in states]

    cache: Any = Cache()
    child.hold(cache, None)
    states.append({**STATE, "loaded": False})
    cache.on_change()
    assert not custom_events._waiting
    states[0] = STATE
    cache.on_change()
    cache.on_change()
    states[0] = {**STATE, "warm_up_s": 0.1}
    cache.on_change()
    cache.on_change()
    assert [fields["warm_up_ms"] for _, fields in custom_events._waiting] == [None, 100.0]


def test_without_a_broker_events_are_dropped(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(type(app.events), "default_dispatcher", away)
    custom_events.embedding_generated("minilm", 384, 12.5)
    custom_events.flush()
    assert not custom_events._waiting


def test_no_more_than_a_thousand_wait() -> None:
    for number in range(1500):
        custom_events.embedding_generated("minilm", 384, float(number))
    assert len(custom_events._waiting) == 1000 and custom_events._waiting[0][1]["latency_ms"] == 500.0
