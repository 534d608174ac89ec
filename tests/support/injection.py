"""Make a stage of a named video slow, fail or die on purpose, in real nodes, without a line of it in the product.

The test side (``Injection``) writes one file per rule; ``environment()`` puts a ``sitecustomize`` in front of a
node's imports, which wraps ``worker.stages.run`` with ``obey``. Rules are read at every attempt, so they can be changed
while the fleet runs. What an attempt met is told by files too: no test sleeps for luck.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.support.wrapping import wrap_on_import

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
        path = self.path.with_suffix(".met")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_met(self, times: int = 1) -> dict[str, Any]:
        """The attempt number ``times`` that met the rule."""
        deadline = time.monotonic() + 60
        while len(self.met) < times:
            said = f"{self.path.stem} was met {len(self.met)} of {times} times in 60 s"
            assert time.monotonic() < deadline, said
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
        """Stop at the stage until the rule is lifted.

        Args:
            when: before or after the stage's work.
            deaf: don't notice that the lease was lost.
            times: only the first so many attempts.
        """
        return self._rule(stage, video_id, action="hold", when=when, deaf=deaf, times=times)

    def fail(
        self, stage: str, video_id: str, *, error: str = "ModelFailure", message: str = "injected"
    ) -> Rule:
        """Raise: a class of ``shared.errors``, or else a builtin exception."""
        return self._rule(stage, video_id, action="fail", error=error, message=message)

    def die(self, stage: str, video_id: str, *, keyframe: tuple[int, int] | None = None) -> Rule:
        """kill -9 the process at the stage, or when it looks at a keyframe: number of its scene, ordinal in it."""
        return self._rule(stage, video_id, action="die", keyframe=keyframe)

    def _rule(self, stage: str, video_id: str, **rule: Any) -> Rule:
        path = self.folder / "rules" / f"{stage}.{video_id}.json"
        path.with_suffix(".met").unlink(missing_ok=True)
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps({"when": "before", "times": None, "keyframe": None, **rule}))
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
    outcome = stage_run(context)
    if rule["when"] == "after":
        _act(rule, path, context)
    return outcome


def _act(rule: dict[str, Any], path: Path, context: Any) -> None:
    claimed = context.claimed
    if rule["keyframe"] is not None and not _looks_at(context, *rule["keyframe"]):
        return
    met = Rule(path).met
    if rule["times"] is not None and len(met) >= rule["times"]:
        return
    attempt = {name: getattr(claimed, name) for name in ("job_id", "attempt", "run", "part")}
    with path.with_suffix(".met").open("a") as sink:
        sink.write(json.dumps({**attempt, "pid": os.getpid(), "folder": str(context.folder)}) + "\n")
    if rule["action"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if rule["action"] == "fail":
        raise _error(rule["error"])(rule["message"])
    while path.exists():
        if not rule["deaf"]:
            context.report(0.1)
        time.sleep(_POLL_S)


def _looks_at(context: Any, idx: int, ordinal: int) -> bool:
    from db.engine import reading

    with reading() as session:
        scenes = context.scenes(session)
    return any(
        shown["ordinal"] == ordinal for scene in scenes if scene.idx == idx for shown in scene.keyframes
    )


def _error(name: str) -> type[Exception]:
    from shared import errors

    found: type[Exception] = getattr(errors, name, None) or getattr(builtins, name)
    return found
