"""tus-js-client: the one of web/node_modules, or a fresh one in a folder of the test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.assets import give_up
from tests.support.fleet import ROOT

NAME, VERSION = "tus-js-client", "4.3.1"


def find_tus_js(folder: Path) -> tuple[str, Path]:
    """The program node and the client's folder; where there is none the test skips locally and fails in CI."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        give_up("node is not installed: install Node.js 20 or newer")
    installed = ROOT / "web" / "node_modules" / NAME
    if installed.is_dir():
        return node, installed
    if npm is None:
        give_up(f"{NAME} is not installed: run `npm ci` in web/")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"{NAME}@{VERSION}"]
    if subprocess.run(command, capture_output=True, timeout=120).returncode != 0:
        give_up(f"{NAME} can't be installed: run `npm ci` in web/")
    return node, folder / "node_modules" / NAME
