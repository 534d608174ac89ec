"""How times and answers are written."""

from __future__ import annotations

import json

import pytest

from cli import screen
from shared.contracts import Coverage, SearchAnswer


@pytest.mark.parametrize(
    ("time_s", "shown"),
    [
        (0, "0:00.0"),
        (8.6, "0:08.6"),
        (59.94, "0:59.9"),
        (59.97, "1:00.0"),
        (3599.99, "1:00:00.0"),
        (7265.25, "2:01:05.2"),
    ],
)
def test_clock(time_s: float, shown: str) -> None:
    assert screen.clock(time_s) == shown


def test_json_is_one_document_with_the_contract_s_fields(capsys: pytest.CaptureFixture[str]) -> None:
    coverage = Coverage(scenes=1, with_words=1, with_vectors=None, videos_in_work=0)
    answer = SearchAnswer(query="naïve", mode="keyword", model=None, hits=(), coverage=coverage)
    screen.write_json({"answers": [answer]})
    written = capsys.readouterr().out
    assert "naïve" in written
    assert json.loads(written)["answers"][0] == answer.model_dump(mode="json")
