"""A node's view of its children, without any: shared memory, readiness, commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Conflict, ModelUnavailable
from shared.settings import Settings
from tests.support.fleet import eventually
from worker.child import Child
from worker.models.cache import ModelCache
from worker.models.catalog import load_catalog
from worker.node import MAX_FAILED_LOADS, Node
from worker.slots import FAILED, LOADING, READY, Slot, Slots

TEXT_MODEL = "all-minilm-l6-v2"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(Settings(SCENEFLEET_HOME=tmp_path, SCENEFLEET_FAMILY="text"), "text@host", 2)


def test_each_side_of_each_slot_keeps_its_last_record() -> None:
    slots = Slots(2)
    models = [{"name": f"model-{number}", "error": "no such file " * 40} for number in range(200)]
    for number in range(1, 4):
        slots.write_command(0, {"id": number})
        slots.write(0, READY, number, {"models": models})
    assert (slots.read_command(0), slots.read_command(1)) == ({"id": 3}, {})
    assert slots.read_all() == [Slot(READY, 3, {"models": models}, 3), Slot(LOADING, 0, {}, 0)]


def test_what_does_not_fit_is_left_out_and_counted() -> None:
    slots = Slots(2)
    slots.write(1, READY, 7, {})
    models = [{"name": f"model-{number}", "error": "\N{BLACK HEART SUIT}" * 5000} for number in range(500)]
    slots.write(0, FAILED, 42, {"error": "x" * 1_000_000, "loads": {"m": 3}, "models": models})
    report = slots.read(0).report
    assert report["error"] == "x" * 297 + "..." and report["loads"] == {"m": 3}
    assert len(report["models"]) > 50 and report["models"][0]["name"] == "model-0"
    assert len(report["models"]) + report["models_left_out"] == 500
    assert slots.read(1).pid == 7


KILL_WRITERS = """
import multiprocessing, os, signal
from tests.support.fleet import eventually
from worker.slots import READY, Slots

def write_for_ever():
    number = 0
    while True:
        number += 1
        slots.write(0, READY, number, {"same": [number] * 20_000})

