"""What a fleet tells others: a webhook at a video's end, the trace from the request to the sidecar, Celery's events."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from shared import trace_context
from tests.acceptance.lite.conftest import API_USER
from tests.support.api import Api
from tests.support.collector import Collector
from tests.support.fleet import Fleet, eventually
from tests.support.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def heard(outside: Celery) -> Iterator[list[dict[str, Any]]]:
    """Celery's events while the test runs."""
    events: list[dict[str, Any]] = []
    with outside.connection() as connection:
        receiver = outside.events.Receiver(connection, handlers={"*": events.append})
        # One subscription for the whole test: events between two would be lost.
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        thread.start()
        yield events
        receiver.should_stop = True
        thread.join(timeout=10)


def run(fleet: Fleet, *arguments: str) -> str:
    """What a command of ``scenefleet webhooks`` prints."""
    done = fleet.command("webhooks", *arguments, "--user", API_USER, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_video_sent_by_the_api_is_told_to_a_webhook_and_is_one_trace(
    fleet: Fleet,
    api: Api,
    spoken: Path,
    receiver: Receiver,
    collector: Collector,
    heard: list[dict[str, Any]],
) -> None:
    parent = trace_context.make()
    with httpx.Client(base_url=f"{api.url}/api/v1", timeout=30) as http:
        hook = http.post("/webhooks", json={"url": receiver.url, "events": ["video.indexed"]})
        assert hook.status_code == 201, hook.text
        receiver.secret = hook.json()["secret"]
        storage_key = fleet.upload(spoken, "told", API_USER)
        sent = http.put(
            "/videos/told", json={"storage_key": storage_key}, headers={"traceparent": str(parent)}
        )
        assert sent.status_code == 201, sent.text
        fleet.wait_ended(["told"], within_s=180, user_id=API_USER)
        eventually(lambda: receiver.received, within_s=30, what="a webhook")
        (got,) = receiver.received
        assert got.is_signed and got.body["type"] == "video.indexed"
        assert got.body["data"]["video_id"] == "told"

        def delivered() -> list[dict[str, Any]]:
            found = http.get("/webhook-deliveries", params={"state": "delivered"}).json()
            return list(found["deliveries"])

        (delivery,) = eventually(delivered, within_s=10, what="the note of the delivery")
        again = http.post(f"/webhook-deliveries/{delivery['delivery_id']}/resend")
        assert again.status_code == 202
        eventually(lambda: len(receiver.received) == 2, within_s=30, what="the event again")
        assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
        hook_id = hook.json()["webhook_id"]
        assert [one["secret"] for one in http.get("/webhooks").json()["webhooks"]] == [None]
        assert hook_id in run(fleet, "list")
        assert "delivered" in run(fleet, "deliveries", "--webhook", hook_id)
        run(fleet, "resend", str(delivery["delivery_id"]))
        eventually(lambda: len(receiver.received) == 3, within_s=30, what="the event once more")
        assert json.loads(run(fleet, "remove", hook_id, "--json"))["deleted"]
        made = json.loads(run(fleet, "add", receiver.url, "--event", "video.failed", "--json"))
        assert (made["events"], made["secret"][:6]) == (["video.failed"], "whsec_")
        assert http.delete(f"/webhooks/{made['webhook_id']}").json()["deleted"]

    def traced() -> set[str]:
        return {one.name for one in collector.spans if one.trace_id == parent.trace_id}

    wanted = {f"stage {name}" for name in ("split", "asr", "text", "face", "ocr", "sidecar")}
    wanted |= {"PUT /videos/{video_id}", "tasks.video.process"}
    eventually(lambda: wanted <= traced(), within_s=30, what=f"the spans {wanted - traced()}")
    mine = [one for one in collector.spans if one.trace_id == parent.trace_id]
    services = {one.service for one in mine}
    assert {"scenefleet-api", "scenefleet-search", "scenefleet-media", "scenefleet-text"} <= services
    ids = {one.span_id for one in mine} | {parent.span_id}
    assert all(one.parent_id in ids for one in mine), "no part of it is missing"
    made = [event for event in heard if event["type"] == "embedding-generated"]
    assert {(event["model"], event["dimension"]) for event in made} >= {("all-minilm-l6-v2", 384)}
    assert all(event["latency_ms"] >= 0 and event["hostname"] for event in made)


def test_a_loaded_model_is_told_with_its_memory_and_warm_up(
    fleet: Fleet, heard: list[dict[str, Any]]
) -> None:
    done = fleet.command("models", "unload", "all-minilm-l6-v2")
    assert done.returncode == 0, done.stderr
    done = fleet.command("models", "warmup", "all-minilm-l6-v2")
    assert done.returncode == 0, done.stderr

    def loaded() -> list[dict[str, Any]]:
        return [event for event in heard if event["type"] == "model-loaded" and event["warm_up_ms"]]

    event = eventually(loaded, within_s=15, what="an event of the load")[0]
    assert event["memory_bytes"] > 0 and event["load_ms"] > 0 and event["device"] == "cpu"
