"""Every promise of SECURITY.md names tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
PROMISED = TEXT.partition("## What is promised")[2].partition("\n## ")[0]


def rows() -> list[tuple[str, str]]:
    """(promise, its tests) of every row that is no heading."""
    found = re.findall(r"^\| (?!promise |\*\*|-)(.+?) \| (.*?) \|$", PROMISED, re.MULTILINE)
    return [(promise, tests) for promise, tests in found]


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def test_there_are_promises_and_each_has_a_test() -> None:
    assert len(rows()) > 25
    for promise, tests in rows():
        assert re.findall(r"`(tests/[^`]+)`", tests), promise


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[^`]+)`", PROMISED))))
def test_every_named_test_is_there(named: str) -> None:
    file, _, name = named.partition("::")
    path = ROOT / file
    assert path.is_file(), file
    assert not name or (name.startswith("test_") and name in functions_in(path)), named


def test_it_says_how_to_report() -> None:
    assert "## Report a hole" in TEXT and "Report a vulnerability" in TEXT
