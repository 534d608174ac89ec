"""What the tests' own support promises CI: nothing is skipped for want of assets, and figures reach the log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.assets import VARIABLE, find_assets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFTEST = "from tests.conftest import assets, pytest_terminal_summary, record_figure\n"


def run_pytest(
    folder: Path, code: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the tests in ``code`` with this project's conftest; an empty variable is taken away."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(code)
    (folder / "pytest.ini").write_text("[pytest]\n")
    full = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", *arguments, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={name: value for name, value in full.items() if value},
    )


@pytest.mark.parametrize(("place", "reason"), [("", " is not set"), ("/nowhere", "=/nowhere is no folder")])
def test_without_assets_a_test_skips_here_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, place: str, reason: str
) -> None:
    monkeypatch.setenv(VARIABLE, place)
    for ci, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match=VARIABLE + reason):
            find_assets()


@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["one process", "side by side"])
def test_figures_of_tests_that_pass_reach_the_log(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run_pytest(
        tmp_path,
        "def test_b(record_figure): record_figure('word error rate', '0.071')\n"
        "def test_a(record_figure):\n    record_figure('recall', 0.5)\n    assert False\n"
        "def test_c(assets): pass\n",
        *arguments,
        **{VARIABLE: "", "CI": "true"},
    )
    lines = done.stdout.splitlines()
    assert "1 failed, 1 passed" in lines[-1] and "1 error" in lines[-1]
    (heading,) = [number for number, line in enumerate(lines) if "= figures =" in line]
    assert lines[heading + 1] == "test_it.py::test_a  recall: 0.5"
    assert lines[heading + 2] == "test_it.py::test_b  word error rate: 0.071"
