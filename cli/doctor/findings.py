"""Findings of the checks of ``scenefleet doctor``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from shared.settings import Settings

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``fail``: something essential is broken; ``warn``: it works, but look at it."""

    check: str
    state: State
    detail: str
    #: What to do; empty if nothing.
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, state="ok", detail=detail)


def warn(check: str, detail: str, advice: str = "") -> Finding:
    """It works, but should be looked at."""
    return Finding(check=check, state="warn", detail=detail, advice=advice)


def fail(check: str, detail: str, advice: str = "") -> Finding:
    """Something essential is broken."""
    return Finding(check=check, state="fail", detail=detail, advice=advice)


#: Runs one check; an error of scenefleet's that it raises becomes a ``fail``.
Check = Callable[[Settings], Iterable[Finding]]
