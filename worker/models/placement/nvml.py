"""Lists the GPUs of this machine and their processes, with NVML.

NVML is an interface of the driver without CUDA: the main process of a node and the command line may use it, and children
forked afterwards can still use the GPU. Imports no engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_MiB = 2**20


@dataclass(frozen=True, kw_only=True)
class MigInstance:
    """A part of a GPU that computes on its own."""

    #: ``MIG-...``
    uuid: str
    #: None: the driver does not report it to this process.
    total_mb: int | None
    free_mb: int | None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    #: As nvidia-smi counts, by PCI bus.
    index: int
    #: ``GPU-...``
    uuid: str
    name: str
    #: None: the driver does not report it to this process.
    total_mb: int | None
    free_mb: int | None
    #: Exclusive-process mode: one process at a time.
    is_exclusive: bool = False
    #: Its instances; empty: it is not divided.
    mig: tuple[MigInstance, ...] = ()

    def __str__(self) -> str:
        parts = "".join(f", {instance.uuid}" for instance in self.mig)
        return f"{self.index} ({self.name}, {self.uuid}{parts})"


@dataclass(frozen=True)
class Survey:
    gpus: tuple[Gpu, ...] = ()
    #: Why it is empty; empty: no error.
    problem: str = ""

    def find(self, device: str) -> Gpu | MigInstance | None:
        """The GPU or instance of this name: an index, a UUID or the beginning of one (CUDA takes that too)."""
        if device.isdigit():
            return next((gpu for gpu in self.gpus if gpu.index == int(device)), None)
        names: list[Gpu | MigInstance] = [*self.gpus, *(part for gpu in self.gpus for part in gpu.mig)]
        found = [one for one in names if one.uuid.lower().startswith(device.lower())]
        return found[0] if len(found) == 1 else None

    def describe(self) -> str:
        """A list of the GPUs, for the end of a sentence."""
        if self.problem:
            return f"the GPUs can't be listed: {self.problem}"
        return "there is " + ("; ".join(map(str, self.gpus)) or "no GPU")


def list_gpus() -> Survey:
    """The GPUs the driver shows to this process. Never raises, never initialises CUDA."""
    try:
        with _library() as nvml:
            return Survey(tuple(_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())))
    except _NvmlAbsent as error:
        return Survey(problem=str(error))


def holders(uuid: str) -> list[tuple[int, int | None]]:
    """Processes that compute on a GPU or instance: pid (of the host, also in a container) and memory, MB, or None."""
    try:
        with _library() as nvml:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except _NvmlAbsent:
        return []
    return [
        (process.pid, None if process.usedGpuMemory is None else process.usedGpuMemory // _MiB)
        for process in processes
    ]


class _NvmlAbsent(Exception):
    """NVML is not available; the message is the reason."""


@contextmanager
def _library() -> Iterator[Any]:
    """Start and stop the library; its errors become ``_NvmlAbsent``."""
    try:
        import pynvml
    except ImportError:
        raise _NvmlAbsent("the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _NvmlAbsent(f"no NVIDIA driver answers ({error})") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise _NvmlAbsent(f"the NVIDIA driver failed ({error})") from None
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    total_mb, free_mb = _memory_mb(nvml, handle)
    try:
        mode = nvml.nvmlDeviceGetComputeMode(handle)
    except nvml.NVMLError:
        mode = None
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        total_mb=total_mb,
        free_mb=free_mb,
        is_exclusive=mode == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
        mig=tuple(_instances(nvml, handle)),
    )


def _instances(nvml: Any, handle: Any) -> Iterator[MigInstance]:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current else 0
    except nvml.NVMLError:
        return  # a GPU that knows no MIG
    for place in range(most):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError:
            continue  # places need not be filled in order
        total_mb, free_mb = _memory_mb(nvml, instance)
        yield MigInstance(uuid=nvml.nvmlDeviceGetUUID(instance), total_mb=total_mb, free_mb=free_mb)


def _memory_mb(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """Total and free; a container may not ask a divided GPU for its own."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return None, None
    return memory.total // _MiB, memory.free // _MiB
