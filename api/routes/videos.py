"""Videos: create, list, look at one, run again, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api import problems
from api.asking import Asking, asking
from api.callers import Caller, caller
from shared import routing
from shared.contracts import (
    ListedState,
    ListVideos,
    VideoPage,
    VideoRef,
    VideoStatus,
)

router = APIRouter(tags=["videos"], responses=problems.responses())
Who = Annotated[Caller, Depends(caller)]
Ask = Annotated[Asking, Depends(asking)]


@router.get("/videos")
async def list_videos(
    who: Who,
    ask: Ask,
    state: Annotated[list[ListedState], Query(max_length=6)] = [],  # noqa: B006 - FastAPI copies it
    after: str | None = None,
    limit: int = 50,
) -> VideoPage:
    """Return a page of the videos, newest first; `state`: only those in one of these states."""
    kwargs = {"user_id": who.user_id, "states": state, "after": after, "limit": limit}
    return await ask.ask(routing.VIDEO_LIST, ListVideos, kwargs, VideoPage)


@router.get("/videos/{video_id}", responses=problems.responses(404))
async def get_video(video_id: str, who: Who, ask: Ask) -> VideoStatus:
    """Return the state of a video and of each stage of its processing."""
    kwargs = {"video_id": video_id, "user_id": who.user_id}
    return await ask.ask(routing.VIDEO_STATUS, VideoRef, kwargs, VideoStatus)
