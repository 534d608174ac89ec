"""What ``index`` shows while it waits: lines in a log, bars on a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from cli.videos import progress
from shared.client import Client
from shared.contracts import VideoStatus
from shared.errors import BrokerUnavailable
from tests.unit.cli.test_index import stage, status

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
