"""Commands about videos: upload-url, status, failures, scenes, retry, rerun, cancel, delete."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast, get_args

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli import screen
from cli.connection import connect, read_pages
from shared.client import Client
from shared.contracts import FailureView, ListedState, Receipt, ScenePage, SceneView, VideoStatus
from shared.errors import InvalidRequest


def show_status(video: str, *, as_json: bool, user: str | None) -> None:
    """Show where one video stands."""
    client, owner = connect(user)
    status = client.status(video, owner)
    screen.answer(status, lambda: describe(status), as_json=as_json)


def describe(status: VideoStatus) -> Group:
    """A video's state, line by line, and its stages as a table."""
    facts = [screen.styled(status.state), f"run {status.run}"]
    if status.published_run not in (None, status.run):
        facts.append(f"run {status.published_run} is searchable")
    if status.duration_s is not None:
        facts.append(f"{screen.clock(status.duration_s)} long")
    if status.scenes:
        facts.append(f"{status.scenes} scenes")
    lines = [Text.from_markup(f"[bold]{status.video_id}[/bold]  " + ", ".join(facts))]
    if status.error:
        lines.append(Text.from_markup(f"[red]{status.error_class}[/red]: {escape(status.error)}"))
    table = screen.make_table("stage", "state", ">parts", ">progress", "~")
    for stage in status.stages:
        parts = f"{stage.parts_done}/{stage.parts}" if stage.parts else ""
        progress = f"{stage.progress:.0%}" if stage.parts else ""
        why = stage.error or ""
        if stage.not_looked_at and stage.state != "failed":
            why = f"{stage.not_looked_at} not looked at: {why}"
        table.add_row(stage.stage, screen.styled(stage.state), parts, progress, escape(why))
    return Group(*lines, table)


def list_all(
    client: Client, user: str, *, states: Sequence[str] = (), limit: int | None = None
) -> list[VideoStatus]:
    """The user's videos, newest first, ``limit`` at most."""
    known = get_args(ListedState)
    for state in states:
        if state not in known:
            raise InvalidRequest(f"--state {state} does not exist: use {', '.join(known)}")
    ask = partial(client.videos, user, states=cast("Sequence[ListedState]", states))
    return read_pages(ask, "videos", page_size=100, limit=limit)


def show_list(*, states: Sequence[str], limit: int, as_json: bool, user: str | None) -> None:
    """List the user's videos."""
    client, owner = connect(user)
    found = list_all(client, owner, states=states, limit=limit)
    which = f" {' or '.join(states)}" if states else ""
    nothing = f"user {owner} has no{which} videos yet: `scenefleet index FILE`"
    screen.answer({"videos": found}, lambda: _video_table(found) if found else nothing, as_json=as_json)


def _video_table(videos: Sequence[VideoStatus]) -> Table:
    table = screen.make_table("~video", "state", ">length", ">scenes", "added (UTC)", "~")
    for status in videos:
        length = screen.clock(status.duration_s) if status.duration_s is not None else ""
        facts = (length, str(status.scenes or ""), screen.minute(status.created_at))
        detail = escape(status.error or _running(status))
        table.add_row(status.video_id, screen.styled(status.state), *facts, detail)
    return table


def _running(status: VideoStatus) -> str:
    if status.state != "processing":
        return ""
    return ", ".join(f"{s.stage} {s.progress:.0%}" for s in status.stages if s.state == "running")


def show_failures(video: str | None, *, limit: int, as_json: bool, user: str | None) -> None:
    """List the jobs that failed for good in the user's videos, newest first."""
    client, owner = connect(user)
    found = read_pages(
        partial(client.failures, owner, video_id=video), "failures", page_size=1000, limit=limit
    )
    nothing = f"nothing has failed in {video or f'the videos of user {owner}'}"
    screen.answer({"failures": found}, lambda: _failure_table(found) if found else nothing, as_json=as_json)


def _failure_table(failures: Sequence[FailureView]) -> Table:
    table = screen.make_table("~video", "stage", ">part", ">attempts", "when (UTC)", "~")
    for failure in failures:
        when = screen.minute(failure.failed_at) if failure.failed_at else ""
        reason = f"[red]{failure.error_class or 'failed'}[/red] {escape(failure.error or '')}".rstrip()
        numbers = (str(failure.part), str(failure.attempts))
        table.add_row(failure.video_id, failure.stage, *numbers, when, reason)
    return table


