"""The plan of a machine: which process computes where, what that takes, and whether it fits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from cli.doctor import plan_checks, run
from cli.doctor.findings import Finding
from shared.settings import Settings, get_settings
from worker.models.placement.nvml import Gpu, MigInstance, Survey
from worker.models.placement.plan import Machine, MachinePlacement

UUIDS = ("GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000001")
SMALL = Gpu(index=0, uuid=UUIDS[0], name="Small", total_mb=8000, free_mb=7800)
LARGE = Gpu(index=1, uuid=UUIDS[1], name="Large", total_mb=80000, free_mb=79000)
PART = MigInstance(uuid="MIG-cccccccc-0000-0000-0000-000000000002", total_mb=10000, free_mb=9900)
OTHER_PART = MigInstance(uuid="MIG-dddddddd-0000-0000-0000-000000000003", total_mb=10000, free_mb=9900)
TWO = Survey((SMALL, LARGE))
IN_USE = Survey((replace(SMALL, free_mb=400),))
EXCLUSIVE = Survey((replace(LARGE, index=0, is_exclusive=True),))
DIVIDED = replace(LARGE, index=0, total_mb=None, free_mb=None)
ONE_PART, TWO_PARTS = (Survey((replace(DIVIDED, mig=parts),)) for parts in ((PART,), (PART, OTHER_PART)))
NO_DRIVER = Survey(problem="no NVIDIA driver answers (Driver Not Loaded)")
ALL = "asr,text,vision,face,media,search"
CPU_BUILD = "the installed torch (9+cpu) is a CPU build"
pytestmark = pytest.mark.usefixtures("bare")


def settings(nodes: str, **values: Any) -> Settings:
    return Settings(SCENEFLEET_PROFILE=values.pop("profile", "full"), SCENEFLEET_NODES=nodes, **values)


def make_machine(survey: Survey, ram_mb: int = 64000, **facts: Any) -> Machine:
    """A machine whose torch can use GPUs."""
    return Machine(survey=survey, ram_mb=ram_mb, free_ram_mb=ram_mb, **facts)


def judge(nodes: str, machine: Machine, *, running: bool = False, **values: Any) -> list[Finding]:
    chosen = settings(nodes, **values)
    return list(plan_checks.judge(chosen, plan_checks.place(chosen, machine), machine, running=running))


def needs(plan: MachinePlacement) -> dict[str, int]:
    return {load.title: load.needed_mb for load in plan.loads}


def test_each_process_has_its_device_its_models_and_their_memory() -> None:
    plan = plan_checks.place(settings("asr@0+1,text@GPU-bbbb,media:2"), make_machine(TWO))
    assert [(one.node, one.slot, one.asked, one.device, one.memory_mb) for one in plan.processes] == [
        ("asr", 0, "0", SMALL.uuid, 5000),
        ("asr", 1, "1", LARGE.uuid, 5000),
        ("text", 0, "GPU-bbbb", LARGE.uuid, 5000),
        ("media", 0, "", "cpu", 0),
        ("media", 1, "", "cpu", 0),
    ]
    assert [(model.name, model.preload, model.memory_mb) for model in plan.processes[2].models] == [
        ("bge-m3", True, 2500),
        ("bge-reranker-v2-m3", False, 2500),
    ]
    assert needs(plan) == {"GPU 0 (Small)": 5000, "GPU 1 (Large)": 10000, "CPU": 0}


@pytest.mark.parametrize(
    ("nodes", "values", "machine", "needed"),
    [
        # One GPU by two names.
        (f"asr@0,text@{SMALL.uuid}", {}, make_machine(TWO), {"GPU 0 (Small)": 10000}),
        # A budget bounds what a process takes.
        ("text@0", {"WORKER_MODEL_MEMORY_MB": 3000}, make_machine(TWO), {"GPU 0 (Small)": 3000}),
        # Without a GPU's name: the first that CUDA shows.
        ("asr", {}, make_machine(TWO), {"GPU 0 (Small)": 5000}),
        ("asr", {}, make_machine(TWO, visible_gpus="1,0"), {"GPU 1 (Large)": 5000}),
        ("asr", {}, make_machine(TWO, visible_gpus=""), {"CPU": 5000}),
        ("asr", {}, make_machine(TWO, gpu_obstacle=CPU_BUILD), {"CPU": 5000}),
        # Models of lite compute on the CPU wherever they are.
        ("asr@0,text", {"profile": "lite"}, make_machine(TWO), {"CPU": 720}),
        ("asr@0", {}, make_machine(ONE_PART), {PART.uuid: 5000}),
        (f"asr@{OTHER_PART.uuid},face@{PART.uuid}", {}, make_machine(TWO_PARTS), {OTHER_PART.uuid: 5000, PART.uuid: 600}),
    ],
)  # fmt: skip
def test_device_needs(nodes: str, values: dict[str, Any], machine: Machine, needed: dict[str, int]) -> None:
    assert needs(plan_checks.place(settings(nodes, **values), machine)) == needed


@pytest.mark.parametrize(
    ("nodes", "values", "survey", "ram_mb", "check", "state", "said"),
    [
        ("asr@1", {}, TWO, 64000, "GPU 1 (Large)", "ok", "5000 MB of models (asr) on 80000 MB: fits"),
        ("asr@0+0", {}, TWO, 64000, "GPU 0 (Small)", "fail", "10000 MB of models (asr) on 8000 MB: does not fit"),
        ("asr@0,face@0+0+0", {}, TWO, 64000, "GPU 0 (Small)", "warn", "6800 MB of models (asr, face) on 8000 MB: hardly"),
        ("asr@2", {}, TWO, 64000, "GPU 2", "fail", "planned for asr, but not there: there is 0 (Small"),
        ("asr@GPU-ffff", {}, TWO, 64000, "GPU-ffff", "fail", "planned for asr, but not there"),
        ("asr@0", {}, IN_USE, 64000, "GPU 0 (Small)", "warn", "fits, but only 400 MB are free now"),
        ("asr@0", {}, EXCLUSIVE, 64000, "GPU 0 (Large)", "ok", "fits"),
        (f"asr@{PART.uuid}", {}, TWO_PARTS, 64000, PART.uuid, "ok", "fits"),
        ("asr,media", {"asr_device": "cuda"}, NO_DRIVER, 64000, "any GPU", "fail", "Driver Not Loaded"),
        ("asr:4,text", {}, NO_DRIVER, 20000, "CPU", "fail", "does not fit"),
        ("asr:3,text", {}, NO_DRIVER, 24000, "CPU", "warn", "hardly leaves room"),
        ("asr,text", {}, NO_DRIVER, 24000, "CPU", "ok", "fits"),
        ("asr@0,text", {"profile": "lite"}, TWO, 64000, "CPU", "ok", "fits"),
        ("asr@0,text", {"profile": "lite"}, TWO, 64000, "asr", "warn", "computes on the CPU"),
        (ALL, {}, NO_DRIVER, 64000, "profile", "warn", "slowly: the GPUs can't be listed: no NVIDIA driver answers"),
        ("asr@1,text@1", {"WORKER_MODEL_MEMORY_MB": 3000}, TWO, 64000, "whisper-medium", "fail",
         "needs 5000 MB, the budget is 3000 MB"),
    ],
)  # fmt: skip
def test_what_is_judged(
    nodes: str, values: dict[str, Any], survey: Survey, ram_mb: int, check: str, state: str, said: str
) -> None:
    findings = judge(nodes, make_machine(survey, ram_mb), **values)
    (found,) = (finding for finding in findings if finding.check == f"plan {check}")
    assert (found.state, said in found.detail) == (state, True), found
    assert bool(found.advice) == (state != "ok")


@pytest.mark.parametrize(
    ("nodes", "values", "survey", "check"),
    [
        ("asr@0,media", {}, TWO, "plan CPU"),
        (ALL, {}, TWO, "plan profile"),
        (ALL, {"profile": "lite"}, NO_DRIVER, "plan profile"),
        ("text@0", {"WORKER_MODEL_MEMORY_MB": 3000}, TWO, "plan bge-m3"),
    ],
)
def test_what_is_not_worth_a_word(nodes: str, values: dict[str, Any], survey: Survey, check: str) -> None:
    assert check not in [finding.check for finding in judge(nodes, make_machine(survey), **values)]


def test_memory_that_the_running_nodes_use_is_not_missed() -> None:
    assert [finding.state for finding in judge("asr@0", make_machine(IN_USE), running=True)] == ["ok"]


@pytest.mark.parametrize(
    ("nodes", "machine", "said"),
    [
        ("asr@1", make_machine(TWO, gpu_obstacle=CPU_BUILD), "CPU build"),
        ("asr@0,text@0", make_machine(EXCLUSIVE), "exclusive-process"),
        # Which one of them is meant is not said.
        ("asr@0", make_machine(TWO_PARTS), "it is divided into"),
    ],
)
def test_a_gpu_with_room_that_can_not_be_used_fails(nodes: str, machine: Machine, said: str) -> None:
    found = judge(nodes, machine)
    assert [(finding.state, said in finding.detail) for finding in found] == [("fail", True), ("ok", False)]


# --- as it is shown


def test_the_tables_show_every_process_and_every_device() -> None:
    plan = plan_checks.place(settings("asr@0+1,text@1,media"), make_machine(TWO))
    console = Console(width=100, record=True, force_terminal=False)
    for table in plan_checks.tables(plan):
        console.print(table)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "asr:1 GPU 1 (Large) whisper-medium 5000" in lines
    assert "text GPU 1 (Large) bge-m3, bge-reranker-v2-m3 (on demand) 5000" in lines
    assert "media CPU no model" in lines
    assert "GPU 1 (Large) 2 10000 80000 79000" in lines


def test_json_has_the_plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEFLEET_NODES", "text:2,media")
    run.run(as_json=True)
    plan = json.loads(capsys.readouterr().out)["plan"]
    processes = [(process["node"], process["slot"], process["device"]) for process in plan["processes"]]
    assert processes == [("text", 0, "cpu"), ("text", 1, "cpu"), ("media", 0, "cpu")]
    (model,) = plan["processes"][0]["models"]
    assert model["name"] == "all-minilm-l6-v2" and model["preload"] is True
    (load,) = plan["loads"]
    assert load["needed_mb"] == 2 * model["memory_mb"] and load["total_mb"] > 0
    # A wrong plan is a finding and no document.
    monkeypatch.setenv("SCENEFLEET_NODES", "asr@first")
    get_settings.cache_clear()
    assert run.run(as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["plan"] is None
    (found,) = [check for check in document["checks"] if check["check"] == "plan"]
    assert found["state"] == "fail" and "'first' is no GPU" in found["detail"]
