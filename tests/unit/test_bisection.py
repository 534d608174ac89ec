"""How a part is halved: as its stage is cut, or as a stage says. The rest is in tests/integration/test_bisection.py."""

from __future__ import annotations

from typing import Any

import pytest

from db.ledger import bisection
from shared import graph
from shared.stage import Stage


def halve_items(payload: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """As a plug-in halves a list of its own."""
    items = payload["items"]
    return None if len(items) == 1 else ({"items": items[:1]}, {"items": items[1:]})


OWN = Stage(name="own", queue="own", handler="own", time_limit_s=1, halve=f"{__name__}:halve_items")


@pytest.mark.parametrize(
    ("stage", "payload", "halves"),
    [
        (graph.VISION, {"first_idx": 3, "last_idx": 7}, [{"first_idx": 3, "last_idx": 5}, {"first_idx": 6, "last_idx": 7}]),
        (graph.TEXT, {"first_idx": 3, "last_idx": 3}, None),
        (graph.ASR, {"start_s": 10.0, "end_s": 30.0}, [{"start_s": 10.0, "end_s": 20.0}, {"start_s": 20.0, "end_s": 30.0}]),
        (graph.ASR, {"start_s": 10.0, "end_s": 29.0}, None),
        (OWN, {"items": [1, 2, 3]}, [{"items": [1]}, {"items": [2, 3]}]),
        (OWN, {"items": [1]}, None),
    ],
)  # fmt: skip
def test_a_part_is_halved_as_its_stage_is_cut_or_says(
    stage: Stage, payload: dict[str, Any], halves: Any
) -> None:
    assert bisection._halves(stage, payload) == (None if halves is None else tuple(halves))


def test_an_attempt_looks_at_the_keyframes_of_its_trial_then_at_those_not_at_fault() -> None:
    keyframes = [{"ordinal": n} for n in range(4)]

    def shown(**payload: Any) -> list[int]:
        return [keyframe["ordinal"] for keyframe in bisection.shown_keyframes(payload, keyframes)]

    assert shown(trials=[[2], [3]], without=[1]) == [2]
    assert shown(trials=[], without=[1, 3]) == [0, 2]
