"""Commands about videos: upload-url, status, failures, scenes, retry, rerun, cancel, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli import screen
from cli.confirmation import ask
from shared.client import Client
from shared.contracts import (
    FailureView,
    ListedState,
    Receipt,
    ScenePage,
    SceneView,
    StageStatus,
    VideoStatus,
)
from shared.errors import InvalidRequest
from shared.settings import get_settings


def open_client(*, timeout_s: float = 30.0) -> Client:
    """A client of the configured fleet.

    Raises:
        InvalidRequest: no Redis is configured and no `up` runs here.
    """
    return Client(get_settings().require("redis_url"), timeout_s=timeout_s)


def acting_user(user: str | None) -> str:
    return user or get_settings().user_id


def show_status(video: str, *, as_json: bool, user: str | None) -> None:
    """Show where one video stands."""
    status = open_client().status(video, acting_user(user))
    if as_json:
        screen.write_json(status)
    else:
        screen.make_console().print(describe(status))


def describe(status: VideoStatus) -> Group:
    """A video's state, line by line, and its stages as a table."""
    facts = [screen.styled(status.state), f"run {status.run}"]
    if status.published_run not in (None, status.run):
        facts.append(f"run {status.published_run} is searchable")
    if status.duration_s is not None:
        facts.append(f"{screen.clock(status.duration_s)} long")
    if status.scenes:
        facts.append(f"{status.scenes} scenes")
    lines: list[Text | Table] = [
        Text.from_markup(f"[bold]{status.video_id}[/bold]  " + ", ".join(facts)),
    ]
    if status.error:
        lines.append(Text.from_markup(f"[red]{status.error_class}[/red]: {escape(status.error)}"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("parts", justify="right", no_wrap=True)
    table.add_column("progress", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for stage in status.stages:
        table.add_row(*_stage_row(stage))
    return Group(*lines, table)


def _stage_row(stage: StageStatus) -> tuple[str, str, str, str, str]:
    parts = f"{stage.parts_done}/{stage.parts}" if stage.parts else ""
    progress = f"{stage.progress:.0%}" if stage.parts else ""
    return stage.stage, screen.styled(stage.state), parts, progress, escape(stage.error or "")


#: Videos of one request.
_PAGE = 100


def list_all(
    client: Client, user: str, *, states: Sequence[str] = (), limit: int | None = None
) -> list[VideoStatus]:
    """The user's videos, newest first, ``limit`` at most, page by page.

    Raises:
        InvalidRequest: a state does not exist.
    """
    known = get_args(ListedState)
    for state in states:
        if state not in known:
            raise InvalidRequest(f"--state {state} does not exist: use {', '.join(known)}")
    found: list[VideoStatus] = []
    after: str | None = None
    while limit is None or len(found) < limit:
        wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
        page = client.videos(user, states=cast("Sequence[ListedState]", states), after=after, limit=wanted)
        found += page.videos
        after = page.next_after
        if after is None:
            break
    return found


def show_list(*, states: Sequence[str], limit: int, as_json: bool, user: str | None) -> None:
    """List the user's videos."""
    owner = acting_user(user)
    found = list_all(open_client(), owner, states=states, limit=limit)
    if as_json:
        screen.write_json({"videos": found})
        return
    console = screen.make_console()
    if not found:
        which = f" {' or '.join(states)}" if states else ""
        console.print(f"user {owner} has no{which} videos yet: `scenefleet index FILE`")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("video", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("length", justify="right", no_wrap=True)
    table.add_column("scenes", justify="right", no_wrap=True)
    table.add_column("added (UTC)", no_wrap=True)
    table.add_column("", overflow="fold")
    for status in found:
        table.add_row(
            status.video_id,
            screen.styled(status.state),
            screen.clock(status.duration_s) if status.duration_s is not None else "",
            str(status.scenes or ""),
            f"{status.created_at:%Y-%m-%d %H:%M}",
            escape(status.error or _active(status)),
        )
    console.print(table)


def show_failures(video: str | None, *, limit: int, as_json: bool, user: str | None) -> None:
    """List the jobs that failed for good in the user's videos, newest first."""
    client, owner = open_client(), acting_user(user)
    found: list[FailureView] = []
    after: int | None = None
    while len(found) < limit:
        page = client.failures(owner, video_id=video, after=after, limit=min(1000, limit - len(found)))
        found += page.failures
        after = page.next_after
        if after is None:
            break
    if as_json:
        screen.write_json({"failures": found})
        return
    console = screen.make_console()
    if not found:
        console.print(f"nothing has failed in {video or f'the videos of user {owner}'}")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("video", overflow="fold")
    table.add_column("stage", no_wrap=True)
    table.add_column("part", justify="right", no_wrap=True)
    table.add_column("attempts", justify="right", no_wrap=True)
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("", overflow="fold")
    for failure in found:
        table.add_row(
            failure.video_id,
            failure.stage,
            str(failure.part),
            str(failure.attempts),
            f"{failure.failed_at:%Y-%m-%d %H:%M}" if failure.failed_at else "",
            f"[red]{failure.error_class or 'failed'}[/red] {escape(failure.error or '')}".rstrip(),
        )
    console.print(table)


def show_upload(video: str, filename: str, *, expires_s: int, as_json: bool, user: str | None) -> None:
    """Say where a file that becomes a video is to be stored."""
    slot = open_client().upload(video, acting_user(user), filename, expires_s=expires_s)
    if as_json:
        screen.write_json(slot)
        return
    console = screen.make_console()
    console.print(slot.storage_key, soft_wrap=True)
    if slot.upload_url is not None:
        console.print(slot.upload_url, soft_wrap=True)


def _active(status: VideoStatus) -> str:
    if status.state != "processing":
        return ""
    return ", ".join(f"{s.stage} {s.progress:.0%}" for s in status.stages if s.state == "running")


def all_scenes(client: Client, video: str, user: str) -> ScenePage:
    """Every published scene of a video, page by page."""
    found: list[SceneView] = []
    after: int | None = -1
    while after is not None:
        page = client.scenes(video, user, after_idx=after)
        found += page.scenes
        after = page.next_after_idx
    return ScenePage(video_id=video, scenes=tuple(found), next_after_idx=None)


def show_scenes(video: str, *, as_json: bool, user: str | None) -> None:
    """List a video's scenes."""
    client, owner = open_client(), acting_user(user)
    page = all_scenes(client, video, owner)
    if as_json:
        screen.write_json(page)
        return
    console = screen.make_console()
    if not page.scenes:
        state = client.status(video, owner).state
        console.print(f"{video} is {state} and has no published scenes: `scenefleet status {video}`")
        return
    console.print(scene_table(page.scenes))


def scene_table(scenes: Sequence[SceneView]) -> Table:
    """Scenes as a table: number, time, words, text on screen where there is any, faces."""
    shows_text = any(scene.screen_text for scene in scenes)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("time", no_wrap=True)
    table.add_column("words", overflow="fold")
    if shows_text:
        table.add_column("on screen", overflow="fold")
    table.add_column("faces", justify="right", no_wrap=True)
    for scene in scenes:
        table.add_row(
            str(scene.idx),
            f"{screen.clock(scene.start_s)} - {screen.clock(scene.end_s)}",
            escape(scene.transcript) or "[dim]-[/dim]",
            *([escape(scene.screen_text)] if shows_text else []),
            str(scene.faces or ""),
        )
    return table


def change(action: str, video: str, *, as_json: bool, user: str | None) -> None:
    """Retry or cancel, and say what state the video is in now."""
    client, owner = open_client(), acting_user(user)
    _confirm((client.retry if action == "retry" else client.cancel)(video, owner), as_json=as_json)


def rerun(
    video: str | None, stages: Sequence[str], *, missing: bool, as_json: bool, user: str | None
) -> None:
    """Process a video again, or make what all of the user's videos lack.

    Raises:
        InvalidRequest: no video is named, and not only what is missing is asked for.
    """
    client, owner = open_client(), acting_user(user)
    if video is not None:
        receipt = client.rerun(video, owner, stages, missing=missing)
        if missing and not receipt.accepted and not as_json:
            screen.make_console().print(f"[bold]{video}[/bold]  lacks nothing that can be made now")
            return
        _confirm(receipt, as_json=as_json)
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
            _confirm(receipt, as_json=False)
    lacking = sum(receipt.accepted for receipt in receipts)
    screen.make_console().print(f"{lacking} of {len(receipts)} videos lacked something that can be made now")


def delete(video: str, *, sure: bool, as_json: bool, user: str | None) -> None:
    """Delete, after asking."""
    client, owner = open_client(), acting_user(user)
    if not sure:
        status = client.status(video, owner)
        ask(f"Delete {video} ({status.state}, {status.scenes} scenes) and everything made from it?")
    _confirm(client.delete(video, owner), as_json=as_json)


def _confirm(receipt: Receipt, *, as_json: bool) -> None:
    if as_json:
        screen.write_json(receipt)
        return
    screen.make_console().print(
        f"[bold]{receipt.video_id}[/bold]  {screen.styled(receipt.state)}, run {receipt.run}"
    )
