"""The process runner below ``scenefleet up``: a private supervisord, its configuration and its remote control.

supervisord starts, restarts and stops the programs and rotates their logs. Programs that outlived a killed
supervisord are found by ``local.orphans``.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shared.errors import Outage
from shared.exit_status import ExitStatus

#: A program that ends sooner is started again after a growing pause (1 s, 2 s, ...); one that ends later, at once. No
#: longer than this, because supervisord would take a quick exit with ExitStatus.CONFIG for a failed start and go on trying.
START_S = 1
START_RETRIES = 1_000_000
LOG_BYTES = 10 * 2**20
LOG_BACKUPS = 3
#: ``sun_path`` holds 104 bytes on macOS, 108 on Linux; supervisord adds its pid to a temporary name.
MAX_SOCKET_PATH = 90
CONTROL_LIMIT_S = 20.0
SOCKET = "supervisor.sock"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process to keep alive."""

    name: str
    command: tuple[str, ...]
    cwd: Path
    #: Lower starts earlier and stops later.
    priority: int
    stop_signal: str = "TERM"
    #: Seconds until a stopping program is killed.
    stop_wait_s: int
    autostart: bool = True
    #: Programs of one group stop at the same time.
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProgramState:
    """State of a program, as supervisord reports it."""

    #: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN
    state: str
    pid: int
    #: Of its last end; 0 if it never ended.
    exit_status: int
    #: Seconds since 1970; 0 before the first start.
    started_at_s: int
    #: Its file, relative to the home.
    log: str


def socket_path(folder: Path, name: str) -> Path:
    """The path of a socket: in its folder, or in a private temporary one when that path is too long.

    Or when it would be another one as a part of a URL: Flower does not undo the quoting.
    """
    path = folder / name
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH and quote(str(path)) == str(path):
        return path
    return Path(tempfile.mkdtemp(prefix="scenefleet-")) / name


def remove_socket(path: Path, root: Path) -> None:
    """Remove a socket, with its temporary folder when that is not below ``root``."""
    path.unlink(missing_ok=True)
    if not path.is_relative_to(root):
        path.parent.rmdir()


def render_config(socket: Path, programs: Iterable[Program]) -> str:
    """supervisord's configuration; all paths are relative to the home folder, in which it runs."""
    lines = [
        "; Written by `scenefleet up`; changes are lost.",
        "[supervisord]",
        "nodaemon=true",
        "umask=077",
        "silent=true",
        "logfile=logs/supervisor.log",
        f"logfile_maxbytes={LOG_BYTES}",
        f"logfile_backups={LOG_BACKUPS}",
        "pidfile=supervisor.pid",
        "childlogdir=logs",
        "identifier=scenefleet",
    ]
    if os.geteuid() == 0:
        lines.append("user=root")
    lines += [
        "",
        "[unix_http_server]",
        f"file={_escape(str(socket))}",
        "chmod=0700",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]
    groups: dict[str, list[str]] = {}
    for program in programs:
        lines += ["", *_render_program(program)]
        if program.group is not None:
            groups.setdefault(program.group, []).append(program.name)
    for group, names in groups.items():
        lines += ["", f"[group:{group}]", f"programs={','.join(names)}", "priority=900"]
    return "\n".join(lines) + "\n"


def _render_program(program: Program) -> list[str]:
    return [
        f"[program:{program.name}]",
        f"command={_escape(shlex.join(program.command))}",
        f"directory={_escape(str(program.cwd))}",
        f"priority={program.priority}",
        f"autostart={str(program.autostart).lower()}",
        "autorestart=unexpected",
        f"exitcodes={ExitStatus.CONFIG:d}",
        f"startsecs={START_S}",
        f"startretries={START_RETRIES}",
        f"stopsignal={program.stop_signal}",
        f"stopwaitsecs={program.stop_wait_s}",
        "stopasgroup=false",
        "killasgroup=true",
        "redirect_stderr=true",
        f"stdout_logfile=logs/{program.name}.log",
        f"stdout_logfile_maxbytes={LOG_BYTES}",
        f"stdout_logfile_backups={LOG_BACKUPS}",
    ]


def _escape(value: str) -> str:
    return value.replace("%", "%%")


def start(config: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start supervisord in the config's folder; on Linux it stops everything when this process dies.

    It gets a session of its own, so that Ctrl-C reaches only this process, which stops everything in order.
    """
    # Loaded here: between fork and exec nothing may be imported.
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", config.name]
    with (config.parent / "logs" / "supervisor.err").open("wb") as errors:
        return subprocess.Popen(
            command,
            cwd=config.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=tie,
        )


class Supervisor:
    """Remote control of one supervisord."""

    def __init__(self, socket: Path) -> None:
        self._url = f"unix://{socket}"

    def _call(self, method: str, *arguments: Any) -> Any:
        """One request on a connection of its own: supervisor's transport can't be used again after an error."""
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, self._url)
        try:
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)
        except (OSError, HTTPException, xmlrpc.client.Error) as error:
            raise Outage(f"the process runner does not answer ({error})") from error
        finally:
            transport.close()

    def wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Wait until it answers.

        Raises:
            Outage: it ended or does not answer; names its log.
        """
        deadline = time.monotonic() + CONTROL_LIMIT_S
        while True:
            try:
                self._call("getState")
                return
            except Outage:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Outage(f"the process runner did not start: read {log}") from None
                time.sleep(0.05)

    def states(self) -> dict[str, ProgramState]:
        """Every program's state by name.

        Raises:
            Outage: supervisord does not answer.
        """
        return {
            row["name"]: ProgramState(
                state=row["statename"],
                pid=row["pid"],
                exit_status=row["exitstatus"],
                started_at_s=row["start"],
                log=row["stdout_logfile"],
            )
            for row in self._call("getAllProcessInfo")
        }

    def start_group(self, group: str) -> None:
        """Start a group's programs without waiting for them."""
        self._call("startProcessGroup", group, False)
