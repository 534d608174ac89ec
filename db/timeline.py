"""What a player shows of a video: the file that it plays, and scenes with words, people and on-screen text at their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.rows import by_scene
from db.tables import Face, FaceTrack, Person, Scene, ScreenText, Video
from db.videos import get
from shared.contracts import (
    MediaView,
    ShowTimeline,
    TimelineKeyframe,
    TimelineLine,
    TimelinePage,
    TimelinePerson,
    TimelineScene,
    TimelineSegment,
    TimelineWord,
    VideoMedia,
    VideoRef,
)
from shared.playback import playable

#: A page ends after the scene that reaches this number of words: about 2 MB of JSON.
_MAX_WORDS = 20_000


def timeline_page(session: Session, request: ShowTimeline) -> TimelinePage:
    """The published scenes after ``after_idx``, in order; one statement per table.

    Raises:
        NotFound: no such video of this user.
    """
    video = get(session, request.video_id, request.user_id)
    rows = session.scalars(
        select(Scene)
        .where(
            Scene.video_id == video.video_id,
            Scene.user_id == request.user_id,
            Scene.live,
            Scene.idx > request.after_idx,
        )
        .order_by(Scene.idx)
        .limit(request.limit + 1)
    ).all()
    shown = rows[: _enough(rows[: request.limit])]
    ids = [scene.scene_id for scene in shown]
    people = _tracks(session, request.user_id, ids)
    screen = _lines(session, request.user_id, ids)
    return TimelinePage(
        video_id=video.external_id,
        duration_s=video.duration_s,
        media=_media(video),
        sprites=_sprites(video) is not None,
        scenes=tuple(
            _scene(scene, people.get(scene.scene_id, []), screen.get(scene.scene_id, [])) for scene in shown
        ),
        next_after_idx=shown[-1].idx if len(rows) > len(shown) else None,
    )


def describe_media(session: Session, request: VideoRef) -> VideoMedia:
    """The file of a video that a browser plays, and where its sprites are.

    Raises:
        NotFound: no such video of this user.
    """
    video = get(session, request.video_id, request.user_id)
    sprites = _sprites(video)
    return VideoMedia(
        video_id=video.external_id,
        duration_s=video.duration_s,
        media=_media(video),
        original_key=video.storage_key,
        sprites_prefix=None if sprites is None else sprites["prefix"],
        sprite_sheets=0 if sprites is None else len(sprites["sheets"]),
    )


def _media(video: Video) -> MediaView:
    media = video.media
    if media is None:
        return _no_file("the file has not been read yet")
    width, height = media["video"]["width"], media["video"]["height"]
    if media["video"]["rotation_deg"] in (90, 270):
        width, height = height, width
    made = video.rendition
    if made is not None and made["key"] is not None:
        width, height = made["size"] or (width, height)
        return MediaView(
            playable="rendition",
            reason=made["reason"],
            width_px=width,
            height_px=height,
            bucket="sidecars",
            key=made["key"],
        )
    needs = playable(media)
    if not needs.plays:
        return _no_file(f"{needs.reason}, and there is no rendition (yet)", width, height)
    return MediaView(
        playable="original",
        reason=needs.reason or None,
        width_px=width,
        height_px=height,
        bucket="uploads",
        key=video.storage_key,
    )


def _no_file(reason: str, width: int | None = None, height: int | None = None) -> MediaView:
    return MediaView(playable="none", reason=reason, width_px=width, height_px=height, bucket=None, key=None)


def _sprites(video: Video) -> Mapping[str, Any] | None:
    """The sprites of the video's newest split; None: it has none, or is from before there were any."""
    found: Mapping[str, Any] | None = (video.media or {}).get("sprites")
    return found


def _enough(scenes: Sequence[Scene]) -> int:
    """How many of the scenes make a page."""
    words = 0
    for count, scene in enumerate(scenes, start=1):
        words += sum(1 + len(segment.get("words") or ()) for segment in scene.segments)
        if words >= _MAX_WORDS:
            return count
    return len(scenes)


