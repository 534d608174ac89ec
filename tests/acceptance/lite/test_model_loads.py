"""Each model is loaded once per slot over a whole run, and once more for a killed child: counted from published state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.routing import MODEL_FAMILIES
from tests.acceptance.lite.conftest import CONCURRENCY
from tests.support.fleet import FAMILIES, Fleet, eventually
from worker.models.catalog import load_catalog

pytestmark = pytest.mark.timeout(600)

#: Families that have a model.
LOADING = ("asr", "text", "face", "ocr")


def published(fleet: Fleet, family: str) -> dict[str, Any]:
    """What a node says of itself in Redis, its JSON read."""
    fields = fleet.node_states()[family]
    return {**fields, **{name: json.loads(fields[name]) for name in ("loads", "slots", "models")}}


def loads_by_slot(fleet: Fleet, family: str) -> list[dict[str, int]]:
    return [slot["loads"] for slot in published(fleet, family)["slots"]]


def test_each_model_is_loaded_once_per_slot_over_a_run(indexed: Fleet) -> None:
    active = load_catalog().for_profile("lite")
    for family in FAMILIES:
        names = [active[family].name] if family in MODEL_FAMILIES else []  # type: ignore[index]
        slots = CONCURRENCY.get(family, 1)
        assert loads_by_slot(indexed, family) == [dict.fromkeys(names, 1)] * slots
        assert published(indexed, family)["loads"] == dict.fromkeys(names, slots)


def test_the_published_state_says_what_each_load_took(indexed: Fleet) -> None:
    for family in LOADING:
        for slot in published(indexed, family)["slots"]:
            (model,) = [model for model in slot["models"] if model["active"]]
            assert model["loaded"] and model["load_s"] > 0 and model["warm_up_s"] > 0
            assert model["memory_bytes"] > 0 and model["error"] == ""
            assert (slot["state"], slot["children"], slot["evictions"]) == ("ready", 1, 0)

    def used() -> bool:
        return all(
            any(model.get("last_used") for model in published(indexed, family)["models"])
            for family in LOADING
        )

    eventually(used, within_s=15, what="each family has said when it worked on the video")


def test_a_killed_child_costs_one_more_load_and_the_node_works_again(indexed: Fleet, spoken: Path) -> None:
    """One child of each family, all at once: the video that comes next loads nothing more."""
    before = {family: loads_by_slot(indexed, family) for family in LOADING}
    pids = {family: [slot["pid"] for slot in published(indexed, family)["slots"]] for family in LOADING}
    for family in LOADING:
        assert indexed.kill_child(family)

    def replaced() -> bool:
        states = {family: published(indexed, family) for family in LOADING}
        return all(
            state["state"] == "ready"
            and len({slot["pid"] for slot in state["slots"]} - set(pids[family])) == 1
            for family, state in states.items()
        )

    eventually(replaced, within_s=90, what="every child is replaced and ready")
    after = {}
    for family in LOADING:
        now = [slot["pid"] for slot in published(indexed, family)["slots"]]
        after[family] = [
            loads if new == old else dict.fromkeys(loads, 2)
            for loads, new, old in zip(before[family], now, pids[family], strict=True)
        ]
    assert {family: loads_by_slot(indexed, family) for family in LOADING} == after
    indexed.index(spoken, "after-kill")
    assert {family: loads_by_slot(indexed, family) for family in LOADING} == after
