"""The pipeline as data, and the stages of it that a fleet can run."""

from __future__ import annotations

from typing import Any

import pytest

from shared import graph, routing
from shared.settings import Settings
from worker.models.catalog import load_catalog
from worker.runtime import make_policy


def test_a_stage_stands_after_all_it_waits_for() -> None:
    seen: set[str] = set()
    for stage in graph.PIPELINE:
        assert set(stage.after) <= seen
        seen.add(stage.name)


def test_every_stage_has_a_queue_with_a_node() -> None:
    consumed = {queue for family in routing.NODES.values() for queue in family.queues}
    assert {stage.queue for stage in graph.STAGES.values()} <= set(routing.JOB_QUEUES) <= consumed
    assert set(routing.TASK_QUEUE.values()) <= consumed
    assert routing.queue_limit_s("media") == graph.SPLIT.time_limit_s


@pytest.mark.parametrize(
    ("named", "made"),
    [
        ("sidecar", "sidecar"),
        ("text", "text sidecar"),
        ("asr", "asr text sidecar"),
        ("face", "face sidecar"),
        ("split", "split asr text vision face ocr sidecar rendition"),
    ],
)
def test_what_follows_a_stage_is_made_with_it(named: str, made: str) -> None:
    assert graph.with_downstream([named]) == set(made.split())


def test_a_stage_outside_the_pipeline_is_refused() -> None:
    with pytest.raises(KeyError):
        graph.with_downstream(["sweep"])


@pytest.mark.parametrize(
    ("flags", "skipped"),
    [
        ({}, {"vision": "unavailable: profile lite has no vision model"}),
        ({"FEATURE_VISION": False}, {"vision": "FEATURE_VISION is off"}),
        ({"FEATURE_FACE": False}, {"face": "FEATURE_FACE is off"}),
        ({"FEATURE_FACE_DETECTION": False}, {"face": "FEATURE_FACE_DETECTION is off"}),
        ({"FEATURE_OCR": False}, {"ocr": "FEATURE_OCR is off"}),
        ({"FEATURE_SEMANTIC_SEARCH": False}, {"text": "FEATURE_SEMANTIC_SEARCH is off"}),
    ],
)
def test_a_stage_is_skipped_with_its_reason(flags: dict[str, Any], skipped: dict[str, str]) -> None:
    skips = make_policy(Settings(**flags), load_catalog()).skips
    assert skipped.items() <= skips.items() and set(skips) == {"vision", *skipped}
