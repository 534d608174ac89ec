"""The pipeline as data."""

from __future__ import annotations

import pytest

from shared import graph, routing


def test_a_stage_stands_after_all_it_waits_for() -> None:
    seen: set[str] = set()
    for stage in graph.PIPELINE:
        assert set(stage.after) <= seen
        seen.add(stage.name)


def test_every_stage_has_a_queue_with_a_node() -> None:
    consumed = {queue for family in routing.NODES.values() for queue in family.queues}
    assert {stage.queue for stage in graph.STAGES.values()} <= set(routing.JOB_QUEUES) <= consumed
    assert set(routing.TASK_QUEUE.values()) <= consumed


@pytest.mark.parametrize(
    ("named", "made"),
    [
        (["sidecar"], {"sidecar"}),
        (["text"], {"text", "sidecar"}),
        (["asr"], {"asr", "text", "sidecar"}),
        (["face"], {"face", "sidecar"}),
        (["ocr"], {"ocr", "sidecar"}),
        (["split"], {"split", "asr", "text", "vision", "face", "ocr", "sidecar"}),
    ],
)
def test_what_follows_a_stage_is_made_with_it(named: list[str], made: set[str]) -> None:
    assert graph.with_downstream(named) == made


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(KeyError):
        graph.with_downstream(["sweep"])


def test_queues_allow_for_their_longest_stage() -> None:
    assert routing.queue_limit_s("media") == graph.SPLIT.time_limit_s
