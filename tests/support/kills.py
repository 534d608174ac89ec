"""Kill a pool child at an exact step of a search that waits, in real nodes, without a line of it in the product."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.wrapping import wrap_on_import

_VARIABLE = "TEST_KILLS_DIR"


def wrap(module: Any) -> None:
    """In a node: let the steps of a search that waits pass by the points where the test may kill."""
    for step in ("begin", "arrive", "claim", "remove"):
        setattr(module.Pending, step, _watched(step, getattr(module.Pending, step)))


def _watched(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        _pass_by(f"{name}.before")
        result = plain(*args, **kwargs)
        # A claim that is refused is no step of the search.
        if name != "claim" or result is not None:
            _pass_by(f"{name}.after")
        return result

    return step


def _pass_by(point: str) -> None:
    """Die here if the test says so, after it has been passed as often as the test says."""
    rule = Path(os.environ[_VARIABLE]) / point
    if not rule.exists():
        return
    left = json.loads(rule.read_text())
    if left["skip"]:
        left["skip"] -= 1
        rule.write_text(json.dumps(left))
        return
    left["times"] -= 1
    with rule.with_name(f"{point}.met").open("a") as sink:
        sink.write(f"{os.getpid()}\n")
    rule.write_text(json.dumps(left)) if left["times"] else rule.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


class Kills:
    """Where children of one fleet's search node die."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "points"
        self._python = folder / "python"
        self._folder.mkdir(parents=True)
        wrap_on_import(self._python, "worker.search.wait", __name__, "wrap")

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
