"""Figures with their targets: what ``bench.online`` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Figure(NamedTuple):
    """One result."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it is within its targets; without one, it always is."""
        at_least = -math.inf if self.least is None else self.least
        at_most = math.inf if self.most is None else self.most
        return at_least <= self.value <= at_most

    @property
    def target(self) -> str:
        parts = [("at least", self.least), ("at most", self.most)]
        return ", ".join(f"{said} {limit:g}" for said, limit in parts if limit is not None)


def show(figures: Sequence[Figure], console: Console) -> None:
    table = Table(title="Online requests")
    for column in ("figure", "value", "target", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for figure in figures:
        said = "" if not figure.target else "met" if figure.is_met else "MISS"
        table.add_row(figure.name, f"{figure.value:.2f}", figure.target, said)
    console.print(table)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values is; NaN of none, which meets no target."""
    found = sorted(values)
    return found[min(len(found) - 1, int(share * len(found)))] if found else math.nan
