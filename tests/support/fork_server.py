"""Starts Python programs from a process that has already imported their libraries.

A node spends 1 to 4 seconds of processor time on imports, and tests start hundreds. What is imported here are libraries, and
those of our modules that read no setting when they are imported; each program imports the others after its environment is
set. Programs whose environment concerns a library at import (``HF_...``, ``OMP_...``), and those under a measurement of coverage,
start the usual way.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

#: Missing ones are passed over.
LIBRARIES = (
    "celery.bin.celery", "celery.bin.worker", "celery.apps.worker", "celery.backends.redis",
    "celery.concurrency.prefork", "celery.worker.consumer", "celery.app.control", "celery.events",
    "kombu.transport.redis", "redis.asyncio", "psycopg", "psycopg.types.json", "sqlalchemy.orm",
    "sqlalchemy.dialects.postgresql.psycopg", "pgvector.sqlalchemy", "alembic.command", "pydantic", "structlog",
    "psutil", "yaml", "minio", "httpx", "numpy", "av", "cv2", "torch", "tokenizers", "safetensors.torch",
    "transformers.models.xlm_roberta.modeling_xlm_roberta", "transformers.models.siglip.modeling_siglip",
    "transformers.models.auto", "onnxruntime", "whisper", "faster_whisper", "silero_vad", "rapidocr.main",
    "rapidocr.inference_engine.onnxruntime", "dlib", "PIL.Image", "pocketsphinx", "fastapi", "uvicorn",
    "uvicorn.protocols.http.h11_impl", "python_multipart", "joserfc.jwt", "typer", "rich.table", "rich.progress",
    "multiprocessing.spawn",
)  # fmt: skip
#: Our modules that most programs import.
OURS = (
    "shared.client", "shared.webhooks", "db.active_models", "db.ledger.claims", "db.ledger.video_runs", "db.people.registry",
    "db.search.ranking", "db.timeline", "db.video_changes", "db.webhooks.registry", "worker.models.batching",
    "worker.models.catalog", "api.app",
)  # fmt: skip


class RunningProcess(Protocol):
    """What tests use of a process, as ``subprocess.Popen`` has it."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class _Forked:
    """A program that the fork server has started."""

    def __init__(self, process: Any, command: Sequence[str]) -> None:
        self._process, self._command = process, command
        # Whoever polls first reads the status, which the server has written once.
        self._polling = threading.Lock()
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._polling:
            found: int | None = self._process.exitcode
        return found

    def wait(self, timeout: float | None = None) -> int:
        wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._command, timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _may_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the fork server may start this program: ``python -m module``, by this interpreter."""
    return (
        sys.platform == "linux"
        and list(command[:2]) == [sys.executable, "-m"]
        and "COVERAGE_PROCESS_CONFIG" not in environment
        and not any(name.startswith(("HF_", "OMP_")) and name != "HF_HUB_OFFLINE" for name in environment)
    )


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: Path,
    output: Path,
    errors: Path,
    fork: bool = True,
) -> RunningProcess:
    """Start a program in a session of its own; what it writes is appended to these files.

    Args:
        fork: let the fork server start it, where it may.
    """
    if fork and _may_fork(command, environment):
        arguments = (list(command[2:]), dict(environment), str(cwd), str(output), str(errors))
        process = _server().Process(target=_run, args=arguments, daemon=True)
        process.start()
        return _Forked(process, command)
    with output.open("ab") as told, errors.open("ab") as complained:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=complained,
            start_new_session=True,
        )


def run_to_end(
    command: Sequence[str], environment: Mapping[str, str], *, cwd: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        running = start(command, environment, cwd=cwd, output=output, errors=errors)
        try:
            status = running.wait(timeout_s)
        except BaseException:
            running.kill()
            running.wait(30)
            raise
        return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    return context


def _run(arguments: list[str], environment: dict[str, str], cwd: str, output: str, errors: str) -> None:
    """In the new process: become the program."""
    os.setsid()
    for place, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, output, os.O_WRONLY),
        (2, errors, os.O_WRONLY),
    ):
        found = os.open(name, flags | (os.O_CREAT | os.O_APPEND if place else 0), 0o644)
        os.dup2(found, place)
        os.close(found)
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        stream = open(number, mode, buffering=1, closefd=False)  # noqa: SIM115
        setattr(sys, f"std{('in', 'out', 'err')[number]}", stream)
        setattr(sys, f"__std{('in', 'out', 'err')[number]}__", stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    # A daemon may start no processes by multiprocessing.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    module, *sys.argv[1:] = arguments
    sys.path.insert(0, cwd)
    # As an interpreter that starts with it.
    folders = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:0] = folders
    # What is in them may change our modules at their import, or be a plug-in.
    if folders:
        ours = {name.partition(".")[0] for name in OURS}
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]
    for folder in folders:
        if Path(folder, "sitecustomize.py").exists():
            runpy.run_path(str(Path(folder, "sitecustomize.py")), run_name="sitecustomize")
    runpy.run_module(module, run_name="__main__", alter_sys=True)
