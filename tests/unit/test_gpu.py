"""Which device a process gets and what it is told when it can't have it; the driver and CUDA are stand-ins here.

What a real GPU does is checked by `make test-gpu`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared.errors import DeviceUnavailable, ModelDoesNotFit
from shared.settings import get_settings
from worker.models.placement import devices, nvml

ROOT = Path(__file__).parents[2]
MiB = 2**20
UUIDS = ("GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000001")
#: As drivers before R470 name an instance.
OLD_PART = f"MIG-{UUIDS[0]}/7/0"
PARTS = ("MIG-cccccccc-0000-0000-0000-000000000002", "MIG-dddddddd-0000-0000-0000-000000000003")
THERE = f"there is 0 (Test GPU, {UUIDS[0]}); 1 (Test GPU, {UUIDS[1]})"


class FakeNvml:
    """The driver of a machine with two GPUs, told apart by handle = UUID."""

    NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 3

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.present = True
        self.memory_mb = {UUIDS[0]: (24000, 20000), UUIDS[1]: (80000, 500)}
        self.memory_mb |= dict.fromkeys(PARTS, (10000, 9000))
        self.exclusive: set[str] = set()
        #: GPU -> its instances, None in a place that is empty.
        self.mig: dict[str, list[str | None]] = {}
        self.processes: dict[str, list[tuple[int, int | None]]] = {}
        self.started = 0

    def nvmlInit(self) -> None:
        if not self.present:
            raise self.NVMLError("Driver Not Loaded")
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.started -= 1

    nvmlDeviceGetCount = staticmethod(lambda: 2)
    nvmlDeviceGetHandleByIndex = staticmethod(UUIDS.__getitem__)
    nvmlDeviceGetHandleByUUID = nvmlDeviceGetUUID = staticmethod(str)
    nvmlDeviceGetName = staticmethod(lambda handle: "Test GPU")
    nvmlDeviceGetMaxMigDeviceCount = staticmethod(lambda handle: 7)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        if handle not in self.memory_mb:
            raise self.NVMLError("Insufficient Permissions")
        total_mb, free_mb = self.memory_mb[handle]
        return SimpleNamespace(total=total_mb * MiB, free=free_mb * MiB)

    def nvmlDeviceGetComputeMode(self, handle: str) -> int:
        return 3 if handle in self.exclusive else 0

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:
        if handle not in self.mig:
            raise self.NVMLError("Not Supported")
        return 1, 1

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, place: int) -> str:
        instance = dict(enumerate(self.mig[handle])).get(place)
        if instance is None:
            raise self.NVMLError("Not Found")
        return instance

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=None if mb is None else mb * MiB)
            for pid, mb in self.processes.get(handle, [])
        ]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU is asked for, and what a test sets in the environment goes again."""
    for name in ("SCENEFLEET_GPUS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        # Set first, so that what `pin` writes is taken back too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def ask_for(devices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEFLEET_GPUS", devices)
    get_settings.cache_clear()


# --- what there is


def test_gpus_are_listed_with_their_memory_and_instances(driver: FakeNvml) -> None:
    driver.mig[UUIDS[1]] = [PARTS[0], None, PARTS[1]]
    del driver.memory_mb[UUIDS[1]]
    driver.exclusive = {UUIDS[0]}
    survey = nvml.list_gpus()
    assert survey.problem == ""
    first, second = survey.gpus
    assert (first.index, first.uuid, first.name) == (0, UUIDS[0], "Test GPU")
    assert (first.total_mb, first.free_mb, first.is_exclusive, first.mig) == (24000, 20000, True, ())
    assert (second.total_mb, second.free_mb, second.is_exclusive) == (None, None, False)
    assert [(part.uuid, part.total_mb, part.free_mb) for part in second.mig] == [
        (name, 10000, 9000) for name in PARTS
    ]
    assert driver.started == 0, "the library is given back"


