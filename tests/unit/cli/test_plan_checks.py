"""The plan of a machine: which process computes where, what that takes, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.doctor import plan_checks, run
from cli.doctor.findings import Finding
from shared.settings import Settings, get_settings
from worker.models.placement.nvml import Gpu, MigInstance, Survey
from worker.models.placement.plan import Machine, MachinePlacement

SMALL = Gpu(
    index=0, uuid="GPU-aaaaaaaa-0000-0000-0000-000000000000", name="Small", total_mb=8000, free_mb=7800
)
LARGE = Gpu(
    index=1, uuid="GPU-bbbbbbbb-0000-0000-0000-000000000001", name="Large", total_mb=80000, free_mb=79000
)
PART = MigInstance(uuid="MIG-cccccccc-0000-0000-0000-000000000002", total_mb=10000, free_mb=9900)
OTHER_PART = MigInstance(uuid="MIG-dddddddd-0000-0000-0000-000000000003", total_mb=10000, free_mb=9900)
TWO = Survey((SMALL, LARGE))
NO_DRIVER = Survey(problem="no NVIDIA driver answers (Driver Not Loaded)")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in the environment that chooses devices."""
    for name in ("SCENEFLEET_NODES", "SCENEFLEET_GPUS", "CUDA_VISIBLE_DEVICES", "WORKER_MODEL_MEMORY_MB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCENEFLEET_HOME", str(tmp_path))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def settings(nodes: str = "asr,text,vision,face,media,search", **values: Any) -> Settings:
    return Settings(SCENEFLEET_PROFILE=values.pop("profile", "full"), SCENEFLEET_NODES=nodes, **values)


def make_machine(survey: Survey, ram_mb: int = 64000, **facts: Any) -> Machine:
    """A machine whose torch can use GPUs."""
    return Machine(survey=survey, ram_mb=ram_mb, free_ram_mb=ram_mb, **facts)


def place(chosen: Settings, survey: Survey, **facts: Any) -> MachinePlacement:
    return plan_checks.place(chosen, make_machine(survey, **facts))


def judge_all(chosen: Settings, machine: Machine, *, running: bool = False) -> list[Finding]:
    return list(plan_checks.judge(chosen, plan_checks.place(chosen, machine), machine, running=running))


def judge(
    chosen: Settings, survey: Survey, ram_mb: int = 64000, *, running: bool = False
) -> dict[str, Finding]:
    found = judge_all(chosen, make_machine(survey, ram_mb), running=running)
    return {finding.check: finding for finding in found}


def needs(plan: MachinePlacement) -> dict[str, int]:
    return {load.title: load.needed_mb for load in plan.loads}


def test_each_process_has_its_device_its_models_and_their_memory() -> None:
    plan = place(settings("asr@0+1,text@GPU-bbbb,media:2"), TWO)
    processes = [
        (process.node, process.slot, process.asked, process.device, process.memory_mb)
        for process in plan.processes
    ]
    assert processes == [
        ("asr", 0, "0", SMALL.uuid, 5000),
        ("asr", 1, "1", LARGE.uuid, 5000),
        ("text", 0, "GPU-bbbb", LARGE.uuid, 5000),
        ("media", 0, "", "cpu", 0),
        ("media", 1, "", "cpu", 0),
    ]
    text = plan.processes[2]
    assert [(model.name, model.preload, model.memory_mb) for model in text.models] == [
        ("bge-m3", True, 2500),
        ("bge-reranker-v2-m3", False, 2500),
    ]
    assert needs(plan) == {"GPU 0 (Small)": 5000, "GPU 1 (Large)": 10000, "CPU": 0}


def test_one_gpu_by_two_names_is_one_device() -> None:
    assert needs(place(settings(f"asr@0,text@{SMALL.uuid}"), TWO)) == {"GPU 0 (Small)": 10000}


def test_a_budget_bounds_what_a_process_takes() -> None:
    chosen = settings("text@0", WORKER_MODEL_MEMORY_MB=3000)
    assert needs(place(chosen, TWO)) == {"GPU 0 (Small)": 3000}
    assert "plan bge-m3" not in judge(chosen, TWO)
    found = judge(settings("asr@1,text@1", WORKER_MODEL_MEMORY_MB=3000), TWO)["plan whisper-medium"]
    assert found.state == "fail" and "needs 5000 MB, the budget is 3000 MB" in found.detail


def test_nodes_that_name_no_gpu_compute_on_the_first_that_cuda_shows() -> None:
    assert needs(place(settings("asr"), TWO)) == {"GPU 0 (Small)": 5000}
    assert needs(place(settings("asr"), TWO, visible_gpus="1,0")) == {"GPU 1 (Large)": 5000}
    assert needs(place(settings("asr"), TWO, visible_gpus="")) == {"CPU": 5000}


def test_models_of_lite_compute_on_the_cpu_wherever_they_are() -> None:
    chosen = settings("asr@0,text", profile="lite")
    assert needs(place(chosen, TWO)) == {"CPU": 720}
    found = judge(chosen, TWO)
    assert found["plan CPU"].state == "ok"
    assert found["plan asr"].state == "warn" and "computes on the CPU" in found["plan asr"].detail


