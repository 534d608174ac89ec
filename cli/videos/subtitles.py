"""`scenefleet subtitles`: what is said in a video, to a file or to stdout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import cast

from rich.text import Text

from cli import screen
from cli.connection import connect
from shared.errors import Conflict, InvalidRequest
from shared.subtitles import SubtitleFormat

#: The answer for hours of speech may have some MB.
_TIMEOUT_S = 60.0


def run(video: str, format: str | None, output: Path | None, *, force: bool, user: str | None) -> None:
    """Write the subtitles of a video.

    Raises:
        Conflict: the file exists and ``force`` is not given.
        InvalidRequest: no such folder.
    """
    if output is not None:
        _check(output, force=force)
    chosen = format or ("vtt" if output is not None and output.suffix.lower() == ".vtt" else "srt")
    client, owner = connect(user, timeout_s=_TIMEOUT_S)
    found = client.subtitles(video, owner, format=cast(SubtitleFormat, chosen))
    data = found.text.encode()
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    _write(output, data)
    cues = found.text.count(" --> ")
    screen.tell(Text(f"wrote {output}, {cues} cues"))


def _check(output: Path, *, force: bool) -> None:
    if output.is_dir():
        raise InvalidRequest(f"{output} is a folder: name a file in it")
    if not output.parent.is_dir():
        raise InvalidRequest(f"there is no folder {output.parent}: make it, or name another file")
    if output.is_file() and not force:
        raise Conflict(f"{output} exists: --force replaces it")


def _write(output: Path, data: bytes) -> None:
    """Write the file whole or not at all."""
    if output.exists() and not output.is_file():
        # A pipe or a device has nothing to replace.
        output.write_bytes(data)
        return
    part = output.resolve().with_name(f".{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(output.resolve())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
