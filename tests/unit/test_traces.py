"""Traces without a collector: what is a traceparent, and that nothing is lost or loaded while traces are off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from celery import Celery
from fastapi import APIRouter, FastAPI

from api.traces import Traces
from shared import settings as settings_module, trace_context, tracing
from shared.broker import HidingAMQP, TracingAMQP
from worker.broker.messages import check_task
from worker.telemetry import custom_events, request_signals

#: The example of https://www.w3.org/TR/trace-context/.
EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setattr(tracing, "_made", None)
    settings_module.get_settings.cache_clear()
    custom_events._waiting.clear()
    yield
    settings_module.get_settings.cache_clear()
    custom_events._waiting.clear()


def test_a_traceparent_is_read_and_written_as_the_standard_says() -> None:
    found = trace_context.parse(EXAMPLE)
    assert found is not None and found.sampled and str(found) == EXAMPLE
    later = trace_context.parse(EXAMPLE.replace("00-", "01-", 1) + "-more")
    assert later is not None and str(later) == EXAMPLE
    made = trace_context.make()
    assert trace_context.parse(str(made)) == made != trace_context.make()


@pytest.mark.parametrize(
    "text",
    [
        None, 7, "", EXAMPLE[:-1], EXAMPLE + "0", EXAMPLE + "-more", EXAMPLE.upper(), EXAMPLE + "\n",
        EXAMPLE.replace("00-", "ff-", 1), EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        EXAMPLE.replace("00f067aa0ba902b7", "0" * 16), "x" * 1024,
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_none(text: object) -> None:
    assert trace_context.parse(text) is None


def test_without_a_collector_the_trace_goes_on_and_opentelemetry_is_not_loaded() -> None:
    code = f"""
import sys
from shared import trace_context, tracing
parent = trace_context.parse("{EXAMPLE}")
with tracing.span("stage split", parent=parent, attributes={{"job_id": 1}}) as span:
    span.note(outcome="done")
    span.fail("BadMedia")
    assert trace_context.current() == parent
assert trace_context.current() is None
tracing.flush()
import worker.app, api.app
# redis-py loads the metrics of OpenTelemetry by itself.
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("amqp", [TracingAMQP, HidingAMQP])
def test_a_message_belongs_to_the_trace_of_its_sender_and_keeps_it_on_its_way(amqp: type) -> None:
    app = Celery("t", amqp=amqp, broker="memory://", set_as_current=False)

    def headers() -> dict[str, Any]:
        return dict(app.amqp.as_task_v2("id", "tasks.video.status", (), {}).headers)

    assert "traceparent" not in headers()
    with trace_context.using(trace_context.parse(EXAMPLE)):
        sent = headers()
    assert sent["traceparent"] == EXAMPLE
    raw = {
        "body": '[[], {}, null]', "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {key: value for key, value in sent.items() if value is not None}, "properties": {},
    }  # fmt: skip
    assert check_task(raw, "search")["headers"]["traceparent"] == EXAMPLE


def ask_api(path: str, **headers: str) -> list[str]:
    """The trace that an API's handler runs in."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(str(trace_context.current()))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        """Nowhere."""

    raw = [(key.encode(), value.encode()) for key, value in headers.items()]
    scope = {"type": "http", "path": path, "method": "GET", "headers": raw}
    asyncio.run(Traces(app)(scope, None, send))  # type: ignore[arg-type]
    return seen


def test_the_api_takes_the_callers_trace_or_begins_one() -> None:
    assert ask_api("/api/v1/videos", traceparent=EXAMPLE) == [EXAMPLE]
    (made,) = ask_api("/api/v1/videos", traceparent="00-nonsense")
    assert trace_context.parse(made) is not None
    assert ask_api("/api/v1/videos") != ask_api("/api/v1/videos")
    assert ask_api("/index.html", traceparent=EXAMPLE) == ["None"]


def test_a_span_of_the_api_is_named_by_its_route(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    monkeypatch.setattr(tracing.Span, "name", lambda self, name: named.append(name))
    router, app = APIRouter(prefix="/videos"), FastAPI()

    @router.get("/{video_id}")
    async def get_video(video_id: str) -> str:
        return video_id

    app.include_router(router, prefix="/api/v1")
    app.add_middleware(Traces)

    async def ask() -> str:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return (await client.get("/api/v1/videos/anns_film")).text

    assert asyncio.run(ask()) == '"anns_film"'
    assert named == ["GET /videos/{video_id}"]


def run_request(name: str, retval: Any, state: str, traceparent: str | None = EXAMPLE) -> None:
    task = SimpleNamespace(name=name, request={"traceparent": traceparent})
    request_signals._begin("id1", task)
    if traceparent is not None:
        assert str(trace_context.current()) == traceparent
    request_signals._end("id1", task, retval, state)
    assert trace_context.current() is None


def test_a_request_is_logged_with_its_id_model_dimension_and_latency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(
        request_signals.log, "info", lambda event, **fields: lines.append(fields), raising=False
    )
    answer = {"model": "minilm", "revision": "1", "dim": 384, "vectors": [[0.5]], "text": "a secret"}
    run_request("tasks.text.embed", answer, "SUCCESS")
    run_request("tasks.video.status", ValueError("a secret"), "FAILURE")
    run_request("tasks.media.work", {"model": "no request"}, "SUCCESS", None)
    first, second = lines
    assert first.pop("latency_ms") >= 0 and second.pop("latency_ms") >= 0
    ids = {"request_id": "id1", "state": "SUCCESS"}
    assert first == {**ids, "task": "tasks.text.embed", "model": "minilm", "dimension": 384}
    assert second == {**ids, "task": "tasks.video.status", "state": "FAILURE", "error_class": "ValueError"}
    ((kind, fields),) = custom_events._waiting
    assert kind == "embedding-generated"
    assert (fields["model"], fields["dimension"], fields["request_id"]) == ("minilm", 384, "id1")


def test_a_request_without_a_trace_begins_one_and_a_wake_up_message_does_not() -> None:
    for name, begins in (("tasks.video.process", True), ("tasks.media.work", False)):
        request_signals._begin("id1", SimpleNamespace(name=name, request={"traceparent": "nonsense"}))
        assert (trace_context.current() is not None) == begins
        request_signals._end("id1", SimpleNamespace(name=name), {}, "SUCCESS")


def test_a_batch_can_say_when_its_request_began() -> None:
    request_signals.note_began("id1", -1000.0)
    run_request("tasks.text.embed", {"model": "minilm", "dim": 384}, "SUCCESS")
    assert custom_events._waiting[0][1]["latency_ms"] > 1_000_000
    assert not request_signals._began_s
