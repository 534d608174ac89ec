"""Videos: create, list, look at one, process again, delete; their scenes, subtitles and sidecars."""

from __future__ import annotations

from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api import problems
from api.asking import Asking
from api.bodies import json_body
from api.parameters import AfterId, AfterNumber, Ask, Limit1000, OnceOnly, VideoId, Who
from shared import routing
from shared.contracts import (
    FailurePage,
    ListedState,
    ListFailures,
    ListScenes,
    ListVideos,
    MakeSubtitles,
    ProcessVideo,
    Receipt,
    RerunVideo,
    ScenePage,
    ShowTimeline,
    Subtitles,
    TimelinePage,
    VideoPage,
    VideoRef,
    VideoStatus,
)
from shared.errors import NotFound
from shared.subtitles import SubtitleFormat

router = APIRouter(tags=["videos"], responses=problems.responses())

NewVideo = json_body(ProcessVideo, "user_id", optional=("video_id",), name="NewVideo")
VideoSource = json_body(ProcessVideo, "user_id", "video_id", name="VideoSource")
Rerun = json_body(RerunVideo, "user_id", "video_id", name="Rerun")
STORED = problems.responses(404, 409, 413, 415)
SUBTITLE_TYPES: dict[SubtitleFormat, str] = {"srt": "application/x-subrip", "vtt": "text/vtt"}