def test_a_device_is_found_by_each_of_its_names(driver: FakeNvml) -> None:
    driver.mig[UUIDS[1]] = [PARTS[0]]
    survey = nvml.list_gpus()
    assert all(survey.find(name) == survey.gpus[1] for name in ("1", UUIDS[1], "GPU-bbbb", "gpu-BBBB"))
    assert survey.find(PARTS[0]) == survey.gpus[1].mig[0]
    assert survey.find("2") is None
    assert survey.find("GPU-") is None, "the beginning of two names is none"


def test_without_a_driver_the_reason_is_told(driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.present = False
    assert nvml.list_gpus() == nvml.Survey(problem="no NVIDIA driver answers (Driver Not Loaded)")
    assert nvml.holders(UUIDS[0]) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in nvml.list_gpus().problem


def test_listing_touches_neither_torch_nor_cuda() -> None:
    """The real NVML, or the want of it, in a process of its own."""
    code = "import sys; from worker.models.placement import devices, nvml; nvml.list_gpus()"
    code += "; assert 'torch' not in sys.modules and not devices.is_cuda_initialised()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


# --- names


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, True) for name in ("0", "15", UUIDS[0], "GPU-8932", PARTS[0], OLD_PART)),
        *((name, False) for name in ("", "1000", "-1", "cpu", "cuda:0", "GPU-", "GPU-xyz12", "GPU-aaaa,1")),
        *((name, False) for name in (f"MIG-{UUIDS[0]}", f"{UUIDS[0]}0")),
    ],
)
def test_names_of_devices_have_a_shape(name: str, known: bool) -> None:
    assert devices.is_device_name(name) is known


# --- pinning


def test_each_slot_sees_its_own_device(driver: FakeNvml) -> None:
    assert devices.pin((), 3) is None and "CUDA_VISIBLE_DEVICES" not in os.environ
    for slot, device in enumerate(named := ("1", UUIDS[0])):
        assert devices.pin(named, slot) == os.environ["CUDA_VISIBLE_DEVICES"] == device
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("named", "slot", "said"),
    [
        ("2", 0, f"GPU 2 is not there: {THERE}; correct SCENEFLEET_GPUS"),
        ("0", 1, "slot 1 has no GPU"),
        ("gpu0", 0, "'gpu0', which is not a GPU"),
        ("GPU-ffff", 0, "GPU-ffff is not there"),
    ],
)
def test_pins_that_are_refused(named: str, slot: int, said: str, driver: FakeNvml) -> None:
    with pytest.raises(DeviceUnavailable) as refusal:
        devices.pin((named,), slot)
    assert said in str(refusal.value) and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_divided_gpu_stands_for_its_only_instance(driver: FakeNvml) -> None:
    driver.mig[UUIDS[0]] = [PARTS[0]]
    assert devices.pin(("0",), 0) == PARTS[0]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == PARTS[0]
    driver.mig[UUIDS[0]].append(PARTS[1])
    with pytest.raises(DeviceUnavailable, match=f"into 2 instances: name one .*{PARTS[0]}, {PARTS[1]}"):
        devices.pin(("0",), 0)
    assert devices.pin((PARTS[1],), 0) == PARTS[1]


@pytest.mark.parametrize(("name", "present"), [("7", False), (OLD_PART, True)], ids=["no NVML", "old name"])
def test_a_device_that_nvml_can_not_find_is_left_to_cuda(name: str, present: bool, driver: FakeNvml) -> None:
    driver.present = present
    assert devices.pin((name,), 0) == name


