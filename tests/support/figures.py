"""Figures of quality that tests measure (error rates, recall, peaks of memory), for the end of the run's log.

pytest shows the output of a test that passed to no one. A figure goes with the test's report instead, also from the
processes of pytest-xdist to the one that prints, and stands under "figures" after the last test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from _pytest.terminal import TerminalReporter

#: Record a figure of the running test: what it is, and its value, already written for people.
RecordFigure = Callable[[str, object], None]
#: The key under which reports carry figures.
PROPERTY = "figure"


@pytest.fixture
def record_figure(record_property: Callable[[str, object], None]) -> RecordFigure:
    """Note a figure, to be printed when all tests have run: ``record_figure("word error rate", f"{rate:.3f}")``."""

    def record(name: str, value: object) -> None:
        record_property(PROPERTY, f"{name}: {value}")

    return record


def figures_of(reports: Iterable[object]) -> list[tuple[str, str]]:
    """``(test, figure)`` of every test that ran to its end, right or wrong, in the order of their names."""
    found = []
    for report in reports:
        if isinstance(report, pytest.TestReport) and report.when == "call":
            found += [(report.nodeid, str(value)) for key, value in report.user_properties if key == PROPERTY]
    return sorted(found, key=lambda pair: pair[0])


def write_summary(reporter: TerminalReporter) -> None:
    """Print the figures of a finished run."""
    found = figures_of(report for reports in reporter.stats.values() for report in reports)
    if found:
        reporter.section("figures")
        for test, figure in found:
            reporter.write_line(f"{test}  {figure}")
