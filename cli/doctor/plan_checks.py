"""The plan of this machine for ``scenefleet doctor``: node -> device -> models -> memory, and whether it fits.

Nothing is loaded: memory is what the catalogue says a model takes, GPUs are those NVML tells of.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil
from rich.markup import escape
from rich.table import Table

from cli.doctor.findings import Check, Finding
from local import fleet, node_plan
from local.home import Home
from shared.settings import Settings, process_environment
from worker.models.catalog import configured_catalog
from worker.models.placement.nvml import Gpu, MigInstance, Survey, list_gpus
from worker.models.spec import KINDS, ModelSpec

CPU = "cpu"
#: Where a model belongs that computes on a GPU only, on a machine without.
ANY_GPU = "cuda"
#: A machine that models fill beyond this share of its memory is worth a word.
FULL_SHARE = 0.8
_MiB = 2**20


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model of a node, as the catalogue has it."""

    name: str
    kind: str
    memory_mb: int
    #: Whether it is loaded before the node takes work, or when something first asks for it.
    preload: bool


@dataclass(frozen=True, kw_only=True)
class Seat:
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
class Load:
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
class Plan:
    """Every process of this machine's nodes, and every device they use."""

    seats: tuple[Seat, ...]
    loads: tuple[Load, ...]


def make_plan(settings: Settings, survey: Survey, ram_mb: int, free_ram_mb: int) -> Plan:
    """What `scenefleet up` would run here.

    Raises:
        InvalidRequest: SCENEFLEET_NODES or SCENEFLEET_GPUS is not acceptable.
        ModelUnavailable: the catalogue is not readable.
    """
    active = configured_catalog(settings).active(settings)
    seats: list[Seat] = []
    for node in fleet.plan_nodes(settings):
        kinds = next((kinds for family, kinds in KINDS.items() if family == node.family), ())
        specs = [active[kind] for kind in kinds if kind in active]
        seats += [
            _seat(node, slot, specs, settings.model_memory_mb, survey) for slot in range(node.processes)
        ]
    devices = dict.fromkeys(seat.device for seat in seats)
    loads = [
        _load(device, [seat for seat in seats if seat.device == device], survey, ram_mb, free_ram_mb)
        for device in devices
    ]
    return Plan(seats=tuple(seats), loads=tuple(loads))


def _seat(
    node: node_plan.PlannedNode, slot: int, specs: list[ModelSpec], budget_mb: int, survey: Survey
) -> Seat:
    asked = node.devices[slot] if node.devices else ""
    needed_mb = sum(spec.memory_mb for spec in specs)
    return Seat(
        node=node.name,
        family=node.family,
        slot=slot,
        asked=asked,
        device=_device(asked, specs, survey),
        models=tuple(
            PlannedModel(name=spec.name, kind=spec.kind, memory_mb=spec.memory_mb, preload=spec.preload)
            for spec in specs
        ),
        memory_mb=min(needed_mb, budget_mb) if budget_mb else needed_mb,
    )


