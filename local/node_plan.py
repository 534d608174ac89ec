"""Parse SCENEFLEET_NODES: the nodes that a machine runs."""

from __future__ import annotations

from shared.errors import InvalidRequest
from shared.routing import NODES
from worker.models.placement.devices import DEVICE_NAME_FORMS, is_device_name
from worker.models.placement.plan import PlannedNode

MAX_PROCESSES = 256
#: Processes of a node that names no number, where one is too few: a search keeps its process while it waits for models.
PROCESSES = {"search": 4}
#: Stands in SCENEFLEET_NODES for the HTTP API, which is no worker node.
API = "api"


def names_api(text: str) -> bool:
    """Whether SCENEFLEET_NODES names the HTTP API."""
    return API in (part.strip() for part in text.split(","))


def usable_families(models: set[str]) -> list[str]:
    """Families a fleet needs, given those that have a model: the others can't work and are left out."""
    return [name for name, family in NODES.items() if not family.has_model or name in models]


def parse_plan(text: str, models: set[str], gpus: tuple[str, ...] = ()) -> list[PlannedNode]:
    """The nodes to run here, from ``media:2,asr@0+1,text@GPU-8932f937``; those of families without a model left out.

    ``family:N`` is one node with N processes, ``family@A+B`` one with a process on each of these GPUs. A family may stand
    several times when each has its GPUs: nodes of their own, which start and fail apart.

    Args:
        text: SCENEFLEET_NODES.
        models: families that have a model.
        gpus: SCENEFLEET_GPUS, the GPUs of a node that names none.

    Raises:
        InvalidRequest: an unknown family, one named twice, a bad number, or invalid GPUs.
    """
    plan: list[PlannedNode] = []
    seen: dict[str, bool] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item == API:
            continue
        family, count, devices = _parse_item(item)
        if family in seen and not (seen[family] and devices):
            raise InvalidRequest(
                f"SCENEFLEET_NODES names {family} twice: write {family}:2 for two processes, or give each its GPUs"
                f" ({family}@0,{family}@1)"
            )
        seen[family] = bool(devices)
        if gpus and NODES[family].has_model and not devices:
            check_devices(family, gpus, f"SCENEFLEET_GPUS={','.join(gpus)}")
            devices = gpus
        processes = count_processes(family, count, devices, f"SCENEFLEET_NODES has {item!r}")
        if family not in usable_families(models):
            continue
        nth = 1 + sum(node.family == family for node in plan)
        name = family if nth == 1 else f"{family}-{nth}"
        plan.append(PlannedNode(name=name, family=family, processes=processes, devices=devices))
    if not plan:
        raise InvalidRequest(f"SCENEFLEET_NODES={text!r} leaves no node to run: name at least one family")
    return plan


def _parse_item(item: str) -> tuple[str, int | None, tuple[str, ...]]:
    """Family, number of processes if it is given, GPUs."""
    head, at, tail = item.partition("@")
    family, colon, count = (part.strip() for part in head.partition(":"))
    if family not in NODES:
        raise InvalidRequest(
            f"SCENEFLEET_NODES names {family!r}, which is no family: use {', '.join([*NODES, API])}"
        )
    if colon and not (count.isdigit() and 1 <= int(count) <= MAX_PROCESSES):
        raise InvalidRequest(
            f"SCENEFLEET_NODES has {item!r}: write {family}:N with N from 1 to {MAX_PROCESSES}"
        )
    if not at:
        return family, int(count) if colon else None, ()
    devices = tuple(device.strip() for device in tail.split("+"))
    check_devices(family, devices, f"SCENEFLEET_NODES has {item!r}")
    return family, int(count) if colon else None, devices


def check_devices(family: str, devices: tuple[str, ...], said: str) -> None:
    """Check the GPUs of a node; ``said`` begins the error message.

    Raises:
        InvalidRequest: the family has no model, or an invalid name of a GPU.
    """
    if not NODES[family].has_model:
        raise InvalidRequest(f"{said}, but {family} has no model and needs no GPU: leave the GPU out")
    for device in devices:
        if not is_device_name(device):
            raise InvalidRequest(f"{said}: {device!r} is no GPU, use {DEVICE_NAME_FORMS}")


def count_processes(family: str, count: int | None, devices: tuple[str, ...], said: str) -> int:
    """The number of processes of a node: one per GPU, else ``count``, else the family's default.

    Raises:
        InvalidRequest: another number was asked for.
    """
    if devices and count not in (None, len(devices)):
        raise InvalidRequest(
            f"{said}: processes {count}, GPUs {len(devices)} ({', '.join(devices)}); name one GPU per process, the same"
            " one twice if two shall share it"
        )
    return len(devices) or count or PROCESSES.get(family, 1)
