"""Requests about videos and their scenes, and their answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..subtitles import SubtitleFormat
from .base import Contract, Id, Part, Text

VideoState = Literal["uploaded", "processing", "indexed", "partial", "failed", "cancelled", "deleted"]

ListedState = Literal["uploaded", "processing", "indexed", "partial", "failed", "cancelled"]


class VideoRef(Contract):
    """Names a video of a user."""

    video_id: Id
    user_id: Id


class ProcessVideo(VideoRef):
    """Accept a video whose file is stored under ``storage_key`` in the uploads bucket."""

    storage_key: Text = Field(max_length=512)
    #: 0..9, higher first.
    priority: int = Field(0, ge=0, le=9)


class RerunVideo(VideoRef):
    """Process again: all stages, the named ones and those downstream of them, or those that the published run lacks."""

    stages: tuple[Text, ...] = Field((), max_length=100)
    #: Only stages that were off, failed or are outdated; without any nothing happens.
    missing: bool = False


class ListScenes(VideoRef):
    """List a video's published scenes, starting after the scene ``after_idx``."""

    after_idx: int = Field(-1, ge=-1, le=2**31 - 1)
    limit: int = Field(200, ge=1, le=1000)


class ShowTimeline(VideoRef):
    """Describe a video's published scenes for a player, starting after the scene ``after_idx``."""

    after_idx: int = Field(-1, ge=-1, le=2**31 - 1)
    limit: int = Field(100, ge=1, le=500)


class MakeSubtitles(VideoRef):
    """Convert the transcript of a video's published scenes to a subtitle file."""

    format: SubtitleFormat = "srt"


class ListVideos(Contract):
    """List a user's videos, newest first, starting after the video id ``after``."""

    user_id: Id
    #: Only videos in one of these states; empty: any. Deleted videos are never listed.
    states: tuple[ListedState, ...] = Field((), max_length=6)
    after: Id | None = None
    limit: int = Field(50, ge=1, le=200)


class ListFailures(Contract):
    """List the failed jobs of the newest runs of a user's videos, newest first, starting after the job id ``after``."""

    user_id: Id
    #: None: all videos.
    video_id: Id | None = None
    after: int | None = Field(None, ge=1, le=2**63 - 1)
    limit: int = Field(100, ge=1, le=1000)


class WatchVideos(Contract):
    """Read a user's videos, or what has changed of them since an earlier answer to the same request."""

    max_bytes: ClassVar[int] = 64 * 1024

    user_id: Id
    #: ``as_of`` of that answer; None: none.
    since: str | None = Field(None, max_length=1500, pattern=r"^[0-9]{1,18}(\.[0-9]{1,18})*$")
    #: Videos to read in any case, by the keys in notes of changes; None: also every video in progress.
    keys: tuple[Annotated[Text, Field(max_length=64)], ...] | None = Field(None, max_length=100)
    limit: int = Field(200, ge=1, le=200)


class UploadVideo(Contract):
    """Get the storage key for a video; then send it with ``tasks.video.process``. Stores nothing."""

    user_id: Id
    #: Id of the new video; refused if the user has this id already.
    video_id: Id
    #: The file's name; characters that a storage key can't contain are replaced.
    filename: Text = Field("video", min_length=1, max_length=1000)
    #: Lifetime of the URL, seconds; the upload must begin within it.
    expires_s: int = Field(900, ge=1, le=604_800)


class Receipt(Contract):
    """The answer to a change: it is stored and can't be lost."""

    video_id: str
    user_id: str
    state: VideoState
    run: int
    #: False: the same request was accepted before.
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
    #: Keyframes, scenes or windows of sound that are left out, as the process died each time it worked on them (``error``).
    #: ``tasks.video.retry`` tries them again.
    not_looked_at: int = 0


class NotLookedAt(Part):
    """What a stage has left out of a scene."""

    stage: str
    reason: str
    #: Ordinals of keyframes; None: not a matter of keyframes.
    keyframes: tuple[int, ...] | None = None
    #: The stretch of the video's sound; None: not a matter of sound.
    start_s: float | None = None
    end_s: float | None = None


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


