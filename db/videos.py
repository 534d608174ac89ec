"""Videos of a user: accept, find, describe. Every function for requests takes the user and the id that the user chose."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import jobs, runs
from db.ids import video_key
from db.jobs import Bell
from db.runs import Plan, stage_states
from db.tables import Run, Scene, Video
from shared import graph
from shared.contracts import ProcessVideo, Receipt, StageStatus, VideoStatus
from shared.errors import Conflict, NotFound


def receipt(video: Video, *, accepted: bool) -> Receipt:
    return Receipt(
        video_id=video.external_id,
        user_id=video.user_id,
        state=video.state,  # type: ignore[arg-type]
        run=video.run,
        accepted=accepted,
    )


def accept(session: Session, request: ProcessVideo, plan: Plan) -> tuple[Receipt, list[Bell]]:
    """Write the video and its first job in this transaction; again with the same request changes nothing.

    Raises:
        Conflict: the user has deleted a video of this id, or it names another file.
        QuotaExceeded: the user has as many videos in work as one may have; nothing is stored.
    """
    session.execute(
        insert(Video)
        .values(
            video_id=video_key(request.user_id, request.video_id),
            user_id=request.user_id,
            external_id=request.video_id,
            storage_key=request.storage_key,
            priority=request.priority,
        )
        .on_conflict_do_nothing(index_elements=[Video.user_id, Video.external_id])
    )
    video = lock(session, request.video_id, request.user_id, deleted_too=True)
    if video.deleted_at is not None:
        raise Conflict(f"video {video.external_id} was deleted: send the file under a new video id")
    if video.run > 0:
        if video.storage_key != request.storage_key:
            raise Conflict(
                f"video {video.external_id} already is {video.storage_key!r}: delete it, or send this file under a new id"
            )
        return receipt(video, accepted=False), []
    bells = runs.start_run(session, video, graph.FULL_RUN, {}, plan)
    return receipt(video, accepted=True), bells


def lock(session: Session, video_id: str, user_id: str, *, deleted_too: bool = False) -> Video:
    """The user's video, locked.

    Raises:
        NotFound: no such video of this user (another user's video is not told apart).
    """
    video = session.scalars(
        select(Video).where(Video.user_id == user_id, Video.external_id == video_id).with_for_update(),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if video is None or (video.deleted_at is not None and not deleted_too):
        raise NotFound(f"no video {video_id!r}: check the id, or send tasks.video.process first")
    return video


def get(session: Session, video_id: str, user_id: str) -> Video:
    """The user's video, unlocked.

    Raises:
        NotFound: no such video of this user.
    """
    video = session.scalars(
        select(Video).where(Video.user_id == user_id, Video.external_id == video_id)
    ).one_or_none()
    if video is None or video.deleted_at is not None:
        raise NotFound(f"no video {video_id!r}: check the id, or send tasks.video.process first")
    return video


def list_ids(session: Session, user_id: str, *, limit: int = 1000) -> list[str]:
    """The user's videos, newest first."""
    return list(
        session.scalars(
            select(Video.external_id)
            .where(Video.user_id == user_id, Video.deleted_at.is_(None))
            .order_by(Video.created_at.desc())
            .limit(limit)
        )
    )


def published_ids(session: Session, user_id: str) -> list[str]:
    """The user's videos of which something is published, oldest first."""
    return list(
        session.scalars(
            select(Video.external_id)
            .where(Video.user_id == user_id, Video.deleted_at.is_(None), Video.published_run.is_not(None))
            .order_by(Video.created_at, Video.video_id)
        )
    )


def status(session: Session, video_id: str, user_id: str) -> VideoStatus:
    """Where a video stands, stage by stage.

    Raises:
        NotFound: no such video of this user.
    """
    video = get(session, video_id, user_id)
    states = stage_states(session, video.video_id, video.run)
    run = session.get(Run, (video.video_id, video.run))
    scenes = session.scalar(
        select(func.count()).select_from(Scene).where(Scene.video_id == video.video_id, Scene.live)
    )
    planned = [graph.STAGES[name] for name in graph.FULL_RUN] if run is None else runs.stages_of(run)
    stages = []
    for stage in planned:
        state = states.get(stage.name)
        if state is None:
            stages.append(
                StageStatus(
                    stage=stage.name,
                    state="pending",
                    parts=0,
                    parts_done=0,
                    progress=0.0,
                )
            )
            continue
        stages.append(
            StageStatus(
                stage=stage.name,
                state=state.state,
                parts=state.parts,
                parts_done=state.ended,
                progress=float(state.progress),
                error_class=state.error_class,
                error=state.error,
                attempts=state.attempts,
            )
        )
    return VideoStatus(
        video_id=video.external_id,
        user_id=video.user_id,
        storage_key=video.storage_key,
        state=video.state,  # type: ignore[arg-type]
        run=video.run,
        published_run=video.published_run,
        duration_s=video.duration_s,
        scenes=scenes or 0,
        error_class=video.error_class,
        error=video.error,
        created_at=video.created_at,
        indexed_at=video.indexed_at,
        stages=tuple(stages),
    )


def next_revision(session: Session, video_id: str) -> int:
    """A sidecar revision no other attempt gets."""
    video = jobs.lock_video(session, video_id)
    if video is None:
        raise NotFound(f"no video {video_id!r}")
    video.revision += 1
    return video.revision


def set_media(session: Session, video_id: str, duration_s: float, media: dict[str, Any]) -> None:
    """Store what the probe found."""
    video = jobs.lock_video(session, video_id)
    if video is not None:
        video.duration_s, video.media = duration_s, media
