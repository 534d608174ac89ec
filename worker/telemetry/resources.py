"""What a node's processes and its machine use: CPU, memory, disk. In a container, the container's memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def _container_memory() -> tuple[int, int] | None:
    """The limit and the use of this container's memory, bytes; None without a limit."""
    with suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        # Pages of files are freed on demand.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return limit, used - int(stat.get("inactive_file", 0))
    return None


def machine(folder: Path) -> dict[str, float]:
    """The machine: busy CPUs in percent since the last call, memory and the disk of ``folder``, bytes."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _container_memory()
    if limit is not None and limit[0] < total:
        total, available = limit[0], min(available, max(0, limit[0] - limit[1]))
    found: dict[str, float] = {
        "cpu_percent": psutil.cpu_percent(),
        "memory_total_bytes": total,
        "memory_available_bytes": available,
    }
    with suppress(OSError):
        disk = psutil.disk_usage(str(folder))
        found |= {"disk_total_bytes": disk.total, "disk_free_bytes": disk.free}
    return found


def processes(pids: Iterable[int]) -> dict[str, float]:
    """CPU seconds and resident bytes of some processes, in sum; those that are gone count nothing."""
    found: dict[str, Any] = {"cpu_s": 0.0, "resident_bytes": 0}
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            times = process.cpu_times()
            # Theirs, and of their ended children: the time of a child that dies is not lost.
            found["cpu_s"] += times.user + times.system + times.children_user + times.children_system
            found["resident_bytes"] += process.memory_info().rss
    return found
