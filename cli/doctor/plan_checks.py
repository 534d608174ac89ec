"""The plan of this machine for ``scenefleet doctor``: node -> device -> models -> memory, and whether it fits.

Nothing is loaded: memory is the catalogue's figure, GPUs are those NVML lists, and the rules are those nodes follow
(`worker.models.placement.plan`).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator

import psutil
from rich.markup import escape
from rich.table import Table

from cli import screen
from cli.doctor.findings import Finding, fail, ok, warn
from local import fleet
from local.home import Home
from shared.settings import Settings, process_environment
from worker.models.catalog import configured_catalog
from worker.models.placement.nvml import Gpu, list_gpus
from worker.models.placement.plan import (
    CPU,
    DeviceLoad,
    Machine,
    MachinePlacement,
    PlannedProcess,
    exceeds_budget,
    judge_memory,
    place_nodes,
)

#: A machine that models fill beyond this share of its memory gets a warning.
FULL_SHARE = 0.8
_MiB = 2**20


def torch_obstacle() -> str:
    """Why the installed torch can use no GPU, as far as its version tells without importing it; empty: nothing."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "torch is not installed"
    return f"the installed torch ({version}) is a CPU build" if version.endswith("+cpu") else ""


def survey_machine() -> Machine:
    """What this machine has."""
    memory = psutil.virtual_memory()
    return Machine(
        survey=list_gpus(),
        ram_mb=memory.total // _MiB,
        free_ram_mb=memory.available // _MiB,
        visible_gpus=process_environment("CUDA_VISIBLE_DEVICES"),
        gpu_obstacle=torch_obstacle(),
    )


def place(settings: Settings, machine: Machine) -> MachinePlacement:
    """Where the nodes that `scenefleet up` would run here compute.

    Raises:
        InvalidRequest: SCENEFLEET_NODES or SCENEFLEET_GPUS is not acceptable.
        ModelUnavailable: the catalogue is not readable.
    """
    active = configured_catalog(settings).active(settings)
    return place_nodes(fleet.plan_nodes(settings), active, machine, budget_mb=settings.model_memory_mb)


def check(settings: Settings) -> Iterator[Finding]:
    """Whether every device of the plan is there and has room.

    Raises: as `place`.
    """
    machine = survey_machine()
    yield from judge(settings, place(settings, machine), machine, running=Home(settings).is_locked())


def judge(
    settings: Settings, placement: MachinePlacement, machine: Machine, *, running: bool
) -> Iterator[Finding]:
    """The findings about a placement; ``running``: the nodes may hold already what is not free."""
    for load in placement.loads:
        processes = [process for process in placement.processes if process.device == load.device]
        if load.device == CPU:
            yield from _judge_cpu(load, processes, running=running)
        else:
            yield from _judge_gpu(load, processes, machine, running=running)
    yield from _judge_budget(settings, placement)
    yield from _judge_choice(settings, placement, machine)


def _judge_gpu(
    load: DeviceLoad, processes: list[PlannedProcess], machine: Machine, *, running: bool
) -> Iterator[Finding]:
    survey = machine.survey
    check, found = f"plan {load.title}", survey.find(load.device)
    names = _names(processes)
    if found is None:
        advice = "correct SCENEFLEET_NODES or SCENEFLEET_GPUS, or repair the driver"
        yield fail(check, f"planned for {names}, but not there: {survey.describe()}", advice)
        return
    if obstacle := machine.gpu_obstacle:
        advice = "install a build of torch with CUDA (on Linux PyPI's is one)"
        yield fail(check, f"planned for {names}, but {obstacle}", advice)
    if isinstance(found, Gpu) and found.mig:
        # Without a name CUDA takes the first instance.
        judged = fail if any(process.asked for process in processes) else warn
        parts = ", ".join(part.uuid for part in found.mig)
        yield judged(check, f"it is divided into {parts}", "name one of these instances instead of the GPU")
    elif isinstance(found, Gpu) and found.is_exclusive and load.processes > 1:
        detail = f"it is in exclusive-process mode, but {load.processes} processes are to use it ({names})"
        yield fail(check, detail, f"nvidia-smi -i {found.index} -c DEFAULT, or give each process its own GPU")
    advice = "give nodes another GPU, choose smaller models, or set WORKER_MODEL_MEMORY_MB"
    yield _fit(check, load, names, advice, running=running)


