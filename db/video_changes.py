"""What has changed of a user's videos since an earlier answer: nothing is lost in between, whatever is committed when.

Each change of a video's row sets ``videos.changed`` to its transaction. ``as_of`` is a snapshot of Postgres: the first
transaction that had not begun, and those that were open, joined by dots. A row has changed since if its transaction is
one of these, or a later one. So a transaction that began before an answer and commits after it is in the next one.

The state of a stage is in ``jobs``, and may change without the video's row: while a video is in progress, never after its end
(``db.ledger.video_runs._end_run`` changes the row with the last job). So an answer also has videos with a running job,
those that the caller names because it was told of them, and, if it names none, all that are in progress.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Select, any_, func, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from db.expressions import array
from db.tables import Job, JobState, PeopleEvent, Video
from db.videos import describe
from shared.contracts import VideoChanges, WatchVideos

#: Open transactions that ``as_of`` names; with more it is the oldest of them, and later answers repeat some changes.
_MAX_OPEN = 64
_SNAPSHOT = text(
    """
    SELECT pg_snapshot_xmin(now)::text, pg_snapshot_xmax(now)::text, ARRAY(SELECT pg_snapshot_xip(now)::text)
    FROM (SELECT pg_current_snapshot() AS now) AS taken
    """
)
_IN_PROGRESS = text("videos.state IN ('uploaded', 'processing')")


def read(session: Session, request: WatchVideos) -> VideoChanges:
    """The user's newest videos and those in progress, or what has changed since ``request.since``.

    The session's transaction must see one snapshot (``db.engine.reading_as(..., snapshot=True)``).
    """
    oldest, newest, open_ones = session.execute(_SNAPSHOT).one()
    as_of = ".".join([newest, *open_ones]) if len(open_ones) <= _MAX_OPEN else oldest
    changed = None if request.since is None else _changed(session, request, request.since, int(newest))
    found = _newest(session, request) if changed is None else changed
    of_user = select(func.coalesce(func.max(PeopleEvent.event_id), 0)).where(
        PeopleEvent.user_id == request.user_id
    )
    return VideoChanges(
        as_of=as_of,
        snapshot=changed is None,
        videos=tuple(describe(session, [video for video in found if video.deleted_at is None])),
        deleted=tuple(video.external_id for video in found if video.deleted_at is not None),
        last_event_id=session.scalars(of_user).one(),
    )


def _changed(session: Session, request: WatchVideos, since: str, next_xid: int) -> list[Video] | None:
    """The videos to read again; None: too many, or ``since`` is not of this server."""
    first, *open_then = map(int, since.split("."))
    if first > next_xid:
        return None
    mine, limit = select(Video).where(Video.user_id == request.user_id), request.limit
    # A restored row may have the number of a transaction that is still to come.
    later = mine.where(Video.changed >= first, Video.changed < next_xid).limit(limit + 1)
    found = _by_key(session, later)
    if open_then:
        late = mine.where(Video.changed == any_(literal(open_then, ARRAY(BigInteger)))).limit(limit + 1)
        found |= _by_key(session, late)
    if request.keys is None:
        found |= _by_key(session, mine.where(_IN_PROGRESS).limit(limit + 1))
    if len(found) > limit:
        return None
    running = select(Job.video_id).where(Job.state == JobState.RUNNING, Job.user_id == request.user_id)
    keys = {*(request.keys or ()), *filter(None, session.scalars(running))} - found.keys()
    if keys:
        found |= _by_key(session, mine.where(Video.video_id == any_(array(keys))))
    return list(found.values())


def _newest(session: Session, request: WatchVideos) -> list[Video]:
    mine = select(Video).where(Video.user_id == request.user_id, Video.deleted_at.is_(None))
    order = (Video.created_at.desc(), Video.video_id.desc())
    found = _by_key(session, mine.order_by(*order).limit(request.limit))
    # Those in work before those that wait.
    found |= _by_key(session, mine.where(_IN_PROGRESS).order_by(Video.state, *order).limit(request.limit))
    return sorted(found.values(), key=lambda video: (video.created_at, video.video_id), reverse=True)


def _by_key(session: Session, query: Select[Video]) -> dict[str, Video]:
    return {video.video_id: video for video in session.scalars(query)}