# --- placing


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A CUDA that lets us in, as told by the values in it."""
    told: dict[str, Any] = {"free_mb": 8000, "total_mb": 24000, "capability": (9, 0)}
    told |= {"error": None, "looks": 0}

    def mem_get_info() -> tuple[int, int]:
        told["looks"] += 1
        if told["error"] is not None:
            raise told["error"]
        return told["free_mb"] * MiB, told["total_mb"] * MiB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: told.get("kept_mb", 0) * MiB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: told["capability"])
    monkeypatch.setattr(devices, "LEAVING_S", 0.0)
    return told


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_number_format_follows_the_device(cuda: dict[str, Any]) -> None:
    assert devices.place("cpu", "float16") == devices.Placement("cpu", "float32")
    assert cuda["looks"] == 0, "a CPU model never asks for a GPU"
    for dtype, cuda["capability"], expected in (
        ("auto", (8, 0), "bfloat16"),
        ("auto", (7, 5), "float16"),
        ("float32", (8, 0), "float32"),
        ("float16", (8, 0), "float16"),
    ):
        assert devices.place("auto", dtype) == devices.Placement("cuda", expected)  # type: ignore[arg-type]


def test_auto_takes_the_cpu_only_where_nobody_asked_for_a_gpu(
    no_cuda: None, driver: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.place("auto", "auto") == devices.Placement("cpu", "float32")
    ask_for("0", monkeypatch)
    with pytest.raises(DeviceUnavailable) as error:
        devices.place("auto", "auto", model="m")
    assert str(error.value).startswith("Model m finds no usable GPU for SCENEFLEET_GPUS=0: ")
    assert f"there is 0 (Test GPU, {UUIDS[0]})" in str(error.value)
    # As its entry in the catalogue says.
    assert devices.place("cpu", "auto") == devices.Placement("cpu", "float32")


def test_a_cuda_model_says_why(no_cuda: None, driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.present = False
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    for version, said in (
        (None, r"torch \(.*\) is built without CUDA .*no NVIDIA driver answers"),
        ("12.8", r"CUDA 12.8 shows this process none \(CUDA_VISIBLE_DEVICES='9'\)"),
    ):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(DeviceUnavailable, match=said):
            devices.place("cuda", "auto", model="m")


def test_a_gpu_without_room_is_refused_with_who_holds_it(
    cuda: dict[str, Any], driver: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS[1])
    cuda.update(free_mb=500, total_mb=80000)
    driver.processes[UUIDS[1]] = [(4711, 79000), (4712, None), (os.getpid(), 100)]
    with pytest.raises(DeviceUnavailable) as error:
        devices.place("auto", "auto", model="whisper-medium", memory_mb=5000)
    assert str(error.value) == (
        f"GPU {UUIDS[1]} is busy: model whisper-medium needs 5000 MB, 500 of 80000 MB are free, held by process 4711 with"
        " 79000 MB, process 4712; free it, or name another GPU in SCENEFLEET_GPUS"
    )


def test_a_gpu_that_a_killed_process_is_leaving_is_waited_for(
    cuda: dict[str, Any], driver: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LEAVING_S", 60.0)
    cuda["free_mb"] = 500

    def leave(wait_s: float) -> None:
        cuda["free_mb"] = 8000

    monkeypatch.setattr(devices.time, "sleep", leave)
    assert devices.place("cuda", "auto", model="m", memory_mb=5000).device == "cuda"
    assert cuda["looks"] == 2
    # What torch keeps of unloaded models counts as free.
    cuda.update(free_mb=500, kept_mb=4600)
    assert devices.place("cuda", "auto", model="m", memory_mb=5000).device == "cuda"
    assert cuda["looks"] == 3


def test_a_gpu_too_small_is_refused_at_once(cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LEAVING_S", 60.0)
    with pytest.raises(ModelDoesNotFit, match="Model m needs 30000 MB, GPU 0 has 24000 MB"):
        devices.place("cuda", "auto", model="m", memory_mb=30000)
    assert cuda["looks"] == 1


def test_a_gpu_in_exclusive_mode_that_another_process_has(cuda: dict[str, Any], driver: FakeNvml) -> None:
    driver.exclusive, driver.processes = {UUIDS[0]}, {UUIDS[0]: [(4711, 300)]}
    said = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
    cuda["error"] = RuntimeError(f"{said}\nCompile with ...")
    with pytest.raises(DeviceUnavailable) as error:
        devices.place("cuda", "auto", model="m")
    reason = f"({said}), in exclusive-process mode, held by process 4711 with 300 MB"
    assert str(error.value) == f"GPU 0 can't be used for model m {reason}"
