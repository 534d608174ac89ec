"""The rules of placement: which device a process computes on, what its models take there, and whether that fits.

Pure functions: nodes follow them when they pin a GPU and load a model (`devices`), and ``scenefleet doctor`` applies them to
a whole machine without loading anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from worker.models.placement.nvml import Gpu, MigInstance, Survey
from worker.models.spec import KINDS, Kind, ModelSpec

DeviceName = Literal["cpu", "cuda"]
CPU: DeviceName = "cpu"
#: The device of a process that needs a GPU on a machine without one.
ANY_GPU: DeviceName = "cuda"

MemoryVerdict = Literal["fits", "busy", "too small", "unknown"]


@dataclass(frozen=True, kw_only=True)
class PlannedNode:
    """One node to run on this machine."""

    #: Name of the instance: the family, for a family's second node ``family-2``.
    name: str
    family: str
    processes: int
    #: The GPU of each process; empty: whatever CUDA shows, if anything.
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a placement depends on besides the configuration."""

    survey: Survey
    ram_mb: int
    free_ram_mb: int
    #: CUDA_VISIBLE_DEVICES; None: not set.
    visible_gpus: str | None = None
    #: Why the installed engine can use no GPU; empty: nothing prevents it.
    gpu_obstacle: str = ""


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model of a node."""

    name: str
    kind: str
    memory_mb: int
    #: Whether it is loaded before the node takes work, or when something first asks for it.
    preload: bool


@dataclass(frozen=True, kw_only=True)
class PlannedProcess:
    """One process of a node and the models it will hold."""

    node: str
    family: str
    #: Its number in the node.
    slot: int
    #: What was asked for: an index, a UUID, a MIG name; empty: nothing.
    asked: str
    #: Where its models compute: the UUID of a GPU or instance, `cpu`, or what was asked for where no such GPU is known
    #: (`cuda`: any).
    device: str
    models: tuple[PlannedModel, ...]
    #: Most it will take there: all its models, or the budget they have to share.
    memory_mb: int


@dataclass(frozen=True, kw_only=True)
class DeviceLoad:
    """What the processes on one device take together."""

    device: str
    #: For people: `GPU 0 (NVIDIA L4)`, `CPU`.
    title: str
    processes: int
    needed_mb: int
    #: What it has and what is free now; None: not known.
    total_mb: int | None
    free_mb: int | None


@dataclass(frozen=True, kw_only=True)
class MachinePlacement:
    """Every process of a machine's nodes, and every device they use."""

    processes: tuple[PlannedProcess, ...]
    loads: tuple[DeviceLoad, ...]


def choose_device(wanted: str, *, asked: bool, has_gpu: bool) -> DeviceName | None:
    """Where a model computes; None: it needs a GPU, and there is none.

    Args:
        wanted: its catalogue entry's ``cpu``, ``cuda`` (must be there) or ``auto``: a GPU if there is one.
        asked: whether GPUs are named for its process: then ``auto`` does not fall back to the CPU.
        has_gpu: whether its process has a GPU that its engine can use.
    """
    if wanted == "cpu":
        return "cpu"
    if has_gpu:
        return "cuda"
    return "cpu" if wanted == "auto" and not asked else None


def resolve_gpu(asked: str, survey: Survey) -> tuple[str, Gpu | MigInstance | None]:
    """The name to give to CUDA for a GPU that was asked for, and the GPU; None: the survey does not know it.

    A divided GPU stands for its only instance.
    """
    found = survey.find(asked)
    if isinstance(found, Gpu) and len(found.mig) == 1:
        return found.mig[0].uuid, found.mig[0]
    return asked, found


def judge_memory(needed_mb: int, total_mb: int | None, free_mb: int | None) -> MemoryVerdict:
    """Whether models fit on a device; ``busy``: they would, but others use too much of it. None: not known."""
    if total_mb is None:
        return "unknown"
    if needed_mb > total_mb:
        return "too small"
    return "busy" if free_mb is not None and needed_mb > free_mb else "fits"


def exceeds_budget(spec: ModelSpec | PlannedModel, budget_mb: int) -> bool:
    """Whether a process can never load a model, whatever it evicts; a budget of 0 is no limit."""
    return bool(budget_mb) and spec.memory_mb > budget_mb


def place_nodes(
    nodes: Iterable[PlannedNode], active: Mapping[Kind, ModelSpec], machine: Machine, *, budget_mb: int
) -> MachinePlacement:
    """Where the processes of some nodes compute, and what that takes of each device.

    Args:
        active: the model of each kind that jobs and requests use (`Catalog.active`).
        budget_mb: WORKER_MODEL_MEMORY_MB, which the models of a process share; 0: no limit.
    """
    processes = [
        _place_process(node, slot, active, machine, budget_mb)
        for node in nodes
        for slot in range(node.processes)
    ]
    devices = dict.fromkeys(process.device for process in processes)
    loads = [_sum_up(device, processes, machine) for device in devices]
    return MachinePlacement(processes=tuple(processes), loads=tuple(loads))


def _place_process(
    node: PlannedNode, slot: int, active: Mapping[Kind, ModelSpec], machine: Machine, budget_mb: int
) -> PlannedProcess:
    specs = [active[kind] for kind in KINDS.get(node.family, ()) if kind in active]
    asked = node.devices[slot] if node.devices else ""
    needed_mb = sum(spec.memory_mb for spec in specs)
    return PlannedProcess(
        node=node.name,
        family=node.family,
        slot=slot,
        asked=asked,
        device=_find_device(asked, specs, machine),
        models=tuple(
            PlannedModel(name=spec.name, kind=spec.kind, memory_mb=spec.memory_mb, preload=spec.preload)
            for spec in specs
        ),
        memory_mb=min(needed_mb, budget_mb) if budget_mb else needed_mb,
    )


def _find_device(asked: str, specs: list[ModelSpec], machine: Machine) -> str:
    shown = "0" if machine.visible_gpus is None else machine.visible_gpus.partition(",")[0].strip()
    name, found = resolve_gpu(asked or shown, machine.survey)
    has_gpu = found is not None and not machine.gpu_obstacle
    chosen = {choose_device(spec.device, asked=bool(asked), has_gpu=has_gpu) for spec in specs}
    if chosen <= {CPU}:
        return CPU
    if found is not None and (asked or has_gpu):
        return found.uuid
    return name if asked else ANY_GPU


def _sum_up(device: str, processes: list[PlannedProcess], machine: Machine) -> DeviceLoad:
    found = None if device == CPU else machine.survey.find(device)
    total_mb, free_mb = None, None
    if device == CPU:
        title, total_mb, free_mb = "CPU", machine.ram_mb, machine.free_ram_mb
    elif found is None:
        title = "any GPU" if device == ANY_GPU else f"GPU {device}" if device.isdigit() else device
    else:
        title = f"GPU {found.index} ({found.name})" if isinstance(found, Gpu) else found.uuid
        total_mb, free_mb = found.total_mb, found.free_mb
    needs_mb = [process.memory_mb for process in processes if process.device == device]
    return DeviceLoad(
        device=device,
        title=title,
        processes=len(needs_mb),
        needed_mb=sum(needs_mb),
        total_mb=total_mb,
        free_mb=free_mb,
    )