@router.get("/videos", responses=problems.responses(404))
async def list_videos(
    who: Who,
    ask: Ask,
    state: Annotated[list[ListedState] | None, Query(max_length=6)] = None,
    after: AfterId = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> VideoPage:
    """Return a page of the videos, newest first; `state`, repeated: only those in one of these states."""
    kwargs = {"user_id": who.user_id, "states": state or [], "after": after, "limit": limit}
    return await ask.ask(routing.VIDEO_LIST, ListVideos, kwargs, VideoPage)


@router.post("/videos", status_code=201, responses=STORED, openapi_extra=NewVideo.extra)
async def create_video(
    who: Who, ask: Ask, once: OnceOnly, body: Annotated[dict[str, Any], Depends(NewVideo.read)]
) -> Receipt:
    """Process a stored file, `uploads/{user}/{video_id}/...`; `video_id` is that of the key if it is left out."""
    given = dict(body)
    if "video_id" not in given:
        parts = str(given.get("storage_key", "")).split("/")
        given["video_id"] = parts[2] if len(parts) > 3 else "new"
    return await once.run(body, Receipt, lambda: _process(ask, who.user_id, given))


@router.put(
    "/videos/{video_id}",
    status_code=201,
    responses={**STORED, 200: {"model": Receipt, "description": "It was accepted before"}},
    openapi_extra=VideoSource.extra,
)
async def put_video(
    video_id: VideoId,
    response: Response,
    who: Who,
    ask: Ask,
    body: Annotated[dict[str, Any], Depends(VideoSource.read)],
) -> Receipt:
    """Process a stored file as the video of this id. Sending it again changes nothing."""
    receipt = await _process(ask, who.user_id, {**body, "video_id": video_id})
    response.status_code = 201 if receipt.accepted else 200
    return receipt


async def _process(ask: Asking, user_id: str, body: dict[str, Any]) -> Receipt:
    return await ask.ask(routing.VIDEO_PROCESS, ProcessVideo, {**body, "user_id": user_id}, Receipt)


@router.get("/videos/{video_id}", responses=problems.responses(404))
async def get_video(video_id: VideoId, who: Who, ask: Ask) -> VideoStatus:
    """Return the state of a video and of each stage of its processing."""
    kwargs = {"video_id": video_id, "user_id": who.user_id}
    return await ask.ask(routing.VIDEO_STATUS, VideoRef, kwargs, VideoStatus)


@router.delete("/videos/{video_id}", status_code=202, responses=problems.responses(404, 409))
async def delete_video(video_id: VideoId, who: Who, ask: Ask) -> Receipt:
    """Hide a video now and remove all that was made of it. Its id can't be used again."""
    kwargs = {"video_id": video_id, "user_id": who.user_id}
    return await ask.ask(routing.VIDEO_DELETE, VideoRef, kwargs, Receipt)


@router.post("/videos/{video_id}/retry", status_code=202, responses=problems.responses(404, 409))
async def retry_video(video_id: VideoId, who: Who, ask: Ask, once: OnceOnly) -> Receipt:
    """Run again what failed, or a cancelled run."""
    kwargs = {"video_id": video_id, "user_id": who.user_id}
    return await once.run(None, Receipt, lambda: ask.ask(routing.VIDEO_RETRY, VideoRef, kwargs, Receipt))


@router.post("/videos/{video_id}/cancel", status_code=202, responses=problems.responses(404, 409))
async def cancel_video(video_id: VideoId, who: Who, ask: Ask) -> Receipt:
    """Stop processing a video; what is published stays."""
    kwargs = {"video_id": video_id, "user_id": who.user_id}
    return await ask.ask(routing.VIDEO_CANCEL, VideoRef, kwargs, Receipt)


@router.post("/videos/{video_id}/rerun", status_code=202, responses=STORED, openapi_extra=Rerun.extra)
async def rerun_video(
    video_id: VideoId,
    who: Who,
    ask: Ask,
    once: OnceOnly,
    body: Annotated[dict[str, Any], Depends(Rerun.read)],
) -> Receipt:
    """Process again: all stages, the named ones and those that follow from them, or those that are `missing`."""
    kwargs = {**body, "video_id": video_id, "user_id": who.user_id}
    return await once.run(body, Receipt, lambda: ask.ask(routing.VIDEO_RERUN, RerunVideo, kwargs, Receipt))


@router.get("/failures")
async def list_failures(who: Who, ask: Ask, after: AfterNumber = None, limit: Limit1000 = 100) -> FailurePage:
    """Return a page of the jobs of all videos that failed for good, newest first."""
    return await _failures(who.user_id, ask, None, after, limit)


@router.get("/videos/{video_id}/failures", responses=problems.responses(404))
async def list_video_failures(
    video_id: VideoId, who: Who, ask: Ask, after: AfterNumber = None, limit: Limit1000 = 100
) -> FailurePage:
    """Return a page of the jobs of a video that failed for good, newest first."""
    return await _failures(who.user_id, ask, video_id, after, limit)


async def _failures(
    user_id: str, ask: Asking, video_id: str | None, after: int | None, limit: int
) -> FailurePage:
    kwargs = {"user_id": user_id, "video_id": video_id, "after": after, "limit": limit}
    return await ask.ask(routing.VIDEO_FAILURES, ListFailures, kwargs, FailurePage)


@router.get("/videos/{video_id}/scenes", responses=problems.responses(404))
async def list_scenes(
    video_id: VideoId,
    who: Who,
    ask: Ask,
    after_idx: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1,
    limit: Limit1000 = 200,
) -> ScenePage:
    """Return a page of the published scenes of a video."""
    kwargs = {"video_id": video_id, "user_id": who.user_id, "after_idx": after_idx, "limit": limit}
    return await ask.ask(routing.VIDEO_SCENES, ListScenes, kwargs, ScenePage)


@router.get("/videos/{video_id}/timeline", responses=problems.responses(404))
async def show_timeline(
    video_id: VideoId,
    who: Who,
    ask: Ask,
    after_idx: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> TimelinePage:
    """Return what a player shows of a video: what plays, and a page of its scenes with words, people and screen text."""
    kwargs = {"video_id": video_id, "user_id": who.user_id, "after_idx": after_idx, "limit": limit}
    return await ask.ask(routing.VIDEO_TIMELINE, ShowTimeline, kwargs, TimelinePage)


@router.get(
    "/videos/{video_id}/scenes/{idx}/sidecar",
    response_class=Response,
    responses={
        **problems.responses(404),
        200: {"content": {"application/json": {"schema": {"type": "object"}}}},
    },
)
async def get_sidecar(
    request: Request, video_id: VideoId, idx: Annotated[int, Path(ge=0, le=2**31 - 1)], who: Who, ask: Ask
) -> Response:
    """Return the sidecar of a scene: all that was found in it, as one JSON document."""
    kwargs = {"video_id": video_id, "user_id": who.user_id, "after_idx": idx - 1, "limit": 1}
    page = await ask.ask(routing.VIDEO_SCENES, ListScenes, kwargs, ScenePage)
    scene = page.scenes[0] if page.scenes and page.scenes[0].idx == idx else None
    if scene is None or scene.sidecar_key is None:
        raise NotFound(f"video {video_id} has no scene {idx} with a sidecar: list its scenes")
    storage, key = request.app.state.storage, scene.sidecar_key
    data = await anyio.to_thread.run_sync(lambda: storage.get_bytes("sidecars", key))
    return Response(data, media_type="application/json")


@router.get(
    "/videos/{video_id}/subtitles.{format}",
    response_class=Response,
    responses={
        **problems.responses(404, 409),
        200: {"content": {kind: {"schema": {"type": "string"}} for kind in SUBTITLE_TYPES.values()}},
    },
)
async def get_subtitles(video_id: VideoId, format: SubtitleFormat, who: Who, ask: Ask) -> Response:
    """Return the transcript of a video as a subtitle file."""
    kwargs = {"video_id": video_id, "user_id": who.user_id, "format": format}
    found = await ask.ask(routing.VIDEO_SUBTITLES, MakeSubtitles, kwargs, Subtitles)
    return Response(found.text, media_type=f"{SUBTITLE_TYPES[format]}; charset=utf-8")
