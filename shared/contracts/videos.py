"""Requests about videos and their scenes, and the answers."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from ..graph import PIPELINE_NAMES
from ..subtitles import SubtitleFormat
from .base import Contract, Id, Part, Text

VideoState = Literal["uploaded", "processing", "indexed", "partial", "failed", "cancelled", "deleted"]

ListedState = Literal["uploaded", "processing", "indexed", "partial", "failed", "cancelled"]


class VideoRef(Contract):
    """Names a video of a user."""

    video_id: Id
    user_id: Id


class ProcessVideo(VideoRef):
    """Accept a video whose file lies under ``storage_key`` in the uploads bucket."""

    storage_key: Text = Field(max_length=512)
    #: 0..9, higher first.
    priority: int = Field(0, ge=0, le=9)


class RerunVideo(VideoRef):
    """Process again: all stages, or the named ones and those downstream of them, or what the published run lacks."""

    stages: tuple[Text, ...] = Field((), max_length=len(PIPELINE_NAMES))
    #: Only stages that were off, failed or out of date; nothing happens when there is none.
    missing: bool = False


class ListScenes(VideoRef):
    """A page of a video's published scenes, from ``after_idx`` (exclusive) on."""

    after_idx: int = Field(-1, ge=-1, le=2**31 - 1)
    limit: int = Field(200, ge=1, le=1000)


class MakeSubtitles(VideoRef):
    """The words of a video's published scenes as a subtitle file."""

    format: SubtitleFormat = "srt"


class ListVideos(Contract):
    """A user's videos, newest first, from ``after`` (a video's id, exclusive) on."""

    user_id: Id
    #: Only videos in one of these states; none named: in any. Deleted videos are never listed.
    states: tuple[ListedState, ...] = Field((), max_length=6)
    after: Id | None = None
    limit: int = Field(50, ge=1, le=200)


class ListFailures(Contract):
    """The failed jobs of the newest runs of a user's videos, newest first, from ``after`` (a job's id, exclusive) on."""

    user_id: Id
    #: None: of all videos.
    video_id: Id | None = None
    after: int | None = Field(None, ge=1, le=2**63 - 1)
    limit: int = Field(100, ge=1, le=1000)


class UploadVideo(Contract):
    """Ask where to store a video; then send ``tasks.video.process`` with the key of the answer. Stores nothing."""

    user_id: Id
    #: Of the video to be; one that the user has already is refused.
    video_id: Id
    #: The file's name; what a storage key can't hold is replaced.
    filename: Text = Field("video", min_length=1, max_length=1000)
    #: Of the URL, seconds: within it the upload has to begin.
    expires_s: int = Field(900, ge=1, le=604_800)


class Receipt(Contract):
    """The answer to a change: from here on nothing is lost."""

    video_id: str
    user_id: str
    state: VideoState
    run: int
    #: False when the same request had been accepted before.
    accepted: bool


class StageStatus(Part):
    stage: str
    #: pending, queued, running, done, reused, failed, cancelled, skipped
    state: str
    parts: int
    parts_done: int
    #: 0..1 over all parts.
    progress: float
    error_class: str | None = None
    error: str | None = None
    attempts: int = 0


class VideoStatus(Contract):
    video_id: str
    user_id: str
    storage_key: str
    state: VideoState
    run: int
    published_run: int | None
    duration_s: float | None
    scenes: int
    error_class: str | None
    error: str | None
    created_at: datetime
    indexed_at: datetime | None
    stages: tuple[StageStatus, ...]


class VideoPage(Contract):
    videos: tuple[VideoStatus, ...]
    #: Pass as ``after`` for the next page; None at the end.
    next_after: str | None


class FailureView(Part):
    """A job that failed for good; ``tasks.video.retry`` tries it again."""

    job_id: int
    video_id: str
    run: int
    stage: str
    #: Which piece of the stage, from 0.
    part: int
    error_class: str | None
    error: str | None
    #: How often it was begun.
    attempts: int
    failed_at: datetime | None


class FailurePage(Contract):
    failures: tuple[FailureView, ...]
    #: Pass as ``after`` for the next page; None at the end.
    next_after: int | None


class UploadSlot(Contract):
    """The answer to ``UploadVideo``."""

    video_id: str
    storage_key: str
    #: Where to PUT the file; None where storage has no URLs: store it under the key.
    upload_url: str | None
    #: When the URL ends.
    expires_at: datetime | None


class SceneView(Part):
    """One published scene as callers see it. Times in seconds from the video's start."""

    scene_id: str
    video_id: str
    idx: int
    start_s: float
    end_s: float
    kind: str
    transcript: str
    language: str | None
    keyframe_keys: tuple[str, ...]
    sidecar_key: str | None
    #: People whose faces it shows, however many keyframes show them.
    faces: int
    #: The text it shows, a line each.
    screen_text: str = ""


class ScenePage(Contract):
    video_id: str
    scenes: tuple[SceneView, ...]
    #: Pass as ``after_idx`` for the next page; None at the end.
    next_after_idx: int | None


class Subtitles(Contract):
    """The answer to ``MakeSubtitles``; some MB for many hours of speech."""

    video_id: str
    format: SubtitleFormat
    #: The language most of it is spoken in; None when nothing is said.
    language: str | None
    #: The file's content, to be written as UTF-8.
    text: str
