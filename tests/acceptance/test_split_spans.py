"""Two media processes share a long video, and its scenes are those of one pass, also when one of them is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import MakeFleet
from tests.support.clips import Encoding, Sound, make_clip
from tests.support.fleet import Fleet, eventually
from tests.unit.media.test_spans import AT_SEAMS, ENCODING, joined_at

pytestmark = pytest.mark.timeout(600)

_PARTS = """
    SELECT part, state, attempt, deaths, error, lease_owner, payload ->> 'does' AS does FROM jobs
    WHERE stage = 'split' ORDER BY part
"""


@pytest.fixture
def fleet(make_fleet: MakeFleet) -> Fleet:
    return make_fleet(SPLIT_SPAN_S="9", LEASE_S="4")


def test_a_process_dies_while_two_share_a_video(fleet: Fleet, tmp_path: Path) -> None:
    encoding = Encoding(size=(640, 360), fps=ENCODING.fps, options=ENCODING.options)
    clip = make_clip(tmp_path / "a.mp4", joined_at(AT_SEAMS[8]), encoding, Sound()).path
    fleet.start("search")  # it takes requests
    fleet.start("media", concurrency=2)
    fleet.wait_ready()
    fleet.process(clip, "v1")

    def owners() -> set[str]:
        rows = fleet.rows(_PARTS)
        return {row["lease_owner"] for row in rows if row["state"] == "running" and row["does"] == "span"}

    with fleet.jobs_shown():
        eventually(lambda: len(owners()) == 2, within_s=60, what="two spans are in work", every_s=0.02)
        assert fleet.kill_child("media")
        eventually(
            lambda: len(rows := fleet.rows(_PARTS)) == 6 and rows[-1]["state"] == "done",
            within_s=120,
            what="the spans are joined",
        )
    rows = fleet.rows(_PARTS)
    assert [row["state"] for row in rows] == ["done"] * 6
    assert sum(row["deaths"] for row in rows) <= 1 < max(row["attempt"] for row in rows)
    fleet.stop("media")
    fleet.start("media", SPLIT_SPAN_S="0")
    fleet.process(clip, "v2")
    eventually(lambda: scenes(fleet, "v2"), within_s=120, what="the video is split in one pass")
    assert len(fleet.of_video("jobs", "v2", "stage = 'split'")) == 1
    assert scenes(fleet, "v1") == scenes(fleet, "v2") and len(scenes(fleet, "v1")) == 5


def scenes(fleet: Fleet, video_id: str) -> list[Any]:
    """The scenes of a split that has ended, with the bytes of their pictures."""
    if not fleet.of_video("jobs", video_id, "stage = 'vision'"):
        return []
    pictures = fleet.objects()
    return [
        (
            row["start_s"],
            row["end_s"],
            row["kind"],
            [(k["ts_s"], pictures[k["key"]]) for k in row["keyframes"]],
        )
        for row in sorted(fleet.of_video("scenes", video_id), key=lambda row: row["idx"])
    ]
