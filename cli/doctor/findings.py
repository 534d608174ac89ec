"""What one check of ``scenefleet doctor`` found."""

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
    #: What to do; empty when all is well.
    advice: str = ""


#: Looks at one thing; one of our errors that it raises becomes a ``fail``.
Check = Callable[[Settings], Iterable[Finding]]
