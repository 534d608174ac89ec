"""States of a run's stages, summed over the jobs of their parts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Double, Integer, cast, func, select
from sqlalchemy.orm import Session

from db.tables import TERMINAL, Job, JobState, Video


@dataclass(frozen=True)
class StageState:
    """A stage of one run, summed over its parts."""

    state: str
    parts: int
    ended: int
    progress: float
    error_class: str | None
    error: str | None
    attempts: int
    #: Items (keyframes, scenes, windows of audio) that are left out, as each attempt at them died.
    not_looked_at: int = 0

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def has_outputs(self) -> bool:
        """Whether the stage has outputs in this run."""
        return self.state in (JobState.DONE, JobState.REUSED)


# The state of a stage is the first of these that a part has.
_SHOWN = (
    JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED, JobState.DONE, JobState.REUSED
)  # fmt: skip


def stage_states(session: Session, video_id: str, run: int) -> dict[str, StageState]:
    """The stages of a run that have jobs."""
    return _states_by_video(session, Job.video_id == video_id, Job.run == run).get(video_id, {})


def newest_stage_states(session: Session, video_ids: Collection[str]) -> dict[str, dict[str, StageState]]:
    """The stages of some videos' newest runs that have jobs, by video."""
    newest = select(Video.run).where(Video.video_id == Job.video_id).scalar_subquery()
    return _states_by_video(session, Job.video_id.in_(video_ids), Job.run == newest)


def _states_by_video(session: Session, *which: ColumnElement[bool]) -> dict[str, dict[str, StageState]]:
    keys = (Job.video_id, Job.stage, Job.state)
    left_out = cast(Job.not_looked_at["items"].as_string(), Integer)
    # Of stages whose parts differ: the share of the stage's progress that each part has.
    share = cast(Job.payload["share"].astext, Double)
    sums = (
        func.count().label("parts"),
        func.count(left_out).label("gaps"),
        func.coalesce(func.sum(left_out), 0).label("not_looked_at"),
        func.sum(Job.progress).label("progress"),
        func.sum(share).label("share"),
        func.sum(share * Job.progress).label("shared"),
        *(func.max(value).label(value.key) for value in (Job.error_class, Job.error, Job.attempt)),
    )
    found: dict[tuple[str, str], list[Any]] = {}
    for row in session.execute(select(*keys, *sums).where(*which).group_by(*keys)):
        found.setdefault((row.video_id, row.stage), []).append(row)
    states: dict[str, dict[str, StageState]] = {}
    for (video_id, stage), group in found.items():
        group.sort(key=lambda row: _SHOWN.index(row.state))
        shown = _shown(group)
        parts = sum(row.parts for row in group)
        ended = sum(row.parts for row in group if row.state in TERMINAL)
        running = sum(row.progress for row in group if row.state not in TERMINAL)
        shares = [
            row.share if row.state in TERMINAL else row.shared for row in group if row.share is not None
        ]
        states.setdefault(video_id, {})[stage] = StageState(
            state=shown,
            parts=parts,
            ended=ended,
            progress=min(1.0, sum(shares)) if shares else (ended + running) / parts,
            error_class=next((row.error_class for row in group if row.error_class), None),
            error=next((row.error for row in group if row.error), None),
            attempts=max(row.attempt for row in group),
            not_looked_at=sum(row.not_looked_at for row in group),
        )
    return states


def _shown(group: list[Any]) -> str:
    """The state of a stage by the sums of its parts, the first state first.

    Parts that are left out don't count as failed beside others that are done.
    """
    counted = [row for row in group if row.state != JobState.FAILED or row.parts > row.gaps]
    has_done = any(row.state == JobState.DONE for row in counted)
    return str((counted if has_done else group)[0].state)
