"""Kinds of subjects: how each is locked, advanced, and found when it is stuck.

The row of a subject is the first lock of every transaction that changes its jobs, and names the current run.
``skip_locked``: returns None also if another transaction has the row locked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import any_, select
from sqlalchemy.orm import Session

from db.expressions import array
from db.ledger import jobs, model_runs, person_runs, switch_runs, video_runs, webhook_runs
from db.ledger.jobs import Subject, SubjectRow, WakeUp, subject_of
from db.ledger.policy import RunPolicy
from db.tables import Job, ModelSwitch, Person, Video, Webhook


def lock_video(session: Session, video_id: str, *, skip_locked: bool = False) -> Video | None:
    """The video's row, locked."""
    return session.get(Video, video_id, populate_existing=True, with_for_update={"skip_locked": skip_locked})


def lock_videos(session: Session, video_ids: Collection[str]) -> dict[str, Video]:
    """As ``lock_video``, several at once, by id."""
    query = select(Video).where(Video.video_id == any_(array(video_ids))).order_by(Video.video_id)
    found = session.scalars(query.with_for_update(), execution_options={"populate_existing": True})
    return {video.video_id: video for video in found}


def lock_person(session: Session, person_id: str, *, skip_locked: bool = False) -> Person | None:
    """The person's row, locked; a video's transaction may still write rows that refer to it."""
    how = {"key_share": True, "skip_locked": skip_locked}
    return session.get(Person, person_id, populate_existing=True, with_for_update=how)


def lock_switch(session: Session, switch_id: str, *, skip_locked: bool = False) -> ModelSwitch | None:
    """The switch's row, locked; a transaction that only prevents discarding need not wait."""
    how = {"key_share": True, "skip_locked": skip_locked}
    return session.get(ModelSwitch, int(switch_id), populate_existing=True, with_for_update=how)


def lock_webhook(session: Session, webhook_id: str, *, skip_locked: bool = False) -> Webhook | None:
    """The webhook's row, locked; a transaction that records an event for it need not wait."""
    how = {"key_share": True, "skip_locked": skip_locked}
    return session.get(Webhook, webhook_id, populate_existing=True, with_for_update=how)


@dataclass(frozen=True)
class Kind:
    """Functions for subjects of one kind."""

    lock: Callable[..., SubjectRow | None]
    #: Start what follows the end of a job; harmless at any time.
    advance: Callable[[Session, Any, RunPolicy], list[WakeUp]]
    #: Some ids of subjects that something has to advance.
    find_stuck: Callable[[Session], list[str]]


KINDS: Mapping[str, Kind] = {
    "video": Kind(lock_video, video_runs.advance, video_runs.find_stuck),
    "person": Kind(lock_person, person_runs.advance, person_runs.find_stuck),
    "switch": Kind(lock_switch, switch_runs.advance, switch_runs.find_open),
    "webhook": Kind(lock_webhook, webhook_runs.advance, webhook_runs.find_due),
    "model": Kind(model_runs.lock, model_runs.advance, model_runs.find_stuck),
}


def lock(session: Session, subject: Subject, *, skip_locked: bool = False) -> SubjectRow | None:
    """The subject's row, locked."""
    return KINDS[subject.kind].lock(session, subject.id, skip_locked=skip_locked)


def advance(session: Session, row: SubjectRow, policy: RunPolicy) -> list[WakeUp]:
    """Start what follows the end of jobs of this subject, whose row is locked."""
    return KINDS[subject_of(row).kind].advance(session, row, policy)


def advance_after(session: Session, row: SubjectRow, ended: Job, policy: RunPolicy) -> list[WakeUp]:
    """As ``advance``, after the end of this job.

    While another part of its stage waits or runs, nothing can follow: the parts are not counted each time one of them ends.
    """
    if not isinstance(row, ModelSwitch) and jobs.has_live(session, ended):
        return []
    return advance(session, row, policy)
