"""Which nodes run here, and what they say of themselves."""

from __future__ import annotations

import pytest

from cli import nodes
from shared.errors import InvalidRequest
from shared.routing import NODES


def test_families_without_a_model_are_left_out() -> None:
    plan = nodes.parse_plan("media,asr:3,vision,search", {"asr", "text"})
    assert plan == [("media", 1), ("asr", 3), ("search", 1)]


def test_spaces_and_empty_parts_are_ignored() -> None:
    assert nodes.parse_plan(" media , ,search:2,", set()) == [("media", 1), ("search", 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("media,ocr", "'ocr'"),
        ("asr,asr", "names asr twice"),
        ("asr:0", "'asr:0'"),
        ("asr:many", "'asr:many'"),
        ("asr:-1", "'asr:-1'"),
        ("asr:257", "'asr:257'"),
        ("vision", "leaves no node"),
        ("", "leaves no node"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match="SCENEFLEET_NODES") as error:
        nodes.parse_plan(text, {"asr"})
    assert said in str(error.value)


def test_usable_families_keep_the_order_of_the_fleet() -> None:
    assert nodes.usable_families({"face", "asr"}) == ["media", "asr", "face", "search"]
    assert nodes.usable_families({"asr", "text", "vision", "face"}) == list(NODES)
