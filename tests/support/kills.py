"""Kill a pool child at an exact step of a search that waits, in real nodes, without a line of it in the product."""

from __future__ import annotations

import json
from pathlib import Path

_VARIABLE = "TEST_KILLS_DIR"
_SITECUSTOMIZE = '''\
"""Wraps the steps of worker.search.wait.Pending when that module is first imported (tests/support/kills.py)."""
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

FOLDER = Path(os.environ["TEST_KILLS_DIR"])


def pass_by(point):
    """Die here if the test says so, after it has been passed as often as the test says."""
    rule = FOLDER / point
    if not rule.exists():
        return
    left = json.loads(rule.read_text())
    if left["skip"]:
        left["skip"] -= 1
        rule.write_text(json.dumps(left))
        return
    left["times"] -= 1
    with (FOLDER / (point + ".met")).open("a") as sink:
        sink.write(f"{os.getpid()}\\n")
    rule.write_text(json.dumps(left)) if left["times"] else rule.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def watched(name, plain):
    def step(*args, **kwargs):
        pass_by(name + ".before")
        result = plain(*args, **kwargs)
        # A claim that is refused is no step of the search.
        if name != "claim" or result is not None:
            pass_by(name + ".after")
        return result

    return step


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "worker.search.wait":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module

        def exec_module(module):
            plain(module)
            for step in ("begin", "arrive", "claim", "remove"):
                setattr(module.Pending, step, watched(step, getattr(module.Pending, step)))

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''


class Kills:
    """Where children of one fleet's search node die."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "points"
        self._python = folder / "python"
        self._folder.mkdir(parents=True)
        self._python.mkdir()
        (self._python / "sitecustomize.py").write_text(_SITECUSTOMIZE)

    def environment(self) -> dict[str, str]:
        """For ``Fleet.start("search", **...)``."""
        return {"PYTHONPATH": str(self._python), _VARIABLE: str(self._folder)}

    def at(self, point: str, *, times: int = 1, skip: int = 0) -> None:
        """kill -9 whoever comes to this point: ``begin``, ``arrive``, ``claim`` or ``remove`` and when, ``claim.after``."""
        (self._folder / f"{point}.met").unlink(missing_ok=True)
        (self._folder / point).write_text(json.dumps({"times": times, "skip": skip}))

    def met(self, point: str) -> int:
        """How many have died there."""
        path = self._folder / f"{point}.met"
        return len(path.read_text().splitlines()) if path.exists() else 0
