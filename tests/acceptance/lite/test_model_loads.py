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


def published(fleet: Fleet, family: str) -> dict[str, Any]:
    """What a node says of itself in Redis, its JSON read."""
    fields = fleet.node_states()[family]
    return {**fields, **{name: json.loads(fields[name]) for name in ("loads", "slots", "models")}}


def loads_by_slot(fleet: Fleet, family: str) -> list[dict[str, int]]:
    return [slot["loads"] for slot in published(fleet, family)["slots"]]


def test_each_model_is_loaded_once_per_slot_over_a_run(indexed: Fleet) -> None:
    active = load_catalog().for_profile("lite")
    for family in FAMILIES:
        name = active[family].name if family in MODEL_FAMILIES else ""  # type: ignore[index]
        slots = CONCURRENCY.get(family, 1)
        assert loads_by_slot(indexed, family) == [{name: 1} if name else {}] * slots
        assert published(indexed, family)["loads"] == ({name: slots} if name else {})


def test_the_published_state_says_what_each_load_took(indexed: Fleet) -> None:
    for family in ("asr", "text", "face", "ocr"):
        for slot in published(indexed, family)["slots"]:
            (model,) = [model for model in slot["models"] if model["active"]]
            assert model["loaded"] and model["load_s"] > 0 and model["warm_up_s"] > 0
            assert model["memory_bytes"] > 0 and model["error"] == ""
            assert (slot["state"], slot["children"], slot["evictions"]) == ("ready", 1, 0)

    def used() -> bool:
        return all(
            any(model.get("last_used") for model in published(indexed, family)["models"])
            for family in ("asr", "text", "face", "ocr")
        )

    eventually(used, within_s=15, what="each family has said when it worked on the video")


@pytest.mark.parametrize("family", ["asr", "text", "face", "ocr"])
def test_a_killed_child_costs_one_more_load_and_the_node_works_again(
    indexed: Fleet, spoken: Path, family: str
) -> None:
    before = loads_by_slot(indexed, family)
    pids = [slot["pid"] for slot in published(indexed, family)["slots"]]
    assert indexed.kill_child(family)

    def replaced() -> bool:
        state = published(indexed, family)
        now = [slot["pid"] for slot in state["slots"]]
        return state["state"] == "ready" and len(set(now) - set(pids)) == 1

    eventually(replaced, within_s=90, what=f"{family}'s child is replaced and ready")
    (changed,) = [
        index for index, pid in enumerate(pids) if published(indexed, family)["slots"][index]["pid"] != pid
    ]
    (name,) = before[changed]
    after = [dict(loads) for loads in before]
    after[changed] = {name: 2}
    assert loads_by_slot(indexed, family) == after
    indexed.process(spoken, f"after-{family}")
    assert indexed.wait_ended([f"after-{family}"], within_s=300)[f"after-{family}"].state == "indexed"
    assert loads_by_slot(indexed, family) == after
