"""Live progress of videos: bars by stage for one, a bar each for several, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

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


class Watcher:
    """Asks for the status of videos and shows it until each has ended."""

    def __init__(self, client: Client, user: str, console: Console) -> None:
        self._client = client
        self._user = user
        self._console = console
        self._answered_at = time.monotonic()

    def watch(self, video_ids: Sequence[str]) -> list[VideoStatus]:
        """Block until every video has ended; returns their last status.

        Raises:
            Outage: the fleet gave no answer for ``SILENCE_LIMIT_S``.
        """
        statuses: dict[str, VideoStatus] = {}
        with _make_view(self._console, video_ids) as view:
            while True:
                for video_id in video_ids:
                    known = statuses.get(video_id)
                    if known is not None and known.state in ENDED:
                        continue
                    fresh = self._ask(video_id, view)
                    if fresh is not None:
                        statuses[video_id] = fresh
                        view.show(fresh)
                if len(statuses) == len(video_ids) and all(s.state in ENDED for s in statuses.values()):
                    return [statuses[video_id] for video_id in video_ids]
                time.sleep(POLL_S)

    def _ask(self, video_id: str, view: _View) -> VideoStatus | None:
        try:
            status = self._client.status(video_id, self._user)
        except Outage as error:
            if time.monotonic() - self._answered_at > SILENCE_LIMIT_S:
                raise
            view.warn(str(error))
            return None
        self._answered_at = time.monotonic()
        return status


class _View:
    """Shows statuses while used as a context."""

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, status: VideoStatus) -> None:
        raise NotImplementedError

    def warn(self, message: str) -> None:
        raise NotImplementedError


def _make_view(console: Console, video_ids: Sequence[str]) -> _View:
    if not console.is_terminal:
        return _Lines(console)
    return _StageBars(console) if len(video_ids) == 1 else _VideoBars(console, video_ids)


class _Lines(_View):
    """One line for every change, for logs."""

    def __init__(self, console: Console) -> None:
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


class _Bars(_View):
    """A block of bars; text behind a bar is cut before the bar is."""

    def __init__(self, console: Console) -> None:
        fixed, cut = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            TextColumn("{task.description}", table_column=fixed),
            screen.make_bar(console),
            TextColumn("{task.fields[share]:>4}", table_column=Column(min_width=4)),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TextColumn("{task.fields[detail]}", table_column=cut),
            console=console,
            refresh_per_second=8,
        )

    def _add(self, description: str, *, start: bool, detail: str = "") -> TaskID:
        return self._progress.add_task(description, total=1.0, start=start, detail=detail, share="")

    def _update(self, task: TaskID, completed: float, detail: str, *, skipped: bool = False) -> None:
        share = "" if skipped else f"{completed:.0%}"
        self._progress.update(task, completed=completed, detail=detail, share=share)

    def __enter__(self) -> _View:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def warn(self, message: str) -> None:
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, detail=f"[yellow]{escape(message)}[/yellow]")
                return


class _StageBars(_Bars):
    """One video: a bar for each stage."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._tasks: dict[str, TaskID] = {}

    def show(self, status: VideoStatus) -> None:
        for stage in status.stages:
            task = self._tasks.get(stage.stage)
            if task is None:
                task = self._add(stage.stage, start=False)
                self._tasks[stage.stage] = task
            if stage.state in ("running", *STAGE_ENDED):
                self._start(task)
            skipped = stage.state == "skipped"
            self._update(task, _completed(stage), _detail(stage), skipped=skipped)
            if stage.state in STAGE_ENDED:
                self._stop(task)

    def _start(self, task: TaskID) -> None:
        if self._progress.tasks[task].start_time is None:
            self._progress.start_task(task)

    def _stop(self, task: TaskID) -> None:
        if self._progress.tasks[task].stop_time is None:
            self._progress.stop_task(task)


class _VideoBars(_Bars):
    """Several videos: a bar for each, and what is being done."""

    def __init__(self, console: Console, video_ids: Sequence[str]) -> None:
        super().__init__(console)
        self._tasks = {name: self._add(name, start=True, detail="waiting") for name in video_ids}

    def show(self, status: VideoStatus) -> None:
        counted = [stage for stage in status.stages if stage.state != "skipped"]
        share = sum(_completed(stage) for stage in counted) / len(counted) if counted else 0.0
        running = [stage.stage for stage in status.stages if stage.state == "running"]
        task = self._tasks[status.video_id]
        if status.state in ENDED:
            self._update(task, 1.0 if status.state == "indexed" else share, screen.styled(status.state))
            self._progress.stop_task(task)
        else:
            self._update(task, min(share, 0.99), ", ".join(running) or "waiting")


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
    return f"{screen.styled(stage.state)}{parts}{again}"