def show_upload(video: str, filename: str, *, expires_s: int, as_json: bool, user: str | None) -> None:
    """Show where to store a file that becomes a video."""
    client, owner = connect(user)
    slot = client.upload(video, owner, filename, expires_s=expires_s)
    if as_json:
        screen.write_json(slot)
        return
    console = screen.make_console()
    console.print(slot.storage_key, soft_wrap=True)
    if slot.upload_url is not None:
        console.print(slot.upload_url, soft_wrap=True)


def all_scenes(client: Client, video: str, user: str) -> ScenePage:
    """Every published scene of a video."""
    found: list[SceneView] = []
    after: int | None = -1
    while after is not None:
        page = client.scenes(video, user, after_idx=after, limit=200)
        found += page.scenes
        after = page.next_after_idx
    return ScenePage(video_id=video, scenes=tuple(found), next_after_idx=None)


def show_scenes(video: str, *, as_json: bool, user: str | None) -> None:
    """List a video's scenes."""
    client, owner = connect(user)
    page = all_scenes(client, video, owner)

    def render() -> RenderableType:
        if not page.scenes:
            state = client.status(video, owner).state
            return f"{video} is {state} and has no published scenes: `scenefleet status {video}`"
        return scene_table(page.scenes)

    screen.answer(page, render, as_json=as_json)


def scene_table(scenes: Sequence[SceneView]) -> Table:
    """Scenes as a table: number, time, words, text on screen where there is any, faces."""
    shows_text = any(scene.screen_text for scene in scenes)
    table = screen.make_table(">#", "time", "~words", *(["~on screen"] if shows_text else []), ">faces")
    for scene in scenes:
        time = f"{screen.clock(scene.start_s)} - {screen.clock(scene.end_s)}"
        words = [escape(scene.transcript) or "[dim]-[/dim]"]
        if shows_text:
            words.append(escape(scene.screen_text))
        table.add_row(str(scene.idx), time, *words, str(scene.faces or ""))
    return table


def change(action: Literal["retry", "cancel"], video: str, *, as_json: bool, user: str | None) -> None:
    """Retry or cancel, and show the video's state."""
    client, owner = connect(user)
    _show_receipt((client.retry if action == "retry" else client.cancel)(video, owner), as_json=as_json)


def rerun(
    video: str | None, stages: Sequence[str], *, missing: bool, as_json: bool, user: str | None
) -> None:
    """Process a video again, or make what all of the user's videos lack."""
    client, owner = connect(user)
    if video is not None:
        receipt = client.rerun(video, owner, stages, missing=missing)
        if missing and not receipt.accepted and not as_json:
            screen.make_console().print(f"[bold]{video}[/bold]  lacks nothing that can be made now")
            return
        _show_receipt(receipt, as_json=as_json)
        return
    if not missing or stages:
        raise InvalidRequest("VIDEO is missing: name a video, or --missing alone for all of yours")
    published = [video.video_id for video in list_all(client, owner) if video.published_run is not None]
    receipts = [client.rerun(name, owner, missing=True) for name in reversed(published)]
    if as_json:
        screen.write_json({"receipts": receipts})
        return
    for receipt in receipts:
        if receipt.accepted:
            _show_receipt(receipt, as_json=False)
    lacking = sum(receipt.accepted for receipt in receipts)
    screen.make_console().print(f"{lacking} of {len(receipts)} videos lacked something that can be made now")


def delete(video: str, *, sure: bool, as_json: bool, user: str | None) -> None:
    """Delete, after asking."""
    client, owner = connect(user)
    if not sure:
        status = client.status(video, owner)
        screen.ask(f"Delete {video} ({status.state}, {status.scenes} scenes) and everything made from it?")
    _show_receipt(client.delete(video, owner), as_json=as_json)


def _show_receipt(receipt: Receipt, *, as_json: bool) -> None:
    line = f"[bold]{receipt.video_id}[/bold]  {screen.styled(receipt.state)}, run {receipt.run}"
    screen.answer(receipt, lambda: line, as_json=as_json)
