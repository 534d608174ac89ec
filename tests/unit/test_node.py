"""A node's view of its children, without any."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.settings import Settings
from worker.node import MAX_FAILED_LOADS, Node
from worker.slots import FAILED, LOADING, READY, Slots


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(Settings(SCENEFLEET_HOME=tmp_path, SCENEFLEET_FAMILY="text"))
    made.prepare("text@host", 2)
    return made


def test_slots_keep_what_each_child_wrote() -> None:
    slots = Slots(2)
    slots.write(1, READY, 42, 0, {"models": [{"name": "m"}]})
    assert slots.read(0).state == LOADING and slots.read(0).report == {}
    assert (slots.read(1).state, slots.read(1).pid) == (READY, 42)
    assert slots.read(1).report == {"models": [{"name": "m"}]}


def test_a_report_too_long_for_its_page_is_cut() -> None:
    slots = Slots(2)
    slots.write(1, READY, 7, 0, {})
    slots.write(0, FAILED, 42, 0, {"error": "x" * 100_000})
    assert slots.read(0).report["error"].startswith("xxx")
    assert slots.read(1).pid == 7


def test_a_node_is_ready_when_all_its_children_are(node: Node) -> None:
    node.slots.write(0, READY, 10, 0, {})
    assert node.look({10, 11}) == "loading"
    node.slots.write(1, READY, 11, 0, {})
    assert node.look({10, 11}) == "ready"


def test_a_dead_child_is_not_ready_whatever_it_wrote_last(node: Node) -> None:
    node.slots.write(0, READY, 10, 0, {})
    node.slots.write(1, READY, 11, 0, {})
    assert node.look({10}) == "loading"
    node.slots.write(1, READY, 12, 0, {})
    assert node.look({10, 12}) == "ready"


def test_a_failed_load_counts_once_and_three_end_the_node(node: Node) -> None:
    for attempt in range(1, MAX_FAILED_LOADS + 1):
        node.slots.write(0, FAILED, 100 + attempt, 0, {"error": "model.bin is missing"})
        for _ in range(3):
            state = node.look({100 + attempt, 11})
        assert node.failed_loads == attempt
    assert state == "failed" and "model.bin" in node.error


def test_earlier_failures_are_forgotten_once_ready(node: Node) -> None:
    node.slots.write(0, FAILED, 10, 0, {"error": "out of memory"})
    node.look({10, 11})
    for index, pid in ((0, 12), (1, 11)):
        node.slots.write(index, READY, pid, 0, {})
    assert node.look({11, 12}) == "ready"
    assert (node.failed_loads, node.error) == (0, "")


def test_temporary_files_of_an_earlier_life_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "work" / "text@host" / "0" / "3.1"
    left.mkdir(parents=True)
    node = Node(Settings(SCENEFLEET_HOME=tmp_path, SCENEFLEET_FAMILY="text"))
    node.prepare("text@host", 1)
    assert not left.exists()