@pytest.mark.parametrize(
    ("nodes", "check", "state", "said"),
    [
        ("asr@1", "plan GPU 1 (Large)", "ok", "5000 MB of models (asr) on 80000 MB: fits"),
        ("asr@0+0", "plan GPU 0 (Small)", "fail", "10000 MB of models (asr) on 8000 MB: does not fit"),
        (
            "asr@0,face@0+0+0",
            "plan GPU 0 (Small)",
            "warn",
            "6800 MB of models (asr, face) on 8000 MB: hardly",
        ),
        ("asr@2", "plan GPU 2", "fail", "planned for asr, but not there: there is 0 (Small"),
        ("asr@GPU-ffff", "plan GPU-ffff", "fail", "planned for asr, but not there"),
    ],
)
def test_devices_are_judged(nodes: str, check: str, state: str, said: str) -> None:
    found = judge(settings(nodes), TWO)[check]
    assert (found.state, said in found.detail) == (state, True), found
    assert bool(found.advice) == (state != "ok")


def test_memory_that_others_use_is_worth_a_word_unless_the_nodes_run() -> None:
    used = Survey((Gpu(index=0, uuid=SMALL.uuid, name="Small", total_mb=8000, free_mb=400),))
    assert judge(settings("asr@0"), used)["plan GPU 0 (Small)"].state == "warn"
    assert judge(settings("asr@0"), used, running=True)["plan GPU 0 (Small)"].state == "ok"


def test_models_of_a_cpu_are_held_against_its_memory() -> None:
    assert judge(settings("asr:4,text"), NO_DRIVER, 20000)["plan CPU"].state == "fail"
    assert judge(settings("asr:3,text"), NO_DRIVER, 24000)["plan CPU"].state == "warn"
    assert judge(settings("asr,text"), NO_DRIVER, 24000)["plan CPU"].state == "ok"
    assert "plan CPU" not in judge(settings("asr@0,media"), TWO)


def test_the_production_models_without_a_gpu_are_slow() -> None:
    found = judge(settings(), NO_DRIVER)["plan profile"]
    assert found.state == "warn" and "slowly" in found.detail and "Driver Not Loaded" in found.detail
    assert "plan profile" not in judge(settings(), TWO)
    assert "plan profile" not in judge(settings(profile="lite"), NO_DRIVER)


def test_a_model_that_must_have_a_gpu_fails_without() -> None:
    found = judge(settings("asr,media", asr_device="cuda"), NO_DRIVER)["plan any GPU"]
    assert found.state == "fail" and "Driver Not Loaded" in found.detail


def test_a_torch_without_cuda_is_told() -> None:
    machine = make_machine(TWO, gpu_obstacle="the installed torch (9+cpu) is a CPU build")
    found = judge_all(settings("asr@1"), machine)
    assert [finding.state for finding in found] == ["fail", "ok"]
    assert "CPU build" in found[0].detail
    assert needs(plan_checks.place(settings("asr"), machine)) == {"CPU": 5000}, "auto takes the CPU"


def test_a_gpu_for_one_process_at_a_time() -> None:
    exclusive = Survey(
        (Gpu(index=0, uuid=LARGE.uuid, name="Large", total_mb=80000, free_mb=79000, is_exclusive=True),)
    )
    found = judge_all(settings("asr@0,text@0"), make_machine(exclusive))
    states = [(finding.state, "exclusive-process" in finding.detail) for finding in found]
    assert states == [("fail", True), ("ok", False)]
    assert judge(settings("asr@0"), exclusive)["plan GPU 0 (Large)"].state == "ok"


def test_instances_of_a_divided_gpu() -> None:
    whole = {"index": 0, "uuid": LARGE.uuid, "name": "Large", "total_mb": None, "free_mb": None}
    one, two = Survey((Gpu(**whole, mig=(PART,)),)), Survey((Gpu(**whole, mig=(PART, OTHER_PART)),))
    assert needs(place(settings("asr@0"), one)) == {PART.uuid: 5000}
    assert needs(place(settings(f"asr@{OTHER_PART.uuid},face@{PART.uuid}"), two)) == {
        OTHER_PART.uuid: 5000,
        PART.uuid: 600,
    }
    assert judge(settings(f"asr@{PART.uuid}"), two)[f"plan {PART.uuid}"].state == "ok"
    states = [finding.state for finding in judge_all(settings("asr@0"), make_machine(two))]
    assert states == ["fail", "ok"], "which one of them is meant is not said"


# --- as it is shown


def test_the_tables_show_every_process_and_every_device() -> None:
    console = Console(width=100, record=True, force_terminal=False)
    for table in plan_checks.tables(place(settings("asr@0+1,text@1,media"), TWO)):
        console.print(table)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "asr:1 GPU 1 (Large) whisper-medium 5000" in lines
    assert "text GPU 1 (Large) bge-m3, bge-reranker-v2-m3 (on demand) 5000" in lines
    assert "media CPU no model" in lines
    assert "GPU 1 (Large) 2 10000 80000 79000" in lines


def test_the_document_holds_the_plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENEFLEET_NODES", "text:2,media")
    run.run(as_json=True)
    document = json.loads(capsys.readouterr().out)
    processes = [
        (process["node"], process["slot"], process["device"]) for process in document["plan"]["processes"]
    ]
    assert processes == [("text", 0, "cpu"), ("text", 1, "cpu"), ("media", 0, "cpu")]
    (model,) = document["plan"]["processes"][0]["models"]
    assert model["name"] == "all-minilm-l6-v2" and model["preload"] is True
    (load,) = document["plan"]["loads"]
    assert load["needed_mb"] == 2 * model["memory_mb"] and load["total_mb"] > 0


def test_a_wrong_plan_is_a_finding_and_no_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENEFLEET_NODES", "asr@first")
    assert run.run(as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["plan"] is None
    (found,) = [check for check in document["checks"] if check["check"] == "plan"]
    assert found["state"] == "fail" and "'first' is no GPU" in found["detail"]
