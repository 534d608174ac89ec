"""A fleet that answers ``tasks.video.changes`` as a test says, and pages that watch it through a hub."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, cast

from api.events import Hub, Watcher
from shared.contracts import VideoChanges, VideoStatus
from shared.errors import Outage

Told = list[tuple[str, str | None, Any]]


def status(video_id: str, error: str = "", state: str = "processing") -> VideoStatus:
    return VideoStatus(
        video_id=video_id, user_id="u", storage_key="k", state=cast(Any, state), run=1, published_run=None,
        duration_s=None, scenes=0, error_class=None, error=error, created_at=datetime(2026, 1, 1, tzinfo=UTC),
        indexed_at=None, stages=(),
    )  # fmt: skip


class ChangesFleet:
    """Answers ``tasks.video.changes`` with what the test has put there."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.videos: dict[str, VideoStatus] = {}
        self.deleted: list[str] = []
        self.as_of = 0
        self.snapshot = False
        self.fails = 0
        self.free = asyncio.Event()
        self.free.set()

    async def ask(self, task: str, contract: Any, payload: dict[str, Any], answer: Any) -> VideoChanges:
        self.asked.append(payload)
        self.as_of += 1
        as_of, snapshot = str(self.as_of), self.snapshot or payload["since"] is None
        found = VideoChanges(
            as_of=as_of, snapshot=snapshot, videos=tuple(self.videos.values()), deleted=() if snapshot else tuple(self.deleted),
            last_event_id=0,
        )  # fmt: skip
        await self.free.wait()
        if self.fails:
            self.fails -= 1
            raise Outage("no answer")
        return found


def read(text: bytes) -> Told:
    """Events as (name, id, data)."""
    told: Told = []
    for block in text.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            told.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return told


class Page:
    """One watcher, read by the test."""

    def __init__(self, hub: Hub, since: str | None = None) -> None:
        self.watcher: Watcher = hub.join("u", since)
        self._stream = hub.events(self.watcher)

    async def next(self) -> Told:
        """The next events, at least one."""
        async with asyncio.timeout(10):
            told: Told = []
            while not told:
                text = await anext(self._stream)
                while not text.endswith(b"\n\n"):
                    text += await anext(self._stream)
                told = read(text)
            return told
