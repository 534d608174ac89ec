"""``scenefleet index``: ids, refusals, what it shows while it waits (lines in a log, bars on a terminal), and reasons."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from cli.videos import progress
from cli.videos.index import Upload, make_video_id, plan_uploads, reasons
from shared.client import Client
from shared.contracts import ID_PATTERN, StageStatus, VideoState, VideoStatus
from shared.errors import BrokerUnavailable, InvalidKey, InvalidRequest, LimitExceeded
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


# --- while it waits

INDEXED = status("indexed", stage("split", "done"))
SKIPPED = stage("vision", "skipped", "unavailable: profile lite has no vision model")


class ScriptedClient(Client):
    """Answers with the given statuses, one after another; an error is raised."""

    def __init__(self, *answers: VideoStatus | Exception) -> None:
        self._answers = iter(answers)

    def status(self, video_id: str, user_id: str) -> VideoStatus:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer.model_copy(update={"video_id": video_id})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "POLL_S", 0.0)


def shown(
    *answers: VideoStatus | Exception,
    video_ids: Sequence[str] = ("v1",),
    columns: int = 120,
    terminal: bool = False,
) -> tuple[list[str], list[str]]:
    """The states in which the videos ended, and the lines written meanwhile."""
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=terminal, width=columns, color_system=None)
    ended = progress.watch(ScriptedClient(*answers), "u1", video_ids, console)
    return [video.state for video in ended], sink.getvalue().splitlines()


def test_without_a_terminal_each_change_is_one_line() -> None:
    running = status("processing", stage("split", "running"), SKIPPED)
    uploaded = status("uploaded", stage("split", "pending"))
    assert shown(uploaded, running, running, INDEXED) == (
        ["indexed"],
        [
            "v1 split running",
            "v1 vision skipped: unavailable: profile lite has no vision model",
            "v1 split done",
        ],
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_bars_fit_the_terminal(columns: int) -> None:
    failed = status("partial", stage("split", "done"), SKIPPED, stage("face", "failed", "no weights"))
    _, lines = shown(failed, columns=columns, terminal=True)
    assert all(word in "\n".join(lines) for word in ("split", "done", "no weights"))
    assert all(len(line.rstrip()) <= columns for line in lines if "\x1b" not in line)


def test_several_videos_have_a_bar_each() -> None:
    failed = status("failed", stage("split", "failed", "x"))
    states, lines = shown(INDEXED, failed, video_ids=("first", "second"), terminal=True)
    assert states == ["indexed", "failed"]
    assert "first" in "\n".join(lines) and "second" in "\n".join(lines)


def test_an_outage_is_shown_and_waited_for() -> None:
    states, lines = shown(BrokerUnavailable("Redis is away"), INDEXED)
    assert states == ["indexed"] and "Redis is away" in lines


def test_a_long_silence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENCE_LIMIT_S", -1.0)
    with pytest.raises(BrokerUnavailable, match="away"):
        shown(BrokerUnavailable("Redis is away"))