def _tracks(session: Session, user_id: str, scenes: Sequence[UUID]) -> dict[UUID, list[Any]]:
    """Scene -> its published tracks, with the first and last keyframe that shows each, and who it is."""
    same = (
        (Face.scene_id == FaceTrack.scene_id) & (Face.run == FaceTrack.run) & (Face.track == FaceTrack.track)
    )
    known = (
        (Person.person_id == FaceTrack.person_id) & (Person.user_id == user_id) & Person.deleted_at.is_(None)
    )
    rows = session.execute(
        select(
            FaceTrack.scene_id,
            FaceTrack.track_id,
            Person.external_id,
            Person.name,
            func.min(Face.ordinal).label("first"),
            func.max(Face.ordinal).label("last"),
        )
        .join(Scene, (Scene.scene_id == FaceTrack.scene_id) & (Scene.face_run == FaceTrack.run))
        .join(Face, same)
        .outerjoin(Person, known)
        .where(
            FaceTrack.scene_id.in_(scenes),
            FaceTrack.user_id == user_id,
            Scene.user_id == user_id,
            Face.user_id == user_id,
        )
        .group_by(FaceTrack.scene_id, FaceTrack.track_id, FaceTrack.track, Person.external_id, Person.name)
        .order_by(FaceTrack.scene_id, FaceTrack.track)
    )
    return by_scene(rows)


def _lines(session: Session, user_id: str, scenes: Sequence[UUID]) -> dict[UUID, list[Any]]:
    """Scene -> its published lines of on-screen text, in order."""
    rows = session.execute(
        select(ScreenText.scene_id, ScreenText.text, ScreenText.sightings)
        .join(Scene, (Scene.scene_id == ScreenText.scene_id) & (Scene.ocr_run == ScreenText.run))
        .where(ScreenText.scene_id.in_(scenes), ScreenText.user_id == user_id, Scene.user_id == user_id)
        .order_by(ScreenText.scene_id, ScreenText.place)
    )
    return by_scene(rows)


def _scene(scene: Scene, tracks: Sequence[Any], lines: Sequence[Any]) -> TimelineScene:
    times_s = [float(keyframe["ts_s"]) for keyframe in scene.keyframes]
    # A keyframe stands for the time up to the middle between it and the next.
    borders_s = [scene.start_s, *((one + other) / 2 for one, other in pairwise(times_s)), scene.end_s]
    last = len(times_s) - 1
    return TimelineScene(
        scene_id=str(scene.scene_id),
        idx=scene.idx,
        start_s=scene.start_s,
        end_s=scene.end_s,
        keyframes=tuple(
            TimelineKeyframe(
                key=keyframe["key"],
                ts_s=keyframe["ts_s"],
                width=keyframe.get("width", 0),
                height=keyframe.get("height", 0),
            )
            for keyframe in scene.keyframes
        ),
        segments=tuple(_segment(segment) for segment in scene.segments if not segment.get("rejected")),
        people=tuple(
            TimelinePerson(
                person_id=track.external_id,
                name=track.name,
                track_id=str(track.track_id),
                start_s=borders_s[min(track.first, last)],
                end_s=borders_s[min(track.last, last) + 1],
            )
            for track in tracks
        ),
        screen=tuple(
            TimelineLine(text=line.text, ts_s=line.sightings[0]["ts_s"] if line.sightings else scene.start_s)
            for line in lines
        ),
    )


def _segment(segment: Mapping[str, Any]) -> TimelineSegment:
    return TimelineSegment(
        start_s=segment["start_s"],
        end_s=segment["end_s"],
        text=segment["text"],
        words=tuple(
            TimelineWord(start_s=word["start_s"], end_s=word["end_s"], text=word["text"])
            for word in segment.get("words") or ()
        ),
    )
