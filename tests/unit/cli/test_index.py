"""Ids, refusals and reasons of ``scenefleet index``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from cli.videos.index import Upload, make_video_id, plan_uploads, reasons
from shared.contracts import ID_PATTERN, StageStatus, VideoState, VideoStatus
from shared.errors import InvalidKey, InvalidRequest, LimitExceeded
from shared.settings import Settings


def status(
    state: VideoState, *stages: StageStatus, error_class: str | None = None, error: str | None = None
) -> VideoStatus:
    return VideoStatus(
        video_id="v1",
        user_id="u1",
        storage_key="uploads/u1/v1/a.mp4",
        state=state,
        run=1,
        published_run=None,
        duration_s=None,
        scenes=0,
        error_class=error_class,
        error=error,
        created_at=datetime.now(UTC),
        indexed_at=None,
        stages=stages,
    )


def stage(name: str, state: str, error: str | None = None) -> StageStatus:
    return StageStatus(stage=name, state=state, parts=1, parts_done=1, progress=1.0, error=error)


@given(st.text(min_size=1).filter(lambda name: "/" not in name and "\x00" not in name))
def test_every_file_name_gives_an_acceptable_id(name: str) -> None:
    assert re.fullmatch(ID_PATTERN, make_video_id(Path("folder") / name))


def test_ids_show_the_name_and_differ() -> None:
    first, second = make_video_id(Path("My film (1).mp4")), make_video_id(Path("My film (1).mp4"))
    assert first.startswith("My-film-1-")
    assert first != second


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no file"):
        plan_uploads([tmp_path / "absent.mp4"], None, Settings())
    with pytest.raises(InvalidRequest, match="a folder"):
        plan_uploads([tmp_path], None, Settings())


def test_one_id_for_several_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="2 files"):
        plan_uploads([tmp_path / "a", tmp_path / "b"], "v1", Settings())


def test_a_bad_id_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"'\.\./v1'"):
        plan_uploads([tmp_path / "a"], "../v1", Settings())


def test_a_file_over_the_limit_is_refused_by_size(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"12345")
    with pytest.raises(LimitExceeded, match="5 bytes, more than 4"):
        plan_uploads([film], None, Settings(max_video_bytes=4))


def test_an_indexed_video_has_no_reasons() -> None:
    assert reasons(Upload(path=Path("a.mp4"), video_id="v1", status=status("indexed"))) == []


def test_reasons_name_the_stage_once() -> None:
    failed = status("failed", stage("split", "failed", "no video stream"), error="no video stream")
    assert reasons(Upload(path=Path("a.mp4"), video_id="v1", status=failed)) == [
        "a.mp4: split: no video stream"
    ]


def test_a_cancelled_video_has_a_reason_too() -> None:
    assert reasons(Upload(path=Path("a.mp4"), video_id="v1", status=status("cancelled"))) == [
        "a.mp4 ended cancelled"
    ]


def test_a_refused_upload_says_why() -> None:
    upload = Upload(path=Path("a.mp4"), video_id="v1", error=InvalidKey("the key is wrong"))
    assert reasons(upload) == ["a.mp4: the key is wrong"]