def _judge_cpu(load: DeviceLoad, processes: list[PlannedProcess], *, running: bool) -> Iterator[Finding]:
    names = _names([process for process in processes if process.models])
    if names:
        advice = "run fewer processes, or set WORKER_MODEL_MEMORY_MB"
        yield _fit("plan CPU", load, names, advice, running=running)
    for process in processes:
        if process.asked:
            models = ", ".join(model.name for model in process.models)
            detail = f"has GPU {process.asked}, but {models} computes on the CPU"
            yield warn(f"plan {process.node}", detail, "leave the GPU out, or choose a model that can use it")


def _names(processes: Iterable[PlannedProcess]) -> str:
    return ", ".join(dict.fromkeys(process.node for process in processes))


def _fit(check: str, load: DeviceLoad, names: str, advice: str, *, running: bool) -> Finding:
    detail = f"{load.needed_mb} MB of models ({names})"
    if load.total_mb is None:
        return ok(check, f"{detail}; its memory is unknown")
    detail += f" on {load.total_mb} MB"
    verdict = judge_memory(load.needed_mb, load.total_mb, None if running else load.free_mb)
    if verdict == "too small":
        return fail(check, f"{detail}: does not fit", advice)
    if load.needed_mb > FULL_SHARE * load.total_mb:
        return warn(check, f"{detail}: hardly leaves room to work", advice)
    if verdict == "busy":
        detail += f": fits, but only {load.free_mb} MB are free now"
        return warn(check, detail, "look at what else uses it")
    return ok(check, f"{detail}: fits")


def _judge_budget(settings: Settings, placement: MachinePlacement) -> Iterator[Finding]:
    models = {model for process in placement.processes for model in process.models}
    for model in sorted(models, key=lambda model: model.name):
        if exceeds_budget(model, settings.model_memory_mb):
            budget = f"the budget is {settings.model_memory_mb} MB: never loaded"
            advice = "raise WORKER_MODEL_MEMORY_MB, or choose a smaller model"
            yield fail(f"plan {model.name}", f"needs {model.memory_mb} MB, {budget}", advice)


def _judge_choice(settings: Settings, placement: MachinePlacement, machine: Machine) -> Iterator[Finding]:
    """Production models work on a CPU, but this is seldom intended."""
    on_cpu = any(process.device == CPU and process.models for process in placement.processes)
    on_gpu = any(process.device != CPU for process in placement.processes)
    if settings.profile == "full" and on_cpu and not on_gpu:
        reason = machine.gpu_obstacle or machine.survey.describe()
        detail = f"the models of profile full run on the CPU, slowly: {reason}"
        yield warn("plan profile", detail, "run it where there is a GPU, or use SCENEFLEET_PROFILE=lite")


def tables(placement: MachinePlacement) -> list[Table]:
    """The plan for people: the models and device of each process, and the load of each device."""
    titles = {load.device: load.title for load in placement.loads}
    processes = screen.make_table("node", "~device", "~models", ">MB", title="plan of this machine")
    several = {process.node for process in placement.processes if process.slot}
    for process in placement.processes:
        models = ", ".join(model.name + ("" if model.preload else " (on demand)") for model in process.models)
        processes.add_row(
            f"{process.node}:{process.slot}" if process.node in several else process.node,
            escape(titles[process.device]),
            models or "[dim]no model[/dim]",
            f"{process.memory_mb}" if process.models else "",
        )
    loads = screen.make_table("~device", ">processes", ">needs MB", ">has MB", ">free MB")
    for load in placement.loads:
        numbers = (load.processes, load.needed_mb, load.total_mb, load.free_mb)
        loads.add_row(escape(load.title), *("?" if number is None else str(number) for number in numbers))
    return [processes, loads]
