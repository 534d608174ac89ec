"""Programs that tests of the whole product run to their end, away from any terminal."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.fleet import ROOT, run_to_end


def run_command(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    *,
    status: int = 0,
    cwd: Path = ROOT,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a program; the test fails when its exit status is another one."""
    done = run_to_end(list(map(str, command)), environment, cwd=cwd, timeout_s=timeout_s)
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
