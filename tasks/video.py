"""Requests about videos: upload, process, list, failures, status, scenes, timeline, media, subtitles, cancel, retry, rerun, delete."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db import video_changes, videos
from db.engine import reading_as
from db.ledger import video_runs
from db.ledger.jobs import WakeUp
from db.precedence import admit
from db.scenes import page, published_speech
from db.tables import Video
from db.timeline import describe_media, timeline_page
from shared import graph, routing
from shared.contracts import (
    ListFailures,
    ListScenes,
    ListVideos,
    MakeSubtitles,
    ProcessVideo,
    RerunVideo,
    ScenePage,
    ShowTimeline,
    Subtitles,
    UploadSlot,
    UploadVideo,
    VideoChanges,
    VideoRef,
    VideoStatus,
    WatchVideos,
)
from shared.errors import InvalidRequest
from shared.storage import require_prefix, upload_key
from shared.subtitles import make_cues, render
from tasks.requests import Changed, arrival, change_task, read_task, request_task
from worker.runtime import get_runtime


@change_task(routing.VIDEO_PROCESS, ProcessVideo)
def process(session: Session, request: ProcessVideo) -> Changed:
    """Accept a video for processing and return a receipt; after the receipt the video can't be lost.

    Send the request until a receipt arrives: repeating it changes nothing.
    """
    require_prefix(request.storage_key, f"uploads/{request.user_id}/{request.video_id}/")
    return videos.accept(session, request, get_runtime().policy)


@read_task(routing.VIDEO_STATUS, VideoRef)
def status(session: Session, request: VideoRef) -> VideoStatus:
    """Return the state of a video, stage by stage."""
    return videos.status(session, request.video_id, request.user_id)


list_videos = read_task(routing.VIDEO_LIST, ListVideos)(videos.list_page)
failures = read_task(routing.VIDEO_FAILURES, ListFailures)(videos.failures)


@request_task(routing.VIDEO_CHANGES, WatchVideos)
def changes(request: WatchVideos) -> VideoChanges:
    """Return the user's newest videos, or what has changed since an earlier answer."""
    with reading_as(request.user_id, snapshot=True) as session:
        return video_changes.read(session, request)


@read_task(routing.VIDEO_UPLOAD, UploadVideo)
def upload(session: Session, request: UploadVideo) -> UploadSlot:
    """Return the storage key for a new video and, with S3 storage, an upload URL. Stores nothing."""
    runtime = get_runtime()
    key = upload_key(request.user_id, request.video_id, request.filename)
    videos.require_free(session, request.video_id, request.user_id)
    url, expires_at = None, None
    if runtime.settings.storage_backend != "local":
        expires_at = datetime.now(UTC) + timedelta(seconds=request.expires_s)
        url = runtime.storage.presign_put("uploads", key, request.expires_s)
    return UploadSlot(video_id=request.video_id, storage_key=key, upload_url=url, expires_at=expires_at)


@read_task(routing.VIDEO_SCENES, ListScenes)
def scenes(session: Session, request: ListScenes) -> ScenePage:
    """Return a page of a video's published scenes."""
    return page(session, request.video_id, request.user_id, request.after_idx, request.limit)


timeline = read_task(routing.VIDEO_TIMELINE, ShowTimeline)(timeline_page)
media = read_task(routing.VIDEO_MEDIA, VideoRef)(describe_media)


@read_task(routing.VIDEO_SUBTITLES, MakeSubtitles)
def subtitles(session: Session, request: MakeSubtitles) -> Subtitles:
    """Return the transcript of a video's published scenes as SRT or WebVTT."""
    language, scenes = published_speech(session, request.video_id, request.user_id)
    text = render(make_cues(scenes), request.format)
    return Subtitles(video_id=request.video_id, format=request.format, language=language, text=text)


def _lock(session: Session, request: VideoRef, *, deleted_too: bool = False) -> tuple[Video, bool]:
    """The request's video, locked; and whether the request is new, not delivered once more after it was done.

    Raises:
        Conflict: a request that was sent later has been done.
    """
    video = videos.lock(session, request.video_id, request.user_id, deleted_too=deleted_too)
    return video, admit(session, video, arrival(), f"video {video.external_id}")


def _receipt(session: Session, video: Video, accepted: bool, wake_ups: list[WakeUp]) -> Changed:
    session.flush()
    return videos.receipt(video, accepted=accepted), wake_ups


@change_task(routing.VIDEO_CANCEL, VideoRef)
def cancel(session: Session, request: VideoRef) -> Changed:
    """Stop a video's run; what is published stays."""
    video, _ = _lock(session, request)
    return _receipt(session, video, *video_runs.cancel(session, video, get_runtime().policy))


@change_task(routing.VIDEO_RETRY, VideoRef)
def retry(session: Session, request: VideoRef) -> Changed:
    """Try what failed again; a cancelled run is started again."""
    video, _ = _lock(session, request)
    return _receipt(session, video, *video_runs.retry(session, video, get_runtime().policy))


@change_task(routing.VIDEO_RERUN, RerunVideo)
def rerun(session: Session, request: RerunVideo) -> Changed:
    """Process again: all stages, the named ones and those downstream, or the missing ones. The published run is kept."""
    for stage in request.stages:
        if stage not in graph.FULL_RUN:
            raise InvalidRequest(f"stages={stage!r} is not a stage: name some of {', '.join(graph.FULL_RUN)}")
    if request.missing and request.stages:
        raise InvalidRequest(f"missing and stages={request.stages[0]!r} are both given: send one of them")
    policy, (video, is_new) = get_runtime().policy, _lock(session, request)
    if not is_new:
        return _receipt(session, video, True, [])
    stages = video_runs.missing_stages(session, video, policy) if request.missing else request.stages
    if request.missing and not stages:
        return _receipt(session, video, False, [])
    return _receipt(session, video, True, video_runs.rerun(session, video, stages, policy))


@change_task(routing.VIDEO_DELETE, VideoRef)
def delete(session: Session, request: VideoRef) -> Changed:
    """Forget a video: its id becomes a tombstone now, rows and objects are removed by a job."""
    video, _ = _lock(session, request, deleted_too=True)
    if video.deleted_at is not None:
        return _receipt(session, video, False, [])
    return _receipt(session, video, True, video_runs.begin_delete(session, video, get_runtime().policy))
