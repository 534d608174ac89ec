"""Requests about videos: upload, process, list, failures, status, scenes, subtitles, cancel, retry, rerun, delete."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from db import videos
from db.engine import reading_as
from db.ledger import video_runs
from db.ledger.jobs import WakeUp
from db.scenes import page, published_speech
from db.tables import Video
from shared import routing
from shared.contracts import (
    ListFailures,
    ListScenes,
    ListVideos,
    MakeSubtitles,
    ProcessVideo,
    Receipt,
    RerunVideo,
    Subtitles,
    UploadSlot,
    UploadVideo,
    VideoRef,
    parse,
)
from shared.errors import InvalidRequest
from shared.graph import FULL_RUN
from shared.storage import require_prefix, upload_key
from shared.subtitles import make_cues, render
from tasks.requests import REQUEST, answer, change
from worker.app import app
from worker.runtime import get_runtime
from worker.wakeup import notify


@app.task(name=routing.VIDEO_PROCESS, **REQUEST)
def process(**payload: Any) -> dict[str, Any]:
    """Accept a video for processing and return a receipt; after the receipt the video can't be lost.

    Send the request until a receipt arrives: repeating it changes nothing.
    """
    request = parse(ProcessVideo, payload)
    require_prefix(request.storage_key, f"uploads/{request.user_id}/{request.video_id}/")
    policy = get_runtime().policy
    receipt, wake_ups = change(lambda session: videos.accept(session, request, policy))
    notify(wake_ups)
    return answer(receipt)


@app.task(name=routing.VIDEO_STATUS, **REQUEST)
def status(**payload: Any) -> dict[str, Any]:
    """Return the state of a video, stage by stage."""
    request = parse(VideoRef, payload)
    with reading_as(request.user_id) as session:
        return answer(videos.status(session, request.video_id, request.user_id))


@app.task(name=routing.VIDEO_LIST, **REQUEST)
def list_videos(**payload: Any) -> dict[str, Any]:
    """Return a page of the user's videos, newest first."""
    request = parse(ListVideos, payload)
    with reading_as(request.user_id) as session:
        return answer(videos.list_page(session, request))


@app.task(name=routing.VIDEO_FAILURES, **REQUEST)
def failures(**payload: Any) -> dict[str, Any]:
    """Return a page of the jobs of the user's videos that failed for good, newest first."""
    request = parse(ListFailures, payload)
    with reading_as(request.user_id) as session:
        return answer(videos.failures(session, request))


@app.task(name=routing.VIDEO_UPLOAD, **REQUEST)
def upload(**payload: Any) -> dict[str, Any]:
    """Return the storage key for a new video and, with S3 storage, an upload URL. Stores nothing."""
    request = parse(UploadVideo, payload)
    runtime = get_runtime()
    key = upload_key(request.user_id, request.video_id, request.filename)
    with reading_as(request.user_id) as session:
        videos.require_free(session, request.video_id, request.user_id)
    url, expires_at = None, None
    if runtime.settings.storage_backend != "local":
        expires_at = datetime.now(UTC) + timedelta(seconds=request.expires_s)
        url = runtime.storage.presign_put("uploads", key, request.expires_s)
    return answer(
        UploadSlot(video_id=request.video_id, storage_key=key, upload_url=url, expires_at=expires_at)
    )


@app.task(name=routing.VIDEO_SCENES, **REQUEST)
def scenes(**payload: Any) -> dict[str, Any]:
    """Return a page of a video's published scenes."""
    request = parse(ListScenes, payload)
    with reading_as(request.user_id) as session:
        return answer(page(session, request.video_id, request.user_id, request.after_idx, request.limit))


@app.task(name=routing.VIDEO_SUBTITLES, **REQUEST)
def subtitles(**payload: Any) -> dict[str, Any]:
    """Return the transcript of a video's published scenes as SRT or WebVTT."""
    request = parse(MakeSubtitles, payload)
    with reading_as(request.user_id) as session:
        language, scenes = published_speech(session, request.video_id, request.user_id)
    text = render(make_cues(scenes), request.format)
    return answer(Subtitles(video_id=request.video_id, format=request.format, language=language, text=text))


def _change(
    request: VideoRef, act: Callable[[Session, Video], tuple[bool, list[WakeUp]]], **lock: bool
) -> dict[str, Any]:
    """Lock the caller's video, change it, notify the queues, return the receipt."""

    def work(session: Session) -> tuple[Receipt, list[WakeUp]]:
        video = videos.lock(session, request.video_id, request.user_id, **lock)
        accepted, wake_ups = act(session, video)
        session.flush()
        return videos.receipt(video, accepted=accepted), wake_ups

    receipt, wake_ups = change(work)
    notify(wake_ups)
    return answer(receipt)


@app.task(name=routing.VIDEO_CANCEL, **REQUEST)
def cancel(**payload: Any) -> dict[str, Any]:
    """Stop a video's run; what is published stays."""
    policy = get_runtime().policy
    return _change(parse(VideoRef, payload), lambda session, video: video_runs.cancel(session, video, policy))


@app.task(name=routing.VIDEO_RETRY, **REQUEST)
def retry(**payload: Any) -> dict[str, Any]:
    """Try what failed again; a cancelled run is started again."""
    policy = get_runtime().policy
    return _change(parse(VideoRef, payload), lambda session, video: video_runs.retry(session, video, policy))


@app.task(name=routing.VIDEO_RERUN, **REQUEST)
def rerun(**payload: Any) -> dict[str, Any]:
    """Process again: all stages, the named ones and those downstream, or the missing ones. The published run is kept."""
    request = parse(RerunVideo, payload)
    for stage in request.stages:
        if stage not in FULL_RUN:
            raise InvalidRequest(f"stages={stage!r} is not a stage: name some of {', '.join(FULL_RUN)}")
    if request.missing and request.stages:
        raise InvalidRequest(f"missing and stages={request.stages[0]!r} are both given: send one of them")
    policy = get_runtime().policy

    def act(session: Session, video: Video) -> tuple[bool, list[WakeUp]]:
        stages = video_runs.missing_stages(session, video, policy) if request.missing else request.stages
        if request.missing and not stages:
            return False, []
        return True, video_runs.rerun(session, video, stages, policy)

    return _change(request, act)


@app.task(name=routing.VIDEO_DELETE, **REQUEST)
def delete(**payload: Any) -> dict[str, Any]:
    """Forget a video: its id becomes a tombstone now, rows and objects are removed by a job."""
    policy = get_runtime().policy

    def act(session: Session, video: Video) -> tuple[bool, list[WakeUp]]:
        if video.deleted_at is not None:
            return False, []
        return True, video_runs.begin_delete(session, video, policy)

    return _change(parse(VideoRef, payload), act, deleted_too=True)
