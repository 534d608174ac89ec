"""Findings of the checks of ``scenefleet doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """``fail``: something essential is broken; ``warn``: it works, but look at it."""

    check: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    #: What to do; empty if nothing.
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warn(check: str, detail: str, advice: str = "") -> Finding:
    return Finding(check, "warn", detail, advice)


def fail(check: str, detail: str, advice: str = "") -> Finding:
    return Finding(check, "fail", detail, advice)
