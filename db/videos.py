"""Videos of a user: accept, find, describe. Every function for requests takes the user and the id that the user chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.ids import video_key
from db.ledger import video_runs
from db.ledger.jobs import WakeUp
from db.ledger.policy import RunPolicy
from db.ledger.stage_states import StageState, newest_stage_states
from db.ledger.subjects import lock_video
from db.tables import Job, JobState, Run, Scene, Video
from shared import graph
from shared.contracts import (
    FailurePage,
    FailureView,
    ListFailures,
    ListVideos,
    ProcessVideo,
    Receipt,
    StageStatus,
    VideoPage,
    VideoStatus,
)
from shared.errors import Conflict, NotFound


def receipt(video: Video, *, accepted: bool) -> Receipt:
    return Receipt(
        video_id=video.external_id,
        user_id=video.user_id,
        state=video.state,  # type: ignore[arg-type]
        run=video.run,
        accepted=accepted,
    )


def accept(session: Session, request: ProcessVideo, policy: RunPolicy) -> tuple[Receipt, list[WakeUp]]:
    """Write the video and its first job in this transaction; again with the same request changes nothing.

    Raises:
        Conflict: the user has deleted a video of this id, or it names another file.
        QuotaExceeded: the user has the maximum number of videos in progress; nothing is stored.
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
        .on_conflict_do_nothing()
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
    wake_ups = video_runs.start_run(session, video, graph.FULL_RUN, {}, policy)
    return receipt(video, accepted=True), wake_ups


def lock(session: Session, video_id: str, user_id: str, *, deleted_too: bool = False) -> Video:
    """The user's video, locked.

    Raises:
        NotFound: no such video of this user (or it is another user's).
    """
    locked = select(Video).with_for_update().execution_options(populate_existing=True)
    return _get(session, locked, video_id, user_id, deleted_too)


def get(session: Session, video_id: str, user_id: str) -> Video:
    """The user's video, unlocked.

    Raises:
        NotFound: no such video of this user.
    """
    return _get(session, select(Video), video_id, user_id)


def _get(
    session: Session, videos: Select[Video], video_id: str, user_id: str, deleted_too: bool = False
) -> Video:
    query = videos.where(Video.user_id == user_id, Video.external_id == video_id)
    video: Video | None = session.scalars(query).one_or_none()
    if video is None or (video.deleted_at is not None and not deleted_too):
        raise NotFound(f"no video {video_id!r}: check the id, or send tasks.video.process first")
    return video


def require_free(session: Session, video_id: str, user_id: str) -> None:
    """Make sure that the user has no video of this id, and has deleted none.

    Raises:
        Conflict: there is one.
    """
    own = select(Video.deleted_at).where(Video.user_id == user_id, Video.external_id == video_id)
    row = session.execute(own).one_or_none()
    if row is not None:
        what = "is there already" if row.deleted_at is None else "was deleted"
        raise Conflict(f"video {video_id} {what}: choose another id")


def list_page(session: Session, request: ListVideos) -> VideoPage:
    """A page of the user's videos that are not deleted, newest first.

    Raises:
        NotFound: ``after`` is no video of this user.
    """
    query = select(Video).where(Video.user_id == request.user_id, Video.deleted_at.is_(None))
    if request.states:
        query = query.where(Video.state.in_(request.states))
    if request.after is not None:
        place = (Video.user_id == request.user_id) & (Video.external_id == request.after)
        row = session.execute(select(Video.created_at, Video.video_id).where(place)).one_or_none()
        if row is None:
            raise NotFound(f"no video {request.after!r}: pass next_after as it came, or leave it out")
        query = query.where(tuple_(Video.created_at, Video.video_id) < tuple_(row.created_at, row.video_id))
    query = query.order_by(Video.created_at.desc(), Video.video_id.desc()).limit(request.limit + 1)
    found = session.scalars(query).all()
    shown = found[: request.limit]
    next_after = shown[-1].external_id if len(found) > request.limit else None
    return VideoPage(videos=tuple(describe(session, shown)), next_after=next_after)