class VideoChanges(Contract):
    """The answer to ``WatchVideos``."""

    #: The state of Postgres that was read: send it as ``since`` to read later changes. No transaction is lost between two answers, some may be in both.
    as_of: str
    #: True: the newest ``limit`` videos and up to ``limit`` of those in progress, instead of what has changed. Also if too
    #: many have changed; the caller then forgets what it knew.
    snapshot: bool
    videos: tuple[VideoStatus, ...]
    #: Ids of videos that were deleted.
    deleted: tuple[str, ...]
    #: The newest of the changes of people (``tasks.people.events``); 0: none.
    last_event_id: int


class FailureView(Part):
    """A job that failed for good, or has left something out; ``tasks.video.retry`` runs it again."""

    job_id: int
    video_id: str
    run: int
    stage: str
    #: Number of the part, from 0.
    part: int
    error_class: str | None
    error: str | None
    #: Number of attempts.
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
    #: URL for a PUT; None: the storage has no URLs, store the file under the key.
    upload_url: str | None
    #: When the URL expires.
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
    #: Number of people whose faces are visible, each counted once.
    faces: int
    #: On-screen text, one line each.
    screen_text: str = ""
    #: What stages have left out of it; ``tasks.video.retry`` tries it again.
    not_looked_at: tuple[NotLookedAt, ...] = ()
    #: Probability that the scene begins there, 0..1; None: not known.
    cut_confidence: float | None = None


class ScenePage(Contract):
    video_id: str
    scenes: tuple[SceneView, ...]
    #: Pass as ``after_idx`` for the next page; None at the end.
    next_after_idx: int | None


class MediaView(Part):
    """The file that a browser plays."""

    #: The uploaded file, its rendition, or none: it has none yet, or none can be made.
    playable: Literal["original", "rendition", "none"]
    #: Why the original is not played; why there is no rendition.
    reason: str | None
    #: As shown: turned upright.
    width_px: int | None
    height_px: int | None
    #: Where the file is stored; None if none can be played.
    bucket: Literal["uploads", "sidecars"] | None
    key: str | None


class VideoMedia(Contract):
    """The answer to ``tasks.video.media``: what a player needs to play a video."""

    video_id: str
    #: Measured by the split; None before it.
    duration_s: float | None
    media: MediaView
    #: The uploaded file, in the bucket ``uploads``.
    original_key: str
    #: Folder in the bucket ``sidecars`` with ``sprites.vtt`` and ``sprite-0.jpg``, ...; None: there are none.
    sprites_prefix: str | None
    #: Number of sprite sheets.
    sprite_sheets: int


class TimelineKeyframe(Part):
    key: str
    ts_s: float
    width: int
    height: int


class TimelineWord(Part):
    start_s: float
    end_s: float
    text: str


class TimelineSegment(Part):
    """Words spoken without a long pause."""

    start_s: float
    end_s: float
    text: str
    words: tuple[TimelineWord, ...]


class TimelinePerson(Part):
    """A face through a scene: the span between its keyframes nearest to those that show it."""

    #: None: a stranger.
    person_id: str | None
    name: str | None
    track_id: str
    start_s: float
    end_s: float


class TimelineLine(Part):
    """A line of on-screen text."""

    text: str
    #: The first keyframe that shows it.
    ts_s: float


class TimelineScene(Part):
    """One published scene on the timeline of a player. Times in seconds from the video's start."""

    scene_id: str
    idx: int
    start_s: float
    end_s: float
    keyframes: tuple[TimelineKeyframe, ...]
    segments: tuple[TimelineSegment, ...]
    people: tuple[TimelinePerson, ...]
    screen: tuple[TimelineLine, ...]


class TimelinePage(Contract):
    """The answer to ``ShowTimeline``. A page ends early after many words."""

    video_id: str
    duration_s: float | None
    media: MediaView
    #: Whether there are sprites.
    sprites: bool
    scenes: tuple[TimelineScene, ...]
    #: Pass as ``after_idx`` for the next page; None at the end.
    next_after_idx: int | None


class Subtitles(Contract):
    """The answer to ``MakeSubtitles``; some MB for many hours of speech."""

    video_id: str
    format: SubtitleFormat
    #: The main language; None: no speech.
    language: str | None
    #: Content of the file, to be written as UTF-8.
    text: str
