"""``scenefleet index``: upload videos, and watch until they are indexed."""

from __future__ import annotations

import mimetypes
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cli import screen
from cli.connection import connect
from cli.videos import progress
from shared import nodes
from shared.client import Client
from shared.contracts import ID_PATTERN, Receipt, VideoStatus
from shared.errors import InvalidRequest, LimitExceeded, Outage, ScenefleetError
from shared.settings import Settings, get_settings
from shared.storage import Storage, configured_storage, upload_key

#: How long a request waits for its receipt before it is sent again, and how long it is sent at all.
RECEIPT_WAIT_S = 15.0
RECEIPT_LIMIT_S = 300.0
MAX_STEM_CHARS = 48


@dataclass(kw_only=True)
class Upload:
    """A file to upload."""

    path: Path
    video_id: str
    error: ScenefleetError | None = None
    receipt: Receipt | None = None
    status: VideoStatus | None = None


def make_video_id(path: Path) -> str:
    """Make a unique id that shows the file's name: ``my-film-1a2b3c4d``."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", path.stem).strip("-")[:MAX_STEM_CHARS].rstrip("-")
    return f"{stem or 'video'}-{secrets.token_hex(4)}"


def plan_uploads(files: Sequence[Path], video_id: str | None, settings: Settings) -> list[Upload]:
    """Check the files before anything is sent.

    Raises:
        InvalidRequest: a file can't be read, or the id is not acceptable.
        LimitExceeded: a file is too large for this fleet.
    """
    if video_id is not None and len(files) > 1:
        raise InvalidRequest(f"--id names one video, but there are {len(files)} files: leave --id out")
    if video_id is not None and not re.fullmatch(ID_PATTERN, video_id):
        raise InvalidRequest(f"--id {video_id!r} is not acceptable: use 1 to 64 of A-Z a-z 0-9 _ -")
    for path in files:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no file"
            raise InvalidRequest(f"{str(path)!r} is {kind}: name video files")
        size_bytes, limit_bytes = path.stat().st_size, settings.max_video_bytes
        if size_bytes > limit_bytes:
            reason = f"has {size_bytes} bytes, more than {limit_bytes}"
            raise LimitExceeded(f"{str(path)!r} {reason}: raise MAX_VIDEO_BYTES")
    return [Upload(path=path, video_id=video_id or make_video_id(path)) for path in files]


def check_fleet(settings: Settings) -> None:
    """Fail before a long upload when no node would take the request."""
    records = nodes.read_nodes(settings.require("redis_url"))
    if not any(record.family == "search" for record in records.values()):
        raise Outage("no `search` node runs, which accepts videos: start `scenefleet up`, or a node")


def send(
    client: Client, storage: Storage, upload: Upload, user: str, priority: int, console: Console
) -> None:
    """Store the file and send the request until its receipt comes; an error stays on ``upload``.

    Sending again is harmless, and from the receipt on nothing is lost.
    """
    try:
        key = upload_key(user, upload.video_id, upload.path.name)
        content_type = mimetypes.guess_type(upload.path.name)[0] or "application/octet-stream"
        with console.status(f"uploading {escape(upload.path.name)}"):
            storage.put_file("uploads", key, upload.path, content_type)
        deadline = time.monotonic() + RECEIPT_LIMIT_S
        with console.status("waiting for the receipt") as spinner:
            while upload.receipt is None:
                try:
                    upload.receipt = client.process(upload.video_id, user, key, priority=priority)
                except Outage as error:
                    if time.monotonic() > deadline:
                        raise
                    spinner.update(f"no receipt yet, sending again ({escape(str(error))})")
                    time.sleep(1)
    except ScenefleetError as error:
        upload.error = error


def run(
    files: Sequence[Path], video_id: str | None, *, priority: int, wait: bool, as_json: bool, user: str | None
) -> int:
    """Index files; returns the exit status."""
    settings = get_settings()
    uploads = plan_uploads(files, video_id, settings)
    check_fleet(settings)
    client, owner = connect(user, timeout_s=RECEIPT_WAIT_S)
    storage = configured_storage(settings)
    console = screen.make_console(stderr=True)
    try:
        for upload in uploads:
            send(client, storage, upload, owner, priority, console)
        if wait:
            watch(client, uploads, owner, console)
    except KeyboardInterrupt:
        accepted = [upload.video_id for upload in uploads if upload.receipt is not None]
        if accepted:
            rest = "`scenefleet status`, or `scenefleet cancel`"
            console.print(f"still in work: {', '.join(accepted)}; {rest}")
        raise
    report(uploads, as_json=as_json, console=console)
    return 0 if all(_went_well(upload, wait=wait) for upload in uploads) else 1


def watch(client: Client, uploads: Sequence[Upload], owner: str, console: Console) -> None:
    """Show progress until every accepted video has ended."""
    accepted = {upload.video_id: upload for upload in uploads if upload.error is None}
    if accepted:
        for status in progress.watch(client, owner, list(accepted), console):
            accepted[status.video_id].status = status


def _went_well(upload: Upload, *, wait: bool) -> bool:
    if upload.error is not None or upload.receipt is None:
        return False
    state = upload.status.state if upload.status is not None else upload.receipt.state
    return state == "indexed" if wait else state != "failed"


def report(uploads: Sequence[Upload], *, as_json: bool, console: Console) -> None:
    """Answers on stdout, reasons on stderr."""
    if as_json:
        screen.write_json({"videos": [_as_row(upload) for upload in uploads]})
    for upload in uploads:
        if not as_json:
            _report_line(upload)
        for reason in reasons(upload):
            console.print(f"scenefleet: {escape(reason)}", style="red", soft_wrap=True)


def _as_row(upload: Upload) -> dict[str, object]:
    return {
        "file": str(upload.path),
        "video_id": upload.video_id,
        "accepted": upload.receipt is not None,
        "error_class": upload.error.code if upload.error else None,
        "error": str(upload.error) if upload.error else None,
        "status": upload.status,
    }


def _report_line(upload: Upload) -> None:
    state, facts = "not accepted", ""
    if upload.status is not None:
        state = upload.status.state
        if upload.status.scenes:
            facts = f", {upload.status.scenes} scenes: `scenefleet scenes {upload.video_id}`"
    elif upload.receipt is not None:
        state = upload.receipt.state
    line = f"{escape(upload.path.name)}  [bold]{upload.video_id}[/bold]  {screen.styled(state)}{facts}"
    screen.make_console().print(line, soft_wrap=True)


def reasons(upload: Upload) -> list[str]:
    """Why it failed, one sentence each; empty if it did not."""
    name = upload.path.name
    if upload.error is not None:
        return [f"{name}: {upload.error}"]
    status = upload.status
    if status is None or status.state == "indexed":
        return []
    failed = [stage for stage in status.stages if stage.state == "failed" and stage.error]
    found = [f"{name}: {stage.stage}: {stage.error}" for stage in failed]
    if status.error and not any(line.endswith(status.error) for line in found):
        found.insert(0, f"{name}: {status.error}")
    return found or [f"{name} ended {status.state}"]