def failures(session: Session, request: ListFailures) -> FailurePage:
    """The jobs that failed for good or left something out in the newest runs of the user's videos, newest first.

    Raises:
        NotFound: no such video of this user.
    """
    query = (
        select(Job, Video.external_id)
        .join(Video, (Video.video_id == Job.video_id) & (Video.run == Job.run))
        .where(
            Job.user_id == request.user_id,
            (Job.state == JobState.FAILED) | Job.not_looked_at.is_not(None),
            Video.user_id == request.user_id,
            Video.deleted_at.is_(None),
        )
    )
    if request.video_id is not None:
        query = query.where(Job.video_id == get(session, request.video_id, request.user_id).video_id)
    if request.after is not None:
        query = query.where(Job.job_id < request.after)
    rows = session.execute(query.order_by(Job.job_id.desc()).limit(request.limit + 1)).all()
    shown = [
        FailureView(
            job_id=job.job_id,
            video_id=video_id,
            run=job.run,
            stage=job.stage,
            part=job.part,
            error_class=job.error_class,
            error=job.error,
            attempts=job.attempt,
            failed_at=job.finished_at,
        )
        for job, video_id in rows[: request.limit]
    ]
    next_after = shown[-1].job_id if len(rows) > request.limit else None
    return FailurePage(failures=tuple(shown), next_after=next_after)


def status(session: Session, video_id: str, user_id: str) -> VideoStatus:
    """The state of a video, stage by stage.

    Raises:
        NotFound: no such video of this user.
    """
    return describe(session, [get(session, video_id, user_id)])[0]


def describe(session: Session, found: Sequence[Video]) -> list[VideoStatus]:
    """The states of several videos, with three statements however many there are."""
    ids = [video.video_id for video in found]
    newest = tuple_(Run.video_id, Run.run).in_([(video.video_id, video.run) for video in found])
    opened = {run.video_id: run for run in session.scalars(select(Run).where(newest))} if found else {}
    states = newest_stage_states(session, ids)
    count = select(Scene.video_id, func.count()).where(Scene.video_id.in_(ids), Scene.live)
    scenes = {name: number for name, number in session.execute(count.group_by(Scene.video_id))}  # noqa: C416
    return [
        VideoStatus(
            video_id=video.external_id,
            user_id=video.user_id,
            storage_key=video.storage_key,
            state=video.state,  # type: ignore[arg-type]
            run=video.run,
            published_run=video.published_run,
            duration_s=video.duration_s,
            scenes=scenes.get(video.video_id, 0),
            error_class=video.error_class,
            error=video.error,
            created_at=video.created_at,
            indexed_at=video.indexed_at,
            stages=_stages(opened.get(video.video_id), states.get(video.video_id, {})),
        )
        for video in found
    ]


def _stages(run: Run | None, states: Mapping[str, StageState]) -> tuple[StageStatus, ...]:
    planned = [graph.STAGES[name] for name in graph.FULL_RUN] if run is None else video_runs.stages_of(run)
    pending = StageState("pending", parts=0, ended=0, progress=0.0, error_class=None, error=None, attempts=0)
    shown = [(stage.name, states.get(stage.name, pending)) for stage in planned]
    return tuple(
        StageStatus(
            stage=name,
            state=state.state,
            parts=state.parts,
            parts_done=state.ended,
            progress=float(state.progress),
            error_class=state.error_class,
            error=state.error,
            attempts=state.attempts,
            not_looked_at=state.not_looked_at,
        )
        for name, state in shown
    )


def next_revision(session: Session, video_id: str) -> int:
    """A sidecar revision no other attempt gets."""
    video = lock_video(session, video_id)
    if video is None:
        raise NotFound(f"no video {video_id!r}")
    video.revision += 1
    return video.revision


def set_media(session: Session, video_id: str, duration_s: float, media: dict[str, Any]) -> None:
    """Store what the probe found."""
    video = lock_video(session, video_id)
    if video is not None:
        video.duration_s, video.media = duration_s, media
