"""Programs that tests of the whole product run to their end, away from any terminal."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import fork_server
from tests.support.fleet import ROOT


def run_command(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    *,
    status: int = 0,
    cwd: Path = ROOT,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a program; the test fails when its exit status is another one."""
    command = list(map(str, command))
    if fork_server.may_fork(command, environment):
        done = fork_server.run_to_end(command, environment, cwd=cwd, timeout_s=timeout_s)
    else:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
