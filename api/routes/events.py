"""``GET /events``: what changes of the caller's videos and people, as server-sent events."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.callers import Caller, caller
from api.events import Hub, Watcher

router = APIRouter(tags=["events"])
#: As ``WatchVideos.since``; anything else gets a snapshot.
_VERSION = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18}){0,70}")


class EventStream(Response):
    """The stream of one watcher, until either end closes it."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, watcher: Watcher) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub, self._watcher = hub, watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_until_gone(receive))
        gone.add_done_callback(lambda _: self._watcher.close())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for events in self._hub.events(self._watcher):
                await send({"type": "http.response.body", "body": events, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._hub.leave(self._watcher)
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(
    request: Request,
    who: Annotated[Caller, Depends(caller)],
    last_event_id: Annotated[str | None, Header(max_length=4000)] = None,
) -> Response:
    """Stream what changes of the caller's videos and people.

    The first event is `snapshot`; after that come `video` and `people`. A client that connects again with `Last-Event-ID` gets
    what it has missed, or a new snapshot. See docs/events.md.
    """
    hub: Hub = request.app.state.hub
    since = last_event_id if last_event_id and _VERSION.fullmatch(last_event_id) else None
    return EventStream(hub, hub.join(who.user_id, since))
