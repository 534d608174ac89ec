"""Find and stop what a killed ``scenefleet up`` left running in its home folder.

Programs we start carry the home folder in an environment variable. Postgres and Redis overwrite that memory with
their process title, so those two are known by their name and working directory.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil

from local.home import Home

#: Set for everything that ``up`` starts.
MARK = "SCENEFLEET_UP"
STOP_LIMIT_S = 40.0
#: Nodes get less: with supervisord their log pipe is gone, and Celery, which writes to it first thing when asked to end,
#: then ignores the request. Their jobs go to others when their leases run out.
NODE_LIMIT_S = 4.0
SERVERS = {"postgres": signal.SIGINT, "redis-server": signal.SIGTERM, "valkey-server": signal.SIGTERM}


def find(home: Home) -> list[psutil.Process]:
    """Live processes of this home folder, whoever started them."""
    found = []
    own_pid = os.getpid()
    for process in psutil.process_iter():
        try:
            if process.pid != own_pid and _belongs(process, home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # ended, or another user's
    return found


def _belongs(process: psutil.Process, home: Home) -> bool:
    if process.status() == psutil.STATUS_ZOMBIE:
        return False
    if _server_name(process) is not None:
        folder = Path(process.cwd())
        return folder in (home.postgres, home.redis)
    return process.environ().get(MARK) == str(home.root)


def _server_name(process: psutil.Process) -> str | None:
    name = process.name()
    return next((server for server in SERVERS if name.startswith(server)), None)


def stop(home: Home, limit_s: float = STOP_LIMIT_S) -> int:
    """Stop these processes: first the runner, which would restart the others, then nodes, then servers; returns how many there were."""
    found = find(home)
    kinds: dict[str, list[psutil.Process]] = {"runner": [], "node": [], **{name: [] for name in SERVERS}}
    for process in found:
        kinds[_kind(process)].append(process)
    # A runner asked to end would stop its programs one by one; killed, it leaves them to us.
    _end(kinds["runner"], signal.SIGKILL, limit_s)
    _end(_roots(kinds["node"]), signal.SIGTERM, min(limit_s, NODE_LIMIT_S))
    _end([process for process in kinds["node"] if process.is_running()], signal.SIGKILL, limit_s)
    for name, stop_signal in reversed(SERVERS.items()):
        _end(_roots(kinds[name]), stop_signal, limit_s)
    return len(found)


def _kind(process: psutil.Process) -> str:
    try:
        runner = "supervisor.supervisord" in process.cmdline()
        return _server_name(process) or ("runner" if runner else "node")
    except psutil.Error:
        return "node"  # ended meanwhile: nothing will be sent to it


def _roots(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that none of the others started: a main process ends its children itself."""
    pids = {process.pid for process in processes}
    roots = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids:
                roots.append(process)
    return roots


def _end(processes: list[psutil.Process], stop_signal: int, limit_s: float) -> None:
    for number, wait_s in ((stop_signal, limit_s), (signal.SIGKILL, 5)):
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # ended by itself meanwhile
                process.send_signal(number)
        _, processes = psutil.wait_procs(processes, timeout=wait_s)
