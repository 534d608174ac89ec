"""Applies the rules of placement (`plan`) in a process that computes: pins its GPU, chooses device and number format, checks memory.

The parent of a forked worker must never initialise CUDA (its children would hang), so nothing here imports torch before it
is asked for a placement, and NVML (`nvml`) lists the GPUs.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from shared.errors import DeviceUnavailable, ModelDoesNotFit
from shared.logs import get_logger
from shared.settings import get_settings, process_environment, set_process_environment
from worker.models.placement.nvml import Gpu, holders, list_gpus
from worker.models.placement.plan import DeviceName, choose_device, judge_memory, resolve_gpu

log = get_logger(__name__)

DtypeName = Literal["float32", "float16", "bfloat16"]

#: An index; a GPU's UUID or an instance's, or the beginning of one; an instance as drivers before R470 name it.
_DEVICE_NAME = re.compile(
    r"\d{1,3}|(GPU|MIG)-[0-9A-Fa-f][0-9A-Fa-f-]{3,35}|MIG-GPU-[0-9A-Fa-f-]{36}/\d{1,3}/\d{1,3}"
)
DEVICE_NAME_FORMS = (
    "an index such as 0, a UUID such as GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, or a MIG-... name"
)
#: The driver needs a moment to free the memory of a killed process, such as the one this process replaces.
LEAVING_S = 15.0
_LOOK_S = 0.5
_MiB = 2**20


@dataclass(frozen=True)
class Placement:
    device: DeviceName
    dtype: DtypeName


def is_device_name(name: str) -> bool:
    """Whether a name has the form of a GPU's or an instance's (`nvidia-smi -L` prints the names)."""
    return _DEVICE_NAME.fullmatch(name) is not None


def place(
    device: str, dtype: DtypeName | Literal["auto"], *, model: str = "", memory_mb: int = 0
) -> Placement:
    """Decide device and number format of one model, in the process that computes; imports torch unless the device is ``cpu``.

    Args:
        device: ``cpu``, ``cuda`` (must be there) or ``auto``: a GPU if there is one; where SCENEFLEET_GPUS names GPUs it
            must exist, and the CPU is never used instead.
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``. A CPU always computes in float32; ``auto`` on a GPU is
            bfloat16 where the GPU has it (compute capability 8 and up), float16 elsewhere.
        memory_mb: what it will take on the GPU; has to be free.

    Raises:
        DeviceUnavailable: there is no usable GPU, or others use too much of it; says which there are, or who does.
        ModelDoesNotFit: the GPU is too small.
    """
    asked = get_settings().gpu_list
    if device == "cpu":
        if asked:
            log.warning("model computes on the CPU, as its catalogue entry says", model=model, gpus=asked)
        return Placement("cpu", "float32")
    import torch

    chosen = choose_device(device, asked=bool(asked), has_gpu=torch.cuda.is_available())
    if chosen is None:
        raise DeviceUnavailable(_explain_none(torch, model, asked))
    if chosen == "cpu":
        return Placement("cpu", "float32")
    _require_memory(torch, model, memory_mb)
    if dtype == "auto":
        return Placement("cuda", "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16")
    return Placement("cuda", dtype)


def pin(devices: tuple[str, ...], slot: int) -> str | None:
    """Pin this process to the GPU of its slot. Call it before anything imports torch.

    Args:
        devices: indices, UUIDs (``GPU-...``) or MIG names (``MIG-...``), one per slot; empty: no change.
        slot: the child's index; a child that replaces another has the same.

    Returns: the name given to CUDA, or None.
    Raises: DeviceUnavailable when there are more slots than devices, or the driver knows no such device.
    """
    if not devices:
        return None
    if slot >= len(devices):
        raise DeviceUnavailable(
            f"slot {slot} has no GPU: SCENEFLEET_GPUS names {len(devices)} ({', '.join(devices)}); name one per process"
        )
    device = _resolve(devices[slot])
    # Indices as nvidia-smi counts them; CUDA by itself puts the fastest first.
    set_process_environment("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    set_process_environment("CUDA_VISIBLE_DEVICES", device)
    return device


def _resolve(device: str) -> str:
    """The name to give to CUDA; without NVML the requested name, which CUDA checks."""
    if not is_device_name(device):
        raise DeviceUnavailable(
            f"SCENEFLEET_GPUS names {device!r}, which is not a GPU: use {DEVICE_NAME_FORMS}"
        )
    survey = list_gpus()
    if survey.problem:
        return device
    name, found = resolve_gpu(device, survey)
    # The old names of instances are not their UUIDs: NVML can't find those, CUDA can.
    if found is None and not device.startswith("MIG-GPU-"):
        raise DeviceUnavailable(f"GPU {device} is not there: {survey.describe()}; correct SCENEFLEET_GPUS")
    if isinstance(found, Gpu) and found.mig:
        names = ", ".join(instance.uuid for instance in found.mig)
        raise DeviceUnavailable(
            f"GPU {device} is divided into {len(found.mig)} instances: name one of them in SCENEFLEET_GPUS ({names})"
        )
    return name


def is_cuda_initialised() -> bool:
    """Whether this process has touched CUDA (the parent of a pool must not)."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine's error means that the device's memory is full."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # CTranslate2 and cuBLAS say it in words only.
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def free_cache() -> None:
    """Release cached device memory, if this process uses a device."""
    if is_cuda_initialised():
        sys.modules["torch"].cuda.empty_cache()