slots, last = Slots(1), 0
for _ in range(20):
    before = slots.read(0).sequence
    writer = multiprocessing.get_context("fork").Process(target=write_for_ever)
    writer.start()
    eventually(lambda: slots.read(0).sequence > before + 2, within_s=30, what="it writes", every_s=0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    slot = slots.read(0)
    assert slot.sequence > last and slot.report["same"] == [slot.pid] * 20_000, slot.sequence
    last = slot.sequence
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_record() -> None:
    # In a process of its own: this one has threads, and a fork would stop at the locks they hold.
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", KILL_WRITERS], cwd=root, check=True, timeout=300)


def be_ready(node: Node, *pids: int) -> str:
    """Let these children be ready, one per slot; returns the node's state."""
    for index, pid in enumerate(pids):
        node.slots.write(index, READY, pid, {})
    return node.look(set(pids))


def test_a_node_is_ready_when_all_its_children_live_and_are_ready(node: Node) -> None:
    assert (be_ready(node, 10), be_ready(node, 10, 11)) == ("loading", "ready")
    assert node.look({10}) == "loading", "the other has died, whatever it wrote last"
    assert be_ready(node, 10, 12) == "ready"


def test_a_child_that_hangs_since_its_fork_is_told_from_one_that_loads(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_ready(node, 10)
    Child(node.slots, 1, 11)
    assert node.not_ready({10, 11, 12}) == {11, 12}
    assert node.silent({10, 11, 12}) == set()
    monkeypatch.setattr("worker.node.SILENT_S", 0.0)
    assert node.silent({10, 11, 12}) == {12}
    monkeypatch.setattr("worker.node.SILENT_S", 60.0)
    assert node.silent({10, 11, 12}) == set()
    Child(node.slots, 1, 12)
    monkeypatch.setattr("worker.node.SILENT_S", 0.0)
    assert node.silent({10, 12}) == set()


def end(child: Child, error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let a child end; returns the status it would have left with."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(os, "_exit", sys.exit)
        child.end(error)
    return int(left.value.code or 0)


def test_three_failed_loads_end_the_node_at_a_late_look(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for attempt in range(1, MAX_FAILED_LOADS + 1):
        assert end(Child(node.slots, 0, 100 + attempt), OSError("no memory left"), monkeypatch) == 78
        # Its replacement has begun before the node looked.
        Child(node.slots, 0, 200 + attempt)
        for _ in range(3):
            state = node.look({200 + attempt, 11})
        assert (node.failed_loads, state) == (attempt, "loading" if attempt < MAX_FAILED_LOADS else "failed")
    assert node.error == "OSError: no memory left"


def test_one_load_that_can_never_work_ends_the_node(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    end(Child(node.slots, 1, 100), ModelUnavailable("model.bin is missing"), monkeypatch)
    Child(node.slots, 1, 101)
    assert (node.look({10, 101}), node.error) == ("failed", "model.bin is missing")


def test_earlier_failures_are_forgotten_once_ready(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    end(Child(node.slots, 0, 10), OSError("no memory left"), monkeypatch)
    assert node.look({11}) == "loading" and "memory" in node.error
    for index, pid in ((0, 12), (1, 11)):
        Child(node.slots, index, pid).serve()
    assert node.look({11, 12}) == "ready"
    assert (node.failed_loads, node.error) == (0, "")


def test_commands_are_refused_with_the_reason(node: Node) -> None:
    for model, reason in (
        ("no-such-model", f"no model 'no-such-model' in models.yaml; it has .*{TEXT_MODEL}"),
        ("dlib-resnet-v1", "belongs to family face; node text@host serves text"),
    ):
        with pytest.raises(ModelUnavailable, match=reason):
            node.command("load", model)
    with pytest.raises(Conflict, match="text@host is loading; wait"):
        node.command("load", TEXT_MODEL)
    assert node.slots.read_command(0) == {}
    be_ready(node, 10, 11)
    assert node.command("load", TEXT_MODEL) == 1 and commands(node) == ["waiting", "waiting"]
    with pytest.raises(Conflict, match=f"busy with `load {TEXT_MODEL}`"):
        node.command("unload", TEXT_MODEL)


class Untouched(ModelCache):
    """Holds nothing and loads nothing: what is asked of it is written down."""

    def __init__(self) -> None:
        super().__init__(load_catalog(), {}, [])
        self.asked: list[str] = []
        self.fails: Exception | None = None

    def unload(self, name: str) -> bool:
        self.asked.append(name)
        if self.fails is not None:
            raise self.fails
        return True


def serve(node: Node, *pids: int) -> list[Untouched]:
    """Children that obey, in threads of this process."""
    model_caches = [Untouched() for _ in pids]
    for index, pid in enumerate(pids):
        child = Child(node.slots, index, pid)
        child.hold(model_caches[index], None)
        child.serve()
    node.look(set(pids))
    return model_caches


def commands(node: Node) -> list[Any]:
    return [slot["command"] and slot["command"]["state"] for slot in node.describe()["slots"]]


def test_every_child_obeys_and_says_how_it_went(node: Node) -> None:
    first, second = serve(node, 10, 11)
    second.fails = RuntimeError("no\n  luck")
    number = node.command("unload", TEXT_MODEL)
    eventually(lambda: commands(node) == ["done", "failed"], within_s=10, what="both have answered")
    assert (first.asked, second.asked) == ([TEXT_MODEL], [TEXT_MODEL])
    told = node.describe()["slots"][1]["command"]
    assert (told["id"], told["verb"], told["error"]) == (number, "unload", "RuntimeError: no luck")
    second.fails = None
    assert node.command("unload", TEXT_MODEL) == number + 1
    eventually(lambda: commands(node) == ["done", "done"], within_s=10, what="both have answered again")


def test_a_command_whose_child_was_replaced_is_lost(node: Node) -> None:
    serve(node, 10)
    node.slots.write(1, READY, 11, {})
    node.look({10, 11})
    node.command("unload", TEXT_MODEL)
    eventually(lambda: commands(node) == ["done", "waiting"], within_s=10, what="the first has answered")
    for index, pid in ((0, 20), (1, 21)):
        Child(node.slots, index, pid)
    assert commands(node) == ["done", "lost"]
    assert "ended before it was done" in node.describe()["slots"][1]["command"]["error"]


def test_counts_go_on_over_the_lives_of_a_slot(node: Node) -> None:
    node.slots.write(0, READY, 10, {"loads": {"a": 2}, "evictions": 1, "children": 1})
    node.slots.write(1, READY, 11, {"loads": {"a": 1, "b": 1}, "evictions": 0, "children": 1})
    Child(node.slots, 0, 12)
    described = node.describe()
    assert (described["loads"], described["evictions"]) == ({"a": 3, "b": 1}, 1)
    assert [slot["children"] for slot in described["slots"][:1]] == [2]


def test_a_change_of_a_child_is_worth_telling_and_a_use_is_not(node: Node) -> None:
    for report, changed in (
        ({"loads": {"a": 1}}, True),
        ({"loads": {"a": 1}, "models": [{"last_used": 3}]}, False),
        ({"loads": {"a": 2}}, True),
    ):
        node.slots.write(0, READY, 10, report)
        node.look({10, 11})
        assert node.changed is changed


def test_temporary_files_of_an_earlier_life_are_removed(node: Node) -> None:
    left = node.work_dir / "0" / "3.1"
    left.mkdir(parents=True)
    Node(node.settings, "text@host", 1)
    assert not left.exists()


HOLD_NAME = """
import os, sys, time
from shared.settings import Settings
from worker.node import Node

node = Node(Settings(SCENEFLEET_HOME=sys.argv[1], SCENEFLEET_FAMILY="text"), "text@host", 1)
(node.work_dir / "0").mkdir(parents=True)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def test_a_second_node_of_one_name_is_refused_and_touches_nothing_of_the_first(tmp_path: Path) -> None:
    settings = Settings(SCENEFLEET_HOME=tmp_path, SCENEFLEET_FAMILY="text")
    command = [sys.executable, "-c", HOLD_NAME, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        child = int(first.stdout.readline())
        folder = tmp_path / "work" / "text@host" / "0"
        try:
            with pytest.raises(
                Conflict, match=rf"text@host runs on this machine already \(pid {first.pid}\)"
            ):
                Node(settings, "text@host", 1)
            assert folder.is_dir()
            assert Node(settings, "other@host", 1).work_dir != folder.parent
        finally:
            first.kill()
            first.wait()
        try:
            # Its child lives on, and holds nothing.
            os.kill(child, 0)
            Node(settings, "text@host", 1)
            assert not folder.exists(), "what the killed node has left is removed"
        finally:
            os.kill(child, signal.SIGKILL)
