"""What ``index`` shows while it waits: lines in a log, bars on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console

from cli.videos import progress
from shared.client import Client
from shared.contracts import VideoStatus
from shared.errors import BrokerUnavailable
from tests.unit.cli.test_index import stage, status

SKIPPED = stage("vision", "skipped", "unavailable: profile lite has no vision model")


class ScriptedClient(Client):
    """Answers with the given statuses, one after another; an error is raised."""

    def __init__(self, answers: Sequence[VideoStatus | Exception]) -> None:
        self._answers: Iterator[VideoStatus | Exception] = iter(answers)

    def status(self, video_id: str, user_id: str) -> VideoStatus:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer.model_copy(update={"video_id": video_id})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "POLL_S", 0.0)


def screen_of(*, terminal: bool, columns: int) -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    return Console(file=sink, force_terminal=terminal, width=columns, color_system=None), sink


def test_without_a_terminal_each_change_is_one_line() -> None:
    console, sink = screen_of(terminal=False, columns=120)
    running = status("processing", stage("split", "running"), SKIPPED)
    client = ScriptedClient(
        [
            status("uploaded", stage("split", "pending")),
            running,
            running,
            status("indexed", stage("split", "done")),
        ]
    )
    assert progress.watch(client, "u1", ["v1"], console)[0].state == "indexed"
    assert sink.getvalue().splitlines() == [
        "v1 split running",
        "v1 vision skipped: unavailable: profile lite has no vision model",
        "v1 split done",
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_bars_fit_the_terminal(columns: int) -> None:
    console, sink = screen_of(terminal=True, columns=columns)
    client = ScriptedClient(
        [status("partial", stage("split", "done"), SKIPPED, stage("face", "failed", "no weights"))]
    )
    progress.watch(client, "u1", ["v1"], console)
    shown = sink.getvalue()
    assert "split" in shown and "done" in shown and "no weights" in shown
    assert all(len(line.rstrip()) <= columns for line in shown.splitlines() if "\x1b" not in line)


def test_several_videos_have_a_bar_each() -> None:
    console, sink = screen_of(terminal=True, columns=100)
    client = ScriptedClient(
        [status("indexed", stage("split", "done")), status("failed", stage("split", "failed", "x"))]
    )
    ended = progress.watch(client, "u1", ["first", "second"], console)
    assert [video.state for video in ended] == ["indexed", "failed"]
    assert "first" in sink.getvalue() and "second" in sink.getvalue()


def test_an_outage_is_shown_and_waited_for() -> None:
    console, sink = screen_of(terminal=False, columns=120)
    client = ScriptedClient([BrokerUnavailable("Redis is away"), status("indexed", stage("split", "done"))])
    assert progress.watch(client, "u1", ["v1"], console)[0].state == "indexed"
    assert "Redis is away" in sink.getvalue()


def test_a_long_silence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENCE_LIMIT_S", -1.0)
    console, _ = screen_of(terminal=False, columns=120)
    with pytest.raises(BrokerUnavailable, match="away"):
        progress.watch(ScriptedClient([BrokerUnavailable("Redis is away")]), "u1", ["v1"], console)