def _device(asked: str, specs: list[ModelSpec], survey: Survey) -> str:
    """Where a process computes: what worker/models/placement/devices.py will decide."""
    if all(spec.device == "cpu" for spec in specs):
        return CPU
    if asked:
        found = survey.find(asked)
        return asked if found is None else _undivided(found).uuid
    visible = process_environment("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.partition(",")[0].strip()
    found = None if torch_obstacle() else survey.find(first)
    if found is not None:
        return _undivided(found).uuid
    return ANY_GPU if any(spec.device == "cuda" for spec in specs) else CPU


def _undivided(found: Gpu | MigInstance) -> Gpu | MigInstance:
    """A divided GPU stands for its only instance."""
    return found.mig[0] if isinstance(found, Gpu) and len(found.mig) == 1 else found


def torch_obstacle() -> str:
    """Why the installed torch can use no GPU, as far as its version tells without importing it; empty: nothing."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "torch is not installed"
    return f"the installed torch ({version}) is a CPU build" if version.endswith("+cpu") else ""


def _load(device: str, seats: list[Seat], survey: Survey, ram_mb: int, free_ram_mb: int) -> Load:
    found = None if device == CPU else survey.find(device)
    if device == CPU:
        title, total_mb, free_mb = "CPU", ram_mb, free_ram_mb
    elif found is None:
        title = "any GPU" if device == ANY_GPU else f"GPU {device}" if device.isdigit() else device
        total_mb, free_mb = None, None
    else:
        title, total_mb, free_mb = title_of(found), found.total_mb, found.free_mb
    return Load(
        device=device,
        title=title,
        processes=len(seats),
        needed_mb=sum(seat.memory_mb for seat in seats),
        total_mb=total_mb,
        free_mb=free_mb,
    )


def title_of(found: Gpu | MigInstance) -> str:
    """A GPU as people know it."""
    return f"GPU {found.index} ({found.name})" if isinstance(found, Gpu) else found.uuid


def check(settings: Settings) -> Iterator[Finding]:
    """Whether every device of the plan is there and has room.

    Raises: as `make_plan`.
    """
    plan, survey = survey_machine(settings)
    yield from judge(settings, plan, survey, running=Home(settings).is_locked())


def judge(settings: Settings, plan: Plan, survey: Survey, *, running: bool) -> Iterator[Finding]:
    """The findings about a plan; ``running``: the nodes may hold already what is not free."""
    for load in plan.loads:
        seats = [seat for seat in plan.seats if seat.device == load.device]
        if load.device == CPU:
            yield from _judge_cpu(load, seats, running=running)
        else:
            yield from _judge_gpu(load, seats, survey, running=running)
    yield from _judge_budget(settings, plan)
    yield from _judge_choice(settings, plan, survey)


def _judge_gpu(load: Load, seats: list[Seat], survey: Survey, *, running: bool) -> Iterator[Finding]:
    check, found = f"plan {load.title}", survey.find(load.device)
    names = _names(seats)
    if found is None:
        yield Finding(
            check=check,
            state="fail",
            detail=f"planned for {names}, but not there: {survey.describe()}",
            advice="correct SCENEFLEET_NODES or SCENEFLEET_GPUS, or mend the driver",
        )
        return
    if obstacle := torch_obstacle():
        advice = "install a build of torch with CUDA (on Linux PyPI's is one)"
        yield Finding(check=check, state="fail", detail=f"planned for {names}, but {obstacle}", advice=advice)
    if isinstance(found, Gpu) and found.mig:
        yield Finding(
            check=check,
            # Without a name CUDA takes the first instance.
            state="fail" if any(seat.asked for seat in seats) else "warn",
            detail=f"it is divided into {', '.join(part.uuid for part in found.mig)}",
            advice="name one of these instances instead of the GPU",
        )
    elif isinstance(found, Gpu) and found.is_exclusive and load.processes > 1:
        yield Finding(
            check=check,
            state="fail",
            detail=f"it is in exclusive-process mode, but {load.processes} processes are to use it ({names})",
            advice=f"nvidia-smi -i {found.index} -c DEFAULT, or give each process its own GPU",
        )
    advice = "give nodes another GPU, choose smaller models, or set WORKER_MODEL_MEMORY_MB"
    yield _fit(check, load, names, advice, running=running)


def _judge_cpu(load: Load, seats: list[Seat], *, running: bool) -> Iterator[Finding]:
    names = _names([seat for seat in seats if seat.models])
    if names:
        advice = "run fewer processes, or set WORKER_MODEL_MEMORY_MB"
        yield _fit("plan CPU", load, names, advice, running=running)
    for seat in seats:
        if seat.asked:
            models = ", ".join(model.name for model in seat.models)
            yield Finding(
                check=f"plan {seat.node}",
                state="warn",
                detail=f"has GPU {seat.asked}, but {models} computes on the CPU",
                advice="leave the GPU out, or choose a model that can use it",
            )


def _names(seats: Iterable[Seat]) -> str:
    return ", ".join(dict.fromkeys(seat.node for seat in seats))


def _fit(check: str, load: Load, names: str, advice: str, *, running: bool) -> Finding:
    detail = f"{load.needed_mb} MB of models ({names})"
    if load.total_mb is None:
        return Finding(check=check, state="ok", detail=f"{detail}; how much memory it has is not told")
    detail += f" on {load.total_mb} MB"
    if load.needed_mb > load.total_mb:
        return Finding(check=check, state="fail", detail=f"{detail}: does not fit", advice=advice)
    if load.needed_mb > FULL_SHARE * load.total_mb:
        return Finding(
            check=check, state="warn", detail=f"{detail}: hardly leaves room to work", advice=advice
        )
    if not running and load.free_mb is not None and load.needed_mb > load.free_mb:
        others = f"{detail}: fits, but only {load.free_mb} MB are free now"
        return Finding(check=check, state="warn", detail=others, advice="look at what else uses it")
    return Finding(check=check, state="ok", detail=f"{detail}: fits")


def _judge_budget(settings: Settings, plan: Plan) -> Iterator[Finding]:
    models = {model for seat in plan.seats for model in seat.models}
    for model in sorted(models, key=lambda model: model.name):
        if settings.model_memory_mb and model.memory_mb > settings.model_memory_mb:
            yield Finding(
                check=f"plan {model.name}",
                state="fail",
                detail=f"needs {model.memory_mb} MB, the budget is {settings.model_memory_mb} MB: never loaded",
                advice="raise WORKER_MODEL_MEMORY_MB, or choose a smaller model",
            )


def _judge_choice(settings: Settings, plan: Plan, survey: Survey) -> Iterator[Finding]:
    """Production models on a CPU work, but hardly anybody means that."""
    on_cpu = any(seat.device == CPU and seat.models for seat in plan.seats)
    on_gpu = any(seat.device != CPU for seat in plan.seats)
    if settings.profile == "full" and on_cpu and not on_gpu:
        yield Finding(
            check="plan profile",
            state="warn",
            detail=f"the models of profile full run on the CPU, slowly: {torch_obstacle() or survey.describe()}",
            advice="run it where there is a GPU, or use SCENEFLEET_PROFILE=lite",
        )


def survey_machine(settings: Settings) -> tuple[Plan, Survey]:
    """The plan, with what this machine has.

    Raises: as `make_plan`.
    """
    survey = list_gpus()
    memory = psutil.virtual_memory()
    return make_plan(settings, survey, memory.total // _MiB, memory.available // _MiB), survey


def tables(plan: Plan) -> list[Table]:
    """The plan for people: what each process holds and where, and what that takes of each device."""
    titles = {load.device: load.title for load in plan.loads}
    seats = Table(
        title="plan of this machine", title_justify="left", box=None, pad_edge=False, header_style="dim"
    )
    for name in ("node", "device", "models"):
        seats.add_column(name, overflow="fold", no_wrap=name == "node")
    seats.add_column("MB", justify="right", no_wrap=True)
    several = {seat.node for seat in plan.seats if seat.slot}
    for seat in plan.seats:
        models = ", ".join(model.name + ("" if model.preload else " (on demand)") for model in seat.models)
        seats.add_row(
            f"{seat.node}:{seat.slot}" if seat.node in several else seat.node,
            escape(titles[seat.device]),
            models or "[dim]no model[/dim]",
            f"{seat.memory_mb}" if seat.models else "",
        )
    loads = Table(box=None, pad_edge=False, header_style="dim")
    loads.add_column("device", overflow="fold")
    for name in ("processes", "needs MB", "has MB", "free MB"):
        loads.add_column(name, justify="right", no_wrap=True)
    for load in plan.loads:
        numbers = (load.processes, load.needed_mb, load.total_mb, load.free_mb)
        loads.add_row(escape(load.title), *("?" if number is None else str(number) for number in numbers))
    return [seats, loads]


CHECKS: tuple[tuple[str, Check], ...] = (("plan", check),)
