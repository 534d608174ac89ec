"""Two media processes share a long video, and its scenes are those of one pass, also when one of them is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeFleet
from tests.support.clips import Encoding, Sound, make_clip
from tests.support.fleet import Fleet, eventually
from tests.unit.media.test_spans import AT_SEAMS, ENCODING, joined_at
from worker.media.limits import MediaLimits
from worker.media.split import split

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
    one = split(clip, tmp_path / "one", limits=MediaLimits(media_threads=1))
    found = fleet.rows("SELECT * FROM scenes ORDER BY idx")
    assert [(row["start_s"], row["end_s"], row["kind"]) for row in found] == [
        (scene.start_s, scene.end_s, scene.kind) for scene in one.scenes
    ]
    pictures = fleet.objects()
    for row, scene in zip(found, one.scenes, strict=True):
        assert [pictures[k["key"]] for k in row["keyframes"]] == [
            k.path.read_bytes() for k in scene.keyframes
        ]
