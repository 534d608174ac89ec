"""What is made of the nodes' answers about their models: tables, outcomes, names."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from cli import screen
from cli.models import control
from shared.errors import NotFound, Outage
from shared.nodes import NodeRecord


def records(*names: str) -> dict[str, NodeRecord]:
    return {
        name: NodeRecord(name=name, family="text", state="ready", error="", pid=1, models=())
        for name in names
    }


def slot(**fields: Any) -> dict[str, Any]:
    made = {
        "slot": 0,
        "pid": 10,
        "state": "ready",
        "gpu": None,
        "models": [],
        "loads": {},
        "evictions": 0,
        "command": None,
    }
    return {**made, **fields}


def model(**fields: Any) -> dict[str, Any]:
    made = {"name": "m", "kind": "text", "device": "cpu", "active": True, "loaded": True, "load_s": 1.5,
            "warm_up_s": None, "memory_bytes": 45 << 20, "last_used": None, "error": ""}  # fmt: skip
    return {**made, **fields}


def node(*slots: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "node": "text@box",
        "family": "text",
        "state": "ready",
        "error": "",
        "slots": list(slots),
        **fields,
    }


def printed(*nodes: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(control.status_table(nodes))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_names_fit_with_and_without_the_host() -> None:
    known = records("text@box", "text@other", "asr@box")
    assert control._chosen(known, []) == ["asr@box", "text@box", "text@other"]
    assert control._chosen(known, ["text"]) == ["text@box", "text@other"]
    assert control._chosen(known, ["text@other", "text", "asr"]) == ["text@other", "text@box", "asr@box"]
    with pytest.raises(NotFound, match="no node 'face'; there are asr@box, text@box, text@other"):
        control._chosen(known, ["face"])
    with pytest.raises(Outage, match="no node gave a sign of life"):
        control._chosen({}, [])


def test_a_table_line_per_process_and_model() -> None:
    lines = printed(
        node(
            slot(
                models=[model(), model(name="n", active=False, loaded=False, memory_bytes=None, load_s=None)]
            ),
            slot(
                slot=1, gpu="GPU-1", evictions=3, loads={"m": 4}, models=[model(last_used=time.time() - 600)]
            ),
            slot(slot=2, state="dead"),
        )
    )
    assert lines[1:] == [
        "text@box 0 cpu m loaded 45 MiB 1.50 s 0 0 never",
        "cpu n (not active) not loaded 0 never",
        "text@box 1 GPU-1 m loaded 45 MiB 1.50 s 4 3 10 min ago",
        "text@box 2 process dead 0",
    ]


def test_a_kind_without_a_model_is_shown_as_such() -> None:
    unavailable = {"kind": "rerank", "loaded": False, "active": False, "unavailable": "none"}
    assert printed(node(slot(models=[unavailable])))[1] == "text@box 0 (rerank) none in profile 0"


def test_a_pipe_gets_the_whole_table_however_long_names_are(capsys: pytest.CaptureFixture[str]) -> None:
    name, host = "a-model-with-quite-a-long-name" * 3, "housekeeping@a-host-with-a-long-name"
    unavailable = {"kind": "rerank", "loaded": False, "active": False, "unavailable": "none"}
    table = control.status_table([node(slot(models=[model(name=name), unavailable]), node=host)])
    screen.print_whole(screen.make_console(), table)
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "node slot device model state memory load warm-up loads evicted used",
        f"{host} 0 cpu {name} loaded 45 MiB 1.50 s 0 0 never",
        "(rerank) none in profile",
    ]


def test_what_needs_a_sentence_stands_below_the_table() -> None:
    failed = {"id": 3, "verb": "load", "model": "n", "state": "failed", "error": "no [file]", "seconds": 1.0}
    shown = list(
        control._remarks([node(slot(models=[model(error="broken")], command=failed), error="3 loads failed")])
    )
    assert [Console(width=120).render_str(line).plain for line in shown] == [
        "text@box 3 loads failed",
        "text@box slot 0 m: broken",
        "text@box slot 0 load n failed: no [file]",
    ]
    assert list(control._remarks([node(slot(command={**failed, "state": "done", "error": ""}))])) == []


@pytest.mark.parametrize(
    ("command", "state"),
    [
        ({"id": 2, "state": "running", "error": "", "seconds": None}, "running"),
        ({"id": 2, "state": "done", "error": "", "seconds": 1.0}, "done"),
        # The node was started again and counts again.
        (None, "lost"),
        ({"id": 1, "state": "done", "error": "", "seconds": 1.0}, "lost"),
        # Somebody else's order came after.
        ({"id": 3, "state": "done", "error": "", "seconds": 1.0}, "lost"),
    ],
)
def test_an_outcome_is_only_that_of_its_own_order(command: dict[str, Any] | None, state: str) -> None:
    assert control._outcome("text@box", slot(command=command), 2).state == state
