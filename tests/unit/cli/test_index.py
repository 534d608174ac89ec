"""Ids, refusals and reasons of ``scenefleet index``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cli.videos.index import Upload, make_video_id, plan_uploads, reasons
from shared.contracts import ID_PATTERN, StageStatus, VideoState, VideoStatus
from shared.errors import InvalidKey, InvalidRequest, LimitExceeded
from shared.settings import Settings


def status(state: VideoState, *stages: StageStatus, error: str | None = None) -> VideoStatus:
    nothing = dict.fromkeys(("published_run", "duration_s", "error_class", "indexed_at"))
    return VideoStatus(
        video_id="v1", user_id="u1", storage_key="uploads/u1/v1/a.mp4", state=state, run=1, scenes=0,
        error=error, created_at=datetime.now(UTC), stages=stages, **nothing,
    )  # fmt: skip


def stage(name: str, state: str, error: str | None = None) -> StageStatus:
    return StageStatus(stage=name, state=state, parts=1, parts_done=1, progress=1.0, error=error)


@given(st.text(min_size=1).filter(lambda name: "/" not in name and "\x00" not in name))
def test_every_file_name_gives_an_acceptable_id(name: str) -> None:
    assert re.fullmatch(ID_PATTERN, make_video_id(Path("folder") / name))


def test_ids_show_the_name_and_differ() -> None:
    first, second = make_video_id(Path("My film (1).mp4")), make_video_id(Path("My film (1).mp4"))
    assert first.startswith("My-film-1-")
    assert first != second


@pytest.mark.parametrize(
    ("names", "video_id", "said"),
    [
        (["absent.mp4"], None, "no file"),
        (["."], None, "a folder"),
        (["a", "b"], "v1", "2 files"),
        (["a"], "../v1", "'../v1'"),
    ],
)
def test_what_cannot_be_indexed_is_refused_before_anything_is_sent(
    names: list[str], video_id: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        plan_uploads([tmp_path / name for name in names], video_id, Settings())


def test_a_file_over_the_limit_is_refused_by_size(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"12345")
    with pytest.raises(LimitExceeded, match="5 bytes, more than 4"):
        plan_uploads([film], None, Settings(max_video_bytes=4))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"status": status("indexed")}, []),
        # The stage is named once.
        (
            {"status": status("failed", stage("split", "failed", "no video"), error="no video")},
            ["a.mp4: split: no video"],
        ),
        ({"status": status("cancelled")}, ["a.mp4 ended cancelled"]),
        ({"error": InvalidKey("the key is wrong")}, ["a.mp4: the key is wrong"]),
    ],
)
def test_a_video_that_did_not_end_well_says_why(facts: dict[str, Any], said: list[str]) -> None:
    assert reasons(Upload(path=Path("a.mp4"), video_id="v1", **facts)) == said
