"""Find and stop what a killed ``scenefleet up`` left running in its home folder.

Programs we start carry the home folder in an environment variable. Postgres and Redis overwrite that memory with
their process title, so those two are known by their name and working directory.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from cli.home import Home

#: Set for everything that ``up`` starts.
MARK = "SCENEFLEET_UP"
STOP_LIMIT_S = 40.0
SERVERS = {"postgres": signal.SIGINT, "redis-server": signal.SIGTERM}


def find(home: Home) -> list[psutil.Process]:
    """Live processes of this home folder, whoever started them."""
    found = []
    own_pid = os.getpid()
    for process in psutil.process_iter():
        try:
            if process.pid != own_pid and _belongs(process, home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # gone, or another user's
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
    """Stop them: first what would restart the others, then nodes, then the servers; returns how many there were."""
    found = find(home)
    servers = [process for process in found if _server_name(process) is not None]
    runners = [process for process in found if process not in servers and _is_runner(process)]
    nodes = [process for process in found if process not in servers and process not in runners]
    # A runner asked to end would stop its programs one by one; killed, it leaves them to us.
    _end(runners, signal.SIGKILL, limit_s)
    # A node's main process ends its children itself.
    pids = {process.pid for process in nodes}
    _end([process for process in nodes if _parent(process) not in pids], signal.SIGTERM, limit_s)
    _end([process for process in nodes if process.is_running()], signal.SIGKILL, limit_s)
    for name, stop_signal in reversed(SERVERS.items()):
        _end([process for process in servers if _server_name(process) == name], stop_signal, limit_s)
    return len(found)


def _is_runner(process: psutil.Process) -> bool:
    try:
        return "supervisor.supervisord" in process.cmdline()
    except psutil.Error:
        return False


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def _end(processes: list[psutil.Process], stop_signal: int, limit_s: float) -> None:
    for process in processes:
        _send(process, stop_signal)
    _, alive = psutil.wait_procs(processes, timeout=limit_s)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # ended by itself meanwhile
