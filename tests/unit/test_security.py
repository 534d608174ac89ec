"""Every guarantee in SECURITY.md names existing tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
GUARANTEES = TEXT.partition("## Guarantees")[2].partition("\n## ")[0]


def rows() -> list[tuple[str, str]]:
    """(guarantee, its tests) of every row that is not a heading."""
    return re.findall(r"^\| (?!guarantee |\*\*|-)(.+?) \| (.*?) \|$", GUARANTEES, re.MULTILINE)


def test_there_are_guarantees_and_each_has_a_test() -> None:
    assert len(rows()) > 25
    for guarantee, tests in rows():
        assert re.findall(r"`(tests/[^`]+)`", tests), guarantee


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[^`]+)`", GUARANTEES))))
def test_every_named_test_is_there(named: str) -> None:
    file, _, name = named.partition("::")
    text = (ROOT / file).read_text()
    assert not name or (re.search(rf"^def {name}\(", text, re.MULTILINE) and name.startswith("test_")), named


def test_it_says_how_to_report() -> None:
    assert "## Report a vulnerability" in TEXT and "private advisory" in TEXT
