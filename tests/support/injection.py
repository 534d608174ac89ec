"""Make a stage of a named video slow, fail or die on purpose, in real nodes, without a line of it in the product.

The test side (``Injection``) writes one file per rule; ``environment()`` puts a ``sitecustomize`` in front of a
node's imports, which wraps ``worker.stages.run`` with ``obey``. Rules are read at every attempt, so they can be changed
while the fleet runs. What an attempt met is told by files too: no test sleeps for luck.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.support.wrapping import wrap_on_import

Action = Literal["hold", "fail", "die"]
When = Literal["before", "after"]

_VARIABLE = "TEST_INJECTION_DIR"
_POLL_S = 0.05


class Rule:
    """One rule as the test sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def met(self) -> list[dict[str, Any]]:
        """The attempts that met this rule, in order: job_id, attempt, run, part, pid, folder."""
        if not self.path.with_suffix(".met").exists():
            return []
        return [json.loads(line) for line in self.path.with_suffix(".met").read_text().splitlines()]

    def wait_met(self, times: int = 1, *, within_s: float = 60) -> dict[str, Any]:
        """The attempt number ``times`` that met the rule."""
        deadline = time.monotonic() + within_s
        while len(self.met) < times:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{self.path.stem} was met {len(self.met)} of {times} times in {within_s:g} s"
                )
            time.sleep(_POLL_S)
        return self.met[times - 1]

    def lift(self) -> None:
        """Take the rule away; held attempts go on."""
        self.path.unlink(missing_ok=True)


class Injection:
    """The rules of one fleet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "rules").mkdir(parents=True)
        wrap_on_import(folder / "python", "worker.stages", __name__, "wrap")

    def environment(self) -> dict[str, str]:
        """For ``Fleet.start(**...)`` of every node that should obey."""
        return {"PYTHONPATH": str(self.folder / "python"), _VARIABLE: str(self.folder / "rules")}

    def lift_all(self) -> None:
        """Take every rule away: a test that failed may have left some."""
        for path in (self.folder / "rules").glob("*.json"):
            path.unlink(missing_ok=True)

    def hold(
        self,
        stage: str,
        video_id: str,
        *,
        when: When = "before",
        deaf: bool = False,
        times: int | None = None,
    ) -> Rule:
        """Stop at the stage until the rule is lifted. ``deaf``: don't notice that the lease was lost."""
        return self._rule(stage, video_id, action="hold", when=when, deaf=deaf, times=times)

    def fail(
        self,
        stage: str,
        video_id: str,
        *,
        error: str = "ModelFailure",
        message: str = "injected",
        times: int | None = None,
        when: When = "before",
    ) -> Rule:
        """Raise: a class of ``shared.errors``, or else a builtin exception. ``times``: only the first so many."""
        return self._rule(
            stage, video_id, action="fail", when=when, error=error, message=message, times=times
        )

    def die(self, stage: str, video_id: str, *, times: int | None = None, when: When = "before") -> Rule:
        """kill -9 the process at the stage."""
        return self._rule(stage, video_id, action="die", when=when, times=times)

    def _rule(self, stage: str, video_id: str, **rule: Any) -> Rule:
        path = self.folder / "rules" / f"{stage}.{video_id}.json"
        path.with_suffix(".met").unlink(missing_ok=True)
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(rule))
        whole.rename(path)
        return Rule(path)


def wrap(stages: Any) -> None:
    """In a node: let its stages obey the rules."""
    stages.run = partial(obey, stages.run)


def obey(stage_run: Callable[[Any], Any], context: Any) -> Any:
    """In a node: run the stage under the rule for it, if there is one."""
    claimed = context.claimed
    name = context.video_name if claimed.subject.kind == "video" else ""
    path = Path(os.environ[_VARIABLE]) / f"{claimed.stage}.{name}.json"
    try:
        rule: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return stage_run(context)
    if rule["when"] == "before":
        _act(rule, path, context)
        return stage_run(context)
    outcome = stage_run(context)
    _act(rule, path, context)
    return outcome


def _act(rule: dict[str, Any], path: Path, context: Any) -> None:
    claimed = context.claimed
    earlier = path.with_suffix(".met")
    met = len(earlier.read_text().splitlines()) if earlier.exists() else 0
    if rule.get("times") is not None and met >= rule["times"]:
        return
    line = {
        "job_id": claimed.job_id,
        "attempt": claimed.attempt,
        "run": claimed.run,
        "part": claimed.part,
        "pid": os.getpid(),
        "folder": str(context.folder),
    }
    with earlier.open("a") as sink:
        sink.write(json.dumps(line) + "\n")
    if rule["action"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if rule["action"] == "fail":
        raise _error(rule["error"])(rule["message"])
    while path.exists():
        if not rule["deaf"]:
            context.report(0.1)
        time.sleep(_POLL_S)


def _error(name: str) -> type[Exception]:
    import builtins

    from shared import errors

    found: type[Exception] = getattr(errors, name, None) or getattr(builtins, name)
    return found
