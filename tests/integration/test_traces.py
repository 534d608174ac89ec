"""Traces on a real Postgres, to a collector: one trace holds a request, every stage of a video, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.engine import transact
from db.ledger import subjects
from db.scenes import write_scenes
from db.tables import Job
from shared import trace_context, tracing
from shared.errors import BadMedia
from tasks import video
from tests.integration.conftest import Configure
from tests.support.collector import Collector, Spanned
from tests.support.ledger import KEY, accept, execute, finish, must_claim, read, scene_rows, split
from worker import runner
from worker.runtime import get_runtime
from worker.stages.context import Outcome, StageContext
from worker.telemetry import request_signals

pytestmark = pytest.mark.usefixtures("database")

STAGES = {"split", "asr", "text", "face", "ocr", "sidecar", "rendition", "sweep"}
SECRET = "a secret name"


@pytest.fixture
def collector(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with Collector() as found:
        configure(OTEL_EXPORTER_OTLP_ENDPOINT=found.url, SCENEFLEET_FAMILY="media")
        monkeypatch.setattr(tracing, "_made", None)
        yield found
        if tracing._made is not None:
            tracing._made[1].shutdown()


def run_stages(monkeypatch: pytest.MonkeyPatch, act: Callable[[StageContext], Outcome]) -> None:
    """Do this instead of what a stage does."""
    monkeypatch.setattr("worker.stages.run", act)


def succeed(context: StageContext) -> Outcome:
    claimed = context.claimed
    if claimed.stage != "split":
        return Outcome()
    place = (claimed.video_id, claimed.user_id, claimed.run)
    write: Callable[[Session], None] = lambda session: write_scenes(session, *place, scene_rows(3))  # noqa: E731
    return Outcome(result={"audio_key": "a", "windows": [[0.0, 10.0], [10.0, 20.0]]}, write=write)


def ask(name: str, answer: Callable[[], Any], parent: trace_context.TraceContext) -> None:
    """A request as a node runs it."""
    task = SimpleNamespace(name=name, request={"traceparent": str(parent)})
    request_signals._begin("id1", task)
    request_signals._end("id1", task, answer(), "SUCCESS")


def work_all() -> None:
    """Run every job; each wake-up message is of a trace of its own."""
    queues = ("media", "asr", "text", "vision", "face", "ocr", "housekeeping")
    while any(_work(queue) for queue in queues):
        pass


def _work(queue: str) -> bool:
    with trace_context.using(trace_context.make()):
        return not runner.work(queue, get_runtime()).get("idle")


def spans(collector: Collector) -> list[Spanned]:
    tracing.flush()
    return collector.spans


def test_one_trace_holds_every_stage_of_a_video_from_the_request_to_the_sidecar(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages(monkeypatch, succeed)
    with tracing.span("PUT /videos/{video_id}", parent=None, kind="server"):
        api = trace_context.current()
        assert api is not None
        ask("tasks.video.process", lambda: accept() and {"accepted": True}, api)
    work_all()
    assert video.status(user_id="u1", video_id="v1")["state"] in ("indexed", "partial")
    found = spans(collector)
    assert {one.trace_id for one in found} == {api.trace_id}
    by_id = {one.span_id: one for one in found}
    stages = [one for one in found if one.name.startswith("stage ")]
    assert {one.name.removeprefix("stage ") for one in stages} >= STAGES - {"vision"}
    for one in stages:
        assert one.parent_id in by_id, "each hangs together with what made its job"
        assert len(one.links) == 1 and one.links[0][0] != api.trace_id, "the wake-up message was another's"
        assert one.attributes["video_id"] == KEY and one.attributes["outcome"] == "done"
    (first,) = [one for one in stages if one.name == "stage split"]
    assert by_id[first.parent_id].name == "tasks.video.process"
    assert by_id[by_id[first.parent_id].parent_id].name == "PUT /videos/{video_id}"
    (last,) = [one for one in stages if one.name == "stage sidecar"]
    assert by_id[last.parent_id].name.startswith("stage ")
    assert {one.service for one in found} == {"scenefleet-media"}


def test_a_job_made_by_the_reconciler_is_in_the_trace_of_its_run(collector: Collector) -> None:
    parent = trace_context.make()
    with trace_context.using(parent):
        accept()
    claimed = must_claim()
    assert claimed.traceparent == str(parent)
    # A process that is in no trace: as the reconciler.
    split(claimed)
    assert set(read(select(Job.traceparent))) == {str(parent)}
    runtime = get_runtime()
    transact(
        lambda session: subjects.advance(session, subjects.lock_video(session, KEY), runtime.policy)  # type: ignore[arg-type]
    )
    assert None not in read(select(Job.traceparent))


def test_a_failure_is_marked_and_its_message_is_not_sent(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: StageContext) -> Outcome:
        raise BadMedia(SECRET)

    run_stages(monkeypatch, fail)
    with trace_context.using(trace_context.make()):
        accept()
    runner.work("media", get_runtime())
    with pytest.raises(ValueError, match=SECRET), tracing.span("other", parent=None):
        raise ValueError(SECRET)
    found = {one.name: one for one in spans(collector)}
    assert found["stage split"].failed and found["stage split"].attributes["outcome"] == "failed"
    assert found["other"].failed and found["other"].attributes["error.type"] == "ValueError"
    assert SECRET not in "".join(one.text for one in found.values())


def test_a_job_without_a_trace_begins_one(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stages(monkeypatch, succeed)
    accept()
    execute(update(Job).values(traceparent="not from us"))
    runner.work("media", get_runtime())
    (found,) = spans(collector)
    assert found.parent_id == "" and found.links == ()
    made = read(select(Job.traceparent).where(Job.stage == "asr"))
    assert made and all(one is not None and found.trace_id in one for one in made)


def test_without_a_collector_the_trace_is_kept_all_the_same(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    monkeypatch.setattr(tracing, "_made", None)
    parent = trace_context.make()
    with trace_context.using(parent):
        accept()
    run_stages(monkeypatch, succeed)
    runner.work("media", get_runtime())
    finish(must_claim("face"))
    assert set(read(select(Job.traceparent))) == {str(parent)}