def allocated_bytes() -> int | None:
    """Device memory of this process's tensors; None without a GPU."""
    return int(sys.modules["torch"].cuda.memory_allocated()) if is_cuda_initialised() else None


def _require_memory(torch: Any, model: str, needed_mb: int) -> None:
    """Check that the GPU can be used and has enough free memory; wait for the memory of a process that just ended."""
    deadline_s = time.monotonic() + LEAVING_S
    while True:
        try:
            return _check_memory(torch, model, needed_mb)
        except DeviceUnavailable:
            if time.monotonic() >= deadline_s:
                raise
        time.sleep(_LOOK_S)


def _check_memory(torch: Any, model: str, needed_mb: int) -> None:
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        # What torch keeps of models that were unloaded can be used again.
        free_bytes += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        message = f"GPU {_visible()} can't be used for model {model} ({reason}){_tell_holders()}"
        raise DeviceUnavailable(message) from error
    free_mb, total_mb = free_bytes // _MiB, total_bytes // _MiB
    verdict = judge_memory(needed_mb, total_mb, free_mb)
    if verdict == "too small":
        raise ModelDoesNotFit(
            f"Model {model} needs {needed_mb} MB, GPU {_visible()} has {total_mb} MB: choose a smaller model, or a larger GPU"
        )
    if verdict == "busy":
        raise DeviceUnavailable(
            f"GPU {_visible()} is busy: model {model} needs {needed_mb} MB, {free_mb} of {total_mb} MB are free"
            f"{_tell_holders()}; free it, or name another GPU in SCENEFLEET_GPUS"
        )


def _explain_none(torch: Any, model: str, asked: tuple[str, ...]) -> str:
    if torch.version.cuda is None:
        reason = f"the installed torch ({torch.__version__}) is built without CUDA"
    else:
        reason = f"CUDA {torch.version.cuda} shows this process none"
    wanted = f"SCENEFLEET_GPUS={','.join(asked)}" if asked else "its device 'cuda'"
    remedy = "correct SCENEFLEET_GPUS, or leave it empty" if asked else "set its device to 'auto' or 'cpu'"
    return (
        f"Model {model} finds no usable GPU for {wanted}: {reason}"
        f" (CUDA_VISIBLE_DEVICES={process_environment('CUDA_VISIBLE_DEVICES')!r}), and {list_gpus().describe()};"
        f" {remedy} to compute on the CPU"
    )


def _visible() -> str:
    """The name of the GPU this process computes on."""
    return (process_environment("CUDA_VISIBLE_DEVICES") or "0").partition(",")[0].strip()


def _tell_holders() -> str:
    """Other processes on this process's GPU, as the end of a sentence; empty if the driver does not report them."""
    found = list_gpus().find(_visible())
    if found is None:
        return ""
    others = [
        f"process {pid}" + ("" if used_mb is None else f" with {used_mb} MB")
        for pid, used_mb in holders(found.uuid)
        if pid != os.getpid()
    ]
    mode = ", in exclusive-process mode" if isinstance(found, Gpu) and found.is_exclusive else ""
    return mode + (f", held by {', '.join(others)}" if others else "")
