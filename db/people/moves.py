"""Moves tracks to another person in batches: for a merge, and for undoing a merge or a split.

The request moves the first batch, a job (stage ``move``) the others, one transaction per batch. Each batch checks the fence
of the job and locks the videos of its tracks, so a worker crash loses nothing. Meanwhile the event marks both people: other
moves of their tracks are refused, and matching skips tracks that are being moved. Lock order as in ``db.people``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import any_, delete, func, insert, literal, select, text, tuple_, update
from sqlalchemy.orm import Session

from db.expressions import uuids
from db.faces.profiles import make_profile
from db.ledger import jobs, person_runs, subjects
from db.ledger.jobs import WakeUp
from db.ledger.policy import RunPolicy
from db.tables import LIVE, FaceTrack, Job, MovedTrack, Person
from shared import graph
from shared.errors import Conflict

#: Tracks per transaction: of the request, and of each of the job.
FIRST, BATCH = 250, 1000


#: merge: all tracks of the source; unmerge: those that the merge (the event) moved; unsplit: all of the source.
Kind = Literal["merge", "unmerge", "unsplit"]


@dataclass(frozen=True, kw_only=True)
class Move:
    """A move of tracks from one person to another of the same user."""

    kind: Kind
    #: The merge or split that is done or undone.
    event_id: int
    user_id: str
    source: str
    target: str

    @property
    def by(self) -> str:
        """``decided_by`` of the moved tracks: after an undo matching decides again."""
        return "human" if self.kind == "merge" else "machine"


def read_move(payload: Mapping[str, Any]) -> Move:
    return Move(**payload["move"])


def require_still(*people: Person) -> None:
    """Make sure that no tracks are being moved from or to these people.

    Raises:
        Conflict: some are.
    """
    for person in people:
        if person.moving_event is not None:
            raise Conflict(
                f"{person.name!r} is being merged or split: try again when its state is no longer 'working'"
            )


def begin(
    session: Session, kind: Kind, event_id: int, source: Person, target: Person, policy: RunPolicy
) -> list[WakeUp]:
    """Move the first tracks, and queue a job if there are more. Both people are locked. Returns wake-up messages."""
    move = Move(
        kind=kind,
        event_id=event_id,
        user_id=source.user_id,
        source=source.person_id,
        target=target.person_id,
    )
    left = MovedTrack.event_id == event_id if kind == "unmerge" else FaceTrack.person_id == source.person_id
    total = session.scalars(select(func.count()).where(left)).one()
    if step(session, move, FIRST) < FIRST:
        return end(session, move, policy)
    source.moving_event = target.moving_event = move.event_id
    person_runs.stop(session, target)
    target.run += 1
    session.flush()
    payload = {"move": asdict(move), "total": total, "done": FIRST}
    return jobs.insert(session, [jobs.make_job(target, graph.MOVE, policy, payload=payload)])


def step(session: Session, move: Move, limit: int = BATCH) -> int:
    """Move up to ``limit`` tracks. Returns the number of tracks read; fewer than ``limit``: none are left."""
    if move.kind == "unmerge":
        key = (MovedTrack.event_id, MovedTrack.video_id, MovedTrack.track_id)
        chosen = (
            select(*key)
            .where(MovedTrack.event_id == move.event_id)
            .order_by(MovedTrack.video_id, MovedTrack.track_id)
            .limit(limit)
        )
        taken = delete(MovedTrack).where(tuple_(*key).in_(chosen))
        rows = session.execute(taken.returning(MovedTrack.track_id, MovedTrack.video_id)).all()
    else:
        tracks = (
            select(FaceTrack.track_id, FaceTrack.video_id)
            .where(FaceTrack.person_id == move.source)
            .order_by(FaceTrack.video_id, FaceTrack.track_id)
            .limit(limit)
        )
        rows = session.execute(tracks).all()
    if not rows:
        return 0
    subjects.lock_videos(session, {row.video_id for row in rows})
    # As they are now that their videos are locked.
    theirs = FaceTrack.track_id == any_(uuids([row.track_id for row in rows]))
    moved = session.execute(
        update(FaceTrack)
        .where(theirs, FaceTrack.person_id == move.source)
        .values(person_id=move.target, decided_by=move.by)
        .returning(FaceTrack.track_id, FaceTrack.scene_id)
        .execution_options(synchronize_session=False)
    ).all()
    if move.kind == "merge":
        note(session, move.event_id, [row.track_id for row in moved])
    values = {"people": [move.source, move.target], "scenes": list({row.scene_id for row in moved})}
    for statement in _SHOW:
        session.execute(text(statement), values)
    session.expire_all()
    return len(rows)


#: As ``tracks.refresh_scene_people`` for two people only, whose tracks in these scenes have changed, in few statements.
_SHOW = (
    "DELETE FROM scene_people WHERE scene_id = ANY(CAST(:scenes AS uuid[])) AND person_id = ANY(:people)",
    """
    INSERT INTO scene_people (scene_id, person_id, user_id, confidence, frame_count)
    SELECT s.scene_id, t.person_id, s.user_id, max(t.similarity), sum(t.votes)
    FROM scenes s JOIN face_tracks t ON t.scene_id = s.scene_id AND t.run = s.face_run AND t.user_id = s.user_id
    JOIN people p ON p.person_id = t.person_id AND p.user_id = t.user_id AND p.deleted_at IS NULL
    WHERE s.scene_id = ANY(CAST(:scenes AS uuid[])) AND s.live AND t.person_id = ANY(:people)
    GROUP BY s.scene_id, t.person_id, s.user_id
    """,
    "UPDATE scenes SET people_changed = true WHERE scene_id = ANY(CAST(:scenes AS uuid[])) AND live",
)


def note(session: Session, event_id: int, track_ids: list[UUID]) -> None:
    """Store which tracks a merge has moved."""
    found = select(literal(event_id), FaceTrack.video_id, FaceTrack.track_id, FaceTrack.user_id).where(
        FaceTrack.track_id == any_(uuids(track_ids))
    )
    session.execute(insert(MovedTrack).from_select(["event_id", "video_id", "track_id", "user_id"], found))


def end(session: Session, move: Move, policy: RunPolicy) -> list[WakeUp]:
    """All tracks are moved: look for both people in all videos again. Returns wake-up messages."""
    people = {key: subjects.lock_person(session, key) for key in sorted((move.source, move.target))}
    for person in people.values():
        if person is not None:
            person.moving_event = None
    session.flush()
    wake_ups: list[WakeUp] = []
    for key in (move.source, move.target):
        person = people[key]
        # The source of a merge, or of a split that is undone, is part of the target now.
        if person is not None and person.deleted_at is None and person.merged_into is None:
            if move.kind == "unmerge":
                make_profile(session, key)
            wake_ups += person_runs.start(session, person, policy)
    return wake_ups


def under_way(session: Session, user_id: str, ids: set[str]) -> bool:
    """Whether tracks are being moved from or to one of these people of the user."""
    moving = (Job.queue == graph.MOVE.queue) & (Job.stage == graph.MOVE.name) & Job.state.in_(LIVE)
    found = session.scalars(select(Job.payload).where(moving, Job.account == user_id))
    return any(ids & {move.source, move.target} for move in map(read_move, found))
