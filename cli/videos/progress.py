"""Live progress of videos: bars by stage for one, a bar each for several, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from cli import screen
from shared.client import Client
from shared.contracts import StageStatus, VideoStatus
from shared.errors import Outage

POLL_S = 0.4
#: Longest time to ask a fleet that does not answer.
SILENCE_LIMIT_S = 300.0
ENDED = ("indexed", "partial", "failed", "cancelled", "deleted")
STAGE_ENDED = ("done", "reused", "failed", "cancelled", "skipped")


def watch(client: Client, user: str, video_ids: Sequence[str], console: Console) -> list[VideoStatus]:
    """Show the status of videos until every one has ended; returns their last status.

    Raises:
        Outage: the fleet gave no answer for ``SILENCE_LIMIT_S``.
    """
    view: _Lines | _StageBars | _VideoBars
    if not console.is_terminal:
        view = _Lines(console)
    else:
        view = _StageBars(console) if len(video_ids) == 1 else _VideoBars(console, video_ids)
    statuses: dict[str, VideoStatus] = {}
    going = list(video_ids)
    answered_s = time.monotonic()
    with view.display:
        while True:
            for video_id in going:
                try:
                    statuses[video_id] = client.status(video_id, user)
                except Outage as error:
                    if time.monotonic() - answered_s > SILENCE_LIMIT_S:
                        raise
                    view.warn(str(error))
                else:
                    answered_s = time.monotonic()
                    view.show(statuses[video_id])
            going = [name for name in going if name not in statuses or statuses[name].state not in ENDED]
            if not going:
                return [statuses[video_id] for video_id in video_ids]
            time.sleep(POLL_S)


class _Lines:
    """One line for every change, for logs."""

    def __init__(self, console: Console) -> None:
        self.display = nullcontext()
        self._console = console
        self._told: dict[tuple[str, str], str] = {}

    def show(self, status: VideoStatus) -> None:
        for stage in status.stages:
            if stage.state in ("pending", "queued"):
                continue
            detail = f": {stage.error}" if stage.error else ""
            self._tell((status.video_id, stage.stage), f"{stage.stage} {stage.state}{detail}")

    def warn(self, message: str) -> None:
        self._tell(("", "warning"), message)

    def _tell(self, key: tuple[str, str], line: str) -> None:
        if self._told.get(key) != line:
            self._told[key] = line
            self._console.print(f"{key[0]} {escape(line)}".strip(), soft_wrap=True)


class _Bars:
    """A block of bars; text behind a bar is cut before the bar is."""

    def __init__(self, console: Console) -> None:
        fixed, cut = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
        self.display = Progress(
            TextColumn("{task.description}", table_column=fixed),
            screen.make_bar(console),
            TextColumn("{task.fields[share]:>4}", table_column=Column(min_width=4)),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TextColumn("{task.fields[detail]}", table_column=cut),
            console=console,
            refresh_per_second=8,
        )
        self._tasks: dict[str, TaskID] = {}

    def _add(self, name: str, *, start: bool, detail: str = "") -> None:
        self._tasks[name] = self.display.add_task(name, total=1.0, start=start, detail=detail, share="")

    def _update(self, name: str, completed: float, detail: str, *, skipped: bool = False) -> None:
        share = "" if skipped else f"{completed:.0%}"
        self.display.update(self._tasks[name], completed=completed, detail=detail, share=share)

    def _stop(self, name: str) -> None:
        # Once: a later stop would count the time since.
        if self.display.tasks[self._tasks[name]].stop_time is None:
            self.display.stop_task(self._tasks[name])

    def warn(self, message: str) -> None:
        if going := [task for task in self.display.tasks if not task.finished]:
            self.display.update(going[0].id, detail=f"[yellow]{escape(message)}[/yellow]")


class _StageBars(_Bars):
    """One video: a bar for each stage."""

    def show(self, status: VideoStatus) -> None:
        for stage in status.stages:
            if stage.stage not in self._tasks:
                self._add(stage.stage, start=False)
            if stage.state in ("running", *STAGE_ENDED):
                self.display.start_task(self._tasks[stage.stage])
            self._update(stage.stage, _completed(stage), _detail(stage), skipped=stage.state == "skipped")
            if stage.state in STAGE_ENDED:
                self._stop(stage.stage)


class _VideoBars(_Bars):
    """Several videos: a bar for each, and what is being done."""

    def __init__(self, console: Console, video_ids: Sequence[str]) -> None:
        super().__init__(console)
        for name in video_ids:
            self._add(name, start=True, detail="waiting")

    def show(self, status: VideoStatus) -> None:
        counted = [stage for stage in status.stages if stage.state != "skipped"]
        share = sum(_completed(stage) for stage in counted) / len(counted) if counted else 0.0
        running = [stage.stage for stage in status.stages if stage.state == "running"]
        if status.state in ENDED:
            completed = 1.0 if status.state == "indexed" else share
            self._update(status.video_id, completed, screen.styled(status.state))
            self._stop(status.video_id)
        else:
            self._update(status.video_id, min(share, 0.99), ", ".join(running) or "waiting")


def _completed(stage: StageStatus) -> float:
    if stage.state in ("done", "reused"):
        return 1.0
    return 0.0 if stage.state == "skipped" else stage.progress


def _detail(stage: StageStatus) -> str:
    if stage.state == "skipped":
        reason = (stage.error or "not needed").removeprefix("unavailable: ")
        return f"[dim]skipped: {escape(reason)}[/dim]"
    if stage.state == "failed":
        return f"[red]{escape(stage.error or 'failed')}[/red]"
    parts = f" {stage.parts_done}/{stage.parts}" if stage.parts > 1 else ""
    again = f", attempt {stage.attempts}" if stage.attempts > 1 and stage.state == "running" else ""
    gaps = f", {stage.not_looked_at} not looked at" if stage.not_looked_at else ""
    return f"{screen.styled(stage.state)}{parts}{again}{gaps}"
