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


def slot(**fields: Any) -> dict[str, Any]:
    made = {"slot": 0, "pid": 10, "state": "ready", "gpu": None, "models": [], "loads": {}, "evictions": 0}
    return {**made, "command": None, **fields}


def model(**fields: Any) -> dict[str, Any]:
    made = {"name": "m", "kind": "text", "device": "cpu", "active": True, "loaded": True, "load_s": 1.5,
            "warm_up_s": None, "memory_bytes": 45 << 20, "last_used": None, "error": ""}  # fmt: skip
    return {**made, **fields}


UNAVAILABLE = {"kind": "rerank", "loaded": False, "active": False, "unavailable": "none"}


def node(*slots: dict[str, Any], **fields: Any) -> dict[str, Any]:
    made = {"node": "text@box", "family": "text", "state": "ready", "error": "", "slots": list(slots)}
    return {**made, **fields}


def words(text: str) -> list[str]:
    """Its lines with one space between words."""
    return [" ".join(line.split()) for line in text.splitlines()]


def printed(*nodes: dict[str, Any]) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=120).print(control.status_table(nodes))
    return words(sink.getvalue())


def test_names_fit_with_and_without_the_host() -> None:
    record = NodeRecord(name="any", family="text", state="ready", error="", pid=1, models=())
    known = dict.fromkeys(("text@box", "text@other", "asr@box"), record)
    assert control._chosen(known, []) == ["asr@box", "text@box", "text@other"]
    assert control._chosen(known, ["text"]) == ["text@box", "text@other"]
    assert control._chosen(known, ["text@other", "text", "asr"]) == ["text@other", "text@box", "asr@box"]
    with pytest.raises(NotFound, match="no node 'face'; there are asr@box, text@box, text@other"):
        control._chosen(known, ["face"])
    with pytest.raises(Outage, match="no node gave a sign of life"):
        control._chosen({}, [])


def test_a_table_line_per_process_and_model() -> None:
    not_loaded = model(name="n", active=False, loaded=False, memory_bytes=None, load_s=None)
    used = model(last_used=time.time() - 600)
    busy = slot(slot=1, gpu="GPU-1", evictions=3, loads={"m": 4}, models=[used])
    lines = printed(node(slot(models=[model(), not_loaded]), busy, slot(slot=2, state="dead")))
    assert lines[1:] == [
        "text@box 0 cpu m loaded 45 MiB 1.50 s 0 0 never",
        "cpu n (not active) not loaded 0 never",
        "text@box 1 GPU-1 m loaded 45 MiB 1.50 s 4 3 10 min ago",
        "text@box 2 process dead 0",
    ]


def test_a_pipe_gets_the_whole_table_however_long_names_are(capsys: pytest.CaptureFixture[str]) -> None:
    name, host = "a-model-with-quite-a-long-name" * 3, "housekeeping@a-host-with-a-long-name"
    table = control.status_table([node(slot(models=[model(name=name), UNAVAILABLE]), node=host)])
    screen.print_whole(screen.make_console(), table)
    assert words(capsys.readouterr().out) == [
        "node slot device model state memory load warm-up loads evicted used",
        f"{host} 0 cpu {name} loaded 45 MiB 1.50 s 0 0 never",
        "(rerank) none in profile",
    ]


def test_what_needs_a_sentence_stands_below_the_table() -> None:
    failed = {"id": 3, "verb": "load", "model": "n", "state": "failed", "error": "no [file]", "seconds": 1.0}
    broken = slot(models=[model(error="broken")], command=failed)
    shown = control._remarks([node(broken, error="3 loads failed")])
    assert [Console(width=120).render_str(line).plain for line in shown] == [
        "text@box 3 loads failed",
        "text@box slot 0 m: broken",
        "text@box slot 0 load n failed: no [file]",
    ]
    assert list(control._remarks([node(slot(command={**failed, "state": "done", "error": ""}))])) == []


@pytest.mark.parametrize(
    ("command", "state"),
    [
        ({"id": 2, "state": "running"}, "running"),
        ({"id": 2, "state": "done"}, "done"),
        # The node was started again and counts again.
        (None, "lost"),
        ({"id": 1, "state": "done"}, "lost"),
        # Somebody else's command came after.
        ({"id": 3, "state": "done"}, "lost"),
    ],
)
def test_an_outcome_is_only_that_of_its_own_command(command: dict[str, Any] | None, state: str) -> None:
    given = command and {**command, "error": "", "seconds": 1.0}
    assert control._outcome("text@box", slot(command=given), 2).state == state
