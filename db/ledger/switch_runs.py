"""Runs of switches of models: plan jobs, some at a time, for published scenes that lack a vector of the new model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, func, select, text
from sqlalchemy.orm import Session

from db.active_models import KEPT, models_of
from db.expressions import NOW
from db.ledger import jobs
from db.ledger.jobs import WakeUp, make_job, run_jobs
from db.ledger.policy import RunPolicy
from db.tables import LIVE, Job, JobState, ModelSwitch
from db.vectors import ModelRow
from shared import graph

#: Maximum number of waiting jobs: the next ones are planned when half of them are done.
_WINDOW = 128
#: After all videos in progress, and after matching.
_PRIORITY = -2
#: A run may be published this long after its ``indexed_at``: younger videos are checked again.
_LATE = timedelta(minutes=10)
_VIDEOS_AT_ONCE = 20
#: Maximum number of videos per transaction, which locks the switch.
_STRETCH = 2_000
#: The period over which the speed is measured, seconds.
_SPEED_S = 120


@dataclass(frozen=True)
class SwitchProgress:
    """Progress of a switch."""

    #: Jobs that failed for good, and the first one's error.
    failed: int
    error: str | None
    #: Recent scenes per second; None: no recent work.
    scenes_per_s: float | None


def count(session: Session, kind: str, model: ModelRow) -> int:
    """The number of published scenes with a vector of a model."""
    statement = text(
        "SELECT count(*) FROM scenes s WHERE s.live AND EXISTS (SELECT 1 FROM embeddings e"
        f" WHERE e.scene_id = s.scene_id AND e.model_id = {int(model.model_id)} AND e.run = s.{_run(kind)})"
    )
    return int(session.execute(statement).scalar_one())


def _run(kind: str) -> str:
    return "text_run" if kind == "text" else "vision_run"


def lacking(
    session: Session, kind: str, old: ModelRow, new: ModelRow, video_ids: list[str]
) -> list[Row[Any]]:
    """Published scenes of these videos that have a vector of ``old`` and none of ``new``: video_id, user_id, idxs.

    Without those whose words are gone since: they can't be embedded.
    """
    something = "AND s.transcript <> ''" if kind == "text" else ""
    has = f"EXISTS (SELECT 1 FROM embeddings e WHERE e.scene_id = s.scene_id AND e.model_id = {{}} AND e.run = s.{_run(kind)})"
    statement = text(
        "SELECT s.video_id, s.user_id, array_agg(s.idx ORDER BY s.idx) AS idxs FROM scenes s"
        f" WHERE s.video_id = ANY(:videos) AND s.live {something} AND {has.format(int(old.model_id))}"
        f" AND NOT {has.format(int(new.model_id))} GROUP BY s.video_id, s.user_id ORDER BY s.video_id"
    )
    return list(session.execute(statement, {"videos": video_ids}))


def advance(session: Session, switch: ModelSwitch, policy: RunPolicy) -> list[WakeUp]:
    """Plan the next jobs; the switch is ready when no scene lacks a vector. Harmless at any time."""
    if switch.state not in KEPT:
        return []
    unfinished = (run_jobs(switch), Job.state.in_((*LIVE, JobState.FAILED)))
    counts = session.execute(select(Job.state, func.count()).where(*unfinished).group_by(Job.state))
    states = {state: count for state, count in counts}  # noqa: C416
    live = sum(states.get(state, 0) for state in LIVE)
    if live >= _WINDOW // 2:
        return []
    _forget_done(session, switch)
    planned, at_end = _plan_more(session, switch, policy, _WINDOW - live, stretch=_STRETCH)
    if at_end and not planned and not states:
        _look_again(session, switch)
        planned, at_end = _plan_more(session, switch, policy, _WINDOW)
        if at_end and not planned and switch.state == "building":
            switch.state, switch.ready_at = "ready", NOW
    session.flush()
    return jobs.insert(session, planned)


def _forget_done(session: Session, switch: ModelSwitch) -> None:
    """Delete done jobs: a large archive has hundreds of thousands, and the end of every job counts them."""
    old = (Job.state == JobState.DONE) & (Job.finished_at < NOW - timedelta(seconds=_SPEED_S))
    session.execute(delete(Job).where(run_jobs(switch), old))


def _look_again(session: Session, switch: ModelSwitch) -> None:
    """Check recently indexed videos again: they may have become visible before the current position."""
    if switch.seen_until is None:
        return
    now: datetime = session.execute(select(NOW)).scalar_one()
    # The position may have been reached long ago, while the last jobs ran.
    back_to = min(switch.seen_until, now) - _LATE if switch.state == "building" else now - _LATE
    if switch.seen_until > back_to:
        switch.seen_until, switch.seen_video = back_to, ""


def _plan_more(
    session: Session, switch: ModelSwitch, policy: RunPolicy, most: int, *, stretch: int | None = None
) -> tuple[list[Job], bool]:
    """Create jobs for the videos after the current position, and advance it. Also returns whether no video is left.

    Ends after ``most`` jobs (and the rest of that video's), or after ``stretch`` videos.
    """
    old, new = models_of(session, switch)
    stage = graph.TEXT_REEMBED if switch.kind == "text" else graph.VISION_REEMBED
    part = session.execute(
        select(func.coalesce(func.max(Job.part), -1)).where(run_jobs(switch), Job.stage == stage.name)
    ).scalar_one()
    planned: list[Job] = []
    looked_at = 0
    while stretch is None or looked_at < stretch:
        videos = session.execute(
            text(
                "SELECT video_id, indexed_at FROM videos WHERE indexed_at IS NOT NULL AND deleted_at IS NULL"
                " AND (CAST(:until AS timestamptz) IS NULL OR (indexed_at, video_id) > (CAST(:until AS timestamptz), :video))"
                " ORDER BY indexed_at, video_id LIMIT :count"
            ),
            {"until": switch.seen_until, "video": switch.seen_video, "count": _VIDEOS_AT_ONCE},
        ).all()
        if not videos:
            return planned, True
        looked_at += len(videos)
        ids = [video.video_id for video in videos]
        todo = {row.video_id: row for row in lacking(session, switch.kind, old, new, ids)}
        for video in videos:
            switch.seen_until, switch.seen_video = video.indexed_at, video.video_id
            row = todo.get(video.video_id)
            if row is None:
                continue
            for first in range(0, len(row.idxs), stage.batch):
                some = row.idxs[first : first + stage.batch]
                part += 1
                payload = {"video_id": row.video_id, "first_idx": some[0], "last_idx": some[-1]}
                values = {"user_id": row.user_id, "model_id": new.model_id, "priority": _PRIORITY}
                planned.append(make_job(switch, stage, policy, part=part, payload=payload, **values))
            if len(planned) >= most:
                return planned, False
    return planned, False


def find_open(session: Session) -> list[str]:
    """Ids of the switches that may have something to plan."""
    return [
        str(key) for key in session.scalars(select(ModelSwitch.switch_id).where(ModelSwitch.state.in_(KEPT)))
    ]


def progress(session: Session, switch: ModelSwitch) -> SwitchProgress:
    of_failed = select(func.count(), func.min(Job.error)).where(
        run_jobs(switch), Job.state == JobState.FAILED
    )
    failed, error = session.execute(of_failed).one()
    recent = (Job.state == JobState.DONE) & (Job.finished_at > NOW - timedelta(seconds=_SPEED_S))
    made = func.sum(Job.result["scenes"].as_integer())
    took_s = func.extract("epoch", NOW - func.min(Job.started_at))
    scenes, seconds = session.execute(select(made, took_s).where(run_jobs(switch), recent)).one()
    return SwitchProgress(failed, error, float(scenes) / float(seconds) if scenes and seconds else None)


def retry(session: Session, switch: ModelSwitch) -> list[WakeUp]:
    """Queue the failed jobs again."""
    return jobs.requeue_failed(session, run_jobs(switch))
