"""``GET /events``: what changes of the caller's videos and people, as server-sent events."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.callers import CHECKED_S, Caller, identify
from api.events import Hub, Watcher
from api.parameters import Who
from api.problems import Forbidden, NotAuthenticated, TooManyRequests
from shared.errors import Outage

router = APIRouter(tags=["events"])
#: As ``WatchVideos.since``; anything else gets a snapshot.
_VERSION = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18}){0,70}")


class EventStream(Response):
    """The stream of one watcher, until either end closes it."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, watcher: Watcher, is_allowed: Callable[[], Awaitable[bool]]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub, self._watcher, self._is_allowed = hub, watcher, is_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_until_gone(receive))
        gone.add_done_callback(lambda _: self._watcher.close())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            checked_s = time.monotonic()
            async for events in self._hub.events(self._watcher):
                if time.monotonic() - checked_s > CHECKED_S:
                    checked_s = time.monotonic()
                    if not await self._is_allowed():
                        break
                await send({"type": "http.response.body", "body": events, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._hub.leave(self._watcher)
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# A client made from the OpenAPI file, or a program that tries it out, would wait for the end of the answer.
@router.get("/events", include_in_schema=False)
async def watch(request: Request, who: Who) -> Response:
    """Stream what changes of the caller's videos and people.

    The first event is `snapshot`; after that come `video` and `people`. A client that connects again with `Last-Event-ID` gets
    what it has missed, or a new snapshot. See docs/events.md.
    """
    hub: Hub = request.app.state.hub
    last_id = request.headers.get("last-event-id", "")
    since = last_id if _VERSION.fullmatch(last_id) else None

    return EventStream(hub, hub.join(who.user_id, since), lambda: is_allowed(request, who))


async def is_allowed(request: Request, who: Caller) -> bool:
    """Whether the key or sign-in that opened the stream has not ended since."""
    try:
        return (await identify(request)).user_id == who.user_id
    except (NotAuthenticated, Forbidden):
        return False
    except (Outage, TooManyRequests):
        # Asked again later; nothing new can be read meanwhile.
        return True
