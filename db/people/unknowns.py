"""Unknown people: tracks of strangers seen repeatedly become "unknown 1, 2, ..." of the user, to be named, merged or split."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from pgvector import HalfVector
from sqlalchemy import any_, delete, select, text, update
from sqlalchemy.orm import Session

from db.expressions import uuids
from db.faces.profiles import make_profile
from db.faces.tracks import as_array, face_metrics, match_tracks, refresh_scene_people
from db.faces.vote import FaceRule, Float64, similarities
from db.ledger.subjects import lock_person
from db.locks import AdvisoryLock
from db.tables import FaceTrack, Person, PersonProfile, Video

#: Minimum number of faces of an unknown person: a single one may be a false detection.
MIN_FACES = 2
#: A track's model and vector [dim].
TrackVector = tuple[int, Float64]
#: Maximum number of strangers' tracks that each track is compared with in the transaction, the most similar first.
_MAX_SIMILAR = 1_000
#: What the similarity computed by Postgres may differ from the one that decides.
_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Similar:
    """Strangers that may be the same people as some tracks; looked up before the transaction that decides."""

    #: Transactions from this one on may have changed tracks that were not seen.
    from_transaction: int
    track_ids: frozenset[UUID]
    #: The tracks that they are similar to.
    looked_up: frozenset[UUID]


def strangers_of(session: Session, user_id: str, video_id: str) -> dict[UUID, TrackVector]:
    """The tracks of a video that are strangers now."""
    query = select(FaceTrack.track_id, FaceTrack.model_id, FaceTrack.vec).where(
        FaceTrack.video_id == video_id, FaceTrack.user_id == user_id, *_STRANGER
    )
    return {row.track_id: (row.model_id, as_array([row.vec])[0]) for row in session.execute(query)}


def find_similar(
    session: Session, user_id: str, tracks: Mapping[UUID, TrackVector], rule: FaceRule
) -> Similar:
    """Strangers of a user that are similar to some tracks; it locks nothing.

    Postgres compares every stranger of the user: call it before the transaction that assigns the tracks.
    """
    oldest = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    from_transaction = session.scalars(oldest).one()
    metrics, found = face_metrics(session), set[UUID]()
    for model_id, vector in tracks.values():
        metric = metrics[model_id]
        compare = FaceTrack.vec.cosine_distance if metric == "cosine" else FaceTrack.vec.l2_distance
        distance = compare(HalfVector(vector))
        near = (FaceTrack.model_id == model_id, distance <= 1.0 - rule.least(metric) + _TOLERANCE)
        of_user = (FaceTrack.user_id == user_id, *_STRANGER)
        query = select(FaceTrack.track_id).where(*of_user, *near).order_by(distance).limit(_MAX_SIMILAR)
        found.update(session.scalars(query))
    return Similar(from_transaction=from_transaction, track_ids=frozenset(found), looked_up=frozenset(tracks))


_STRANGER = (FaceTrack.person_id.is_(None), FaceTrack.decided_by.is_(None))


#: The highest number of a user, in the words of the index ``ix_people_numbers``.
_LAST_NUMBER = text(
    "SELECT max(CAST(substring(name from '^unknown ([0-9]{1,6})$') AS integer)) FROM people WHERE user_id = :user_id"
)


def assign_people(
    session: Session,
    video: Video,
    rule: FaceRule,
    scene_ids: Sequence[UUID] | None = None,
    similar: Similar | None = None,
) -> None:
    """Assign the tracks of a video, whose row is locked, to people, and cluster strangers seen more than once.

    ``similar``: of the tracks, as found before; without it, all strangers of the user are compared while the rows are locked.
    """
    changed = match_tracks(session, video, rule, scene_ids)
    lock_user(session, video.user_id)
    unknown = session.scalars(
        select(Person.person_id).where(Person.person_id.in_(changed), Person.kind == "unknown")
    ).all()
    for person_id in sorted(unknown):
        make_profile(session, person_id)
    _cluster_unknowns(session, video, rule, scene_ids, similar)


def lock_user(session: Session, user_id: str) -> None:
    """Lock the numbering of a user's unknown people; the last lock of a transaction."""
    session.execute(
        text("SELECT pg_advisory_xact_lock(:key, hashtext(:user))"),
        {"key": AdvisoryLock.UNKNOWN_PEOPLE.value, "user": user_id},
    )


def leave_video(session: Session, video_id: str) -> bool:
    """Remove a deleted video's tracks from the profile of one person.

    Call it, each time in a new transaction, until it returns False. Photos are not affected: the profile of a
    person with photos does not use tracks.
    """
    learned = (
        select(FaceTrack.person_id)
        .join(PersonProfile, PersonProfile.person_id == FaceTrack.person_id)
        .where(FaceTrack.video_id == video_id, PersonProfile.tracks > 0)
        .order_by(FaceTrack.person_id)
        .limit(1)
    )
    person_id = session.scalars(learned).one_or_none()
    if person_id is None:
        return False
    person = lock_person(session, person_id)
    if person is not None:
        lock_user(session, person.user_id)
        session.execute(
            delete(FaceTrack).where(FaceTrack.video_id == video_id, FaceTrack.person_id == person_id)
        )
        make_profile(session, person_id)
    return True


def _cluster_unknowns(
    session: Session,
    video: Video,
    rule: FaceRule,
    scene_ids: Sequence[UUID] | None,
    similar: Similar | None,
) -> None:
    """Create unknown people from similar strangers in this video and the user's other videos.

    A track joins the first group with a similar leader, the longest track first; of two tracks of one scene only one.
    """
    of_video = (FaceTrack.video_id == video.video_id, FaceTrack.user_id == video.user_id)
    new = select(FaceTrack).where(*of_video, *_STRANGER)
    if scene_ids is not None:
        new = new.where(FaceTrack.scene_id.in_(scene_ids))
    leaders = session.scalars(
        new.order_by(FaceTrack.faces.desc(), FaceTrack.track_id).execution_options(populate_existing=True)
    ).all()
    if not leaders:
        return
    known = [] if similar is None else [similar]
    # Matching may have made strangers of others.
    missing = {
        track.track_id: (track.model_id, as_array([track.vec])[0])
        for track in leaders
        if similar is None or track.track_id not in similar.looked_up
    }
    if missing:
        known.append(find_similar(session, video.user_id, missing, rule))
    candidates = frozenset[UUID]().union(*(one.track_ids for one in known))
    from_transaction = min(one.from_transaction for one in known)
    metrics = face_metrics(session)
    touched: set[UUID] = set()
    for model_id in sorted({track.model_id for track in leaders}):
        own = [track for track in leaders if track.model_id == model_id]
        of_own = {track.track_id for track in own}
        others = _others(session, video, model_id, candidates - of_own, from_transaction, of_own)
        for group in _groups(own, others, metrics[model_id], rule):
            group = _still_free(session, video, group)
            if sum(track.faces for track in group) < MIN_FACES:
                continue
            person = make_unknown(session, video.user_id)
            session.execute(
                update(FaceTrack)
                .where(FaceTrack.track_id.in_([track.track_id for track in group]))
                .values(
                    person_id=person.person_id, similarity=1.0, votes=FaceTrack.faces, decided_by="machine"
                )
            )
            touched.update(track.scene_id for track in group)
            make_profile(session, person.person_id)
    refresh_scene_people(session, sorted(touched))


# Transactions are numbered; a row's age is how many began after the one that wrote it. Rows that were seen already may be among
# these, none that was not is missing.
_CHANGED = text(
    """
    SELECT track_id FROM face_tracks
    WHERE user_id = :user_id AND model_id = :model_id AND person_id IS NULL AND decided_by IS NULL
        AND age(xmin) <= pg_current_xact_id()::text::bigint - :from_transaction
    """
)


def _others(
    session: Session,
    video: Video,
    model_id: int,
    similar: Collection[UUID],
    from_transaction: int,
    own: Collection[UUID],
) -> Sequence[FaceTrack]:
    """The similar strangers that are strangers still, and those that were written since they were looked up."""
    values = {
        "user_id": video.user_id,
        "model_id": model_id,
        "from_transaction": from_transaction,
    }
    wanted = {*similar, *session.scalars(_CHANGED, values)} - set(own)
    which = (FaceTrack.user_id == video.user_id, FaceTrack.model_id == model_id, *_STRANGER)
    tracks = select(FaceTrack).where(*which, FaceTrack.track_id == any_(uuids(wanted)))
    return session.scalars(tracks.order_by(FaceTrack.track_id)).all()


def _groups(
    own: Sequence[FaceTrack], others: Sequence[FaceTrack], metric: str, rule: FaceRule
) -> list[list[FaceTrack]]:
    everyone = [*own, *others]
    vectors = as_array([track.vec for track in everyone])
    taken: set[int] = set()
    groups: list[list[FaceTrack]] = []
    for leader in range(len(own)):
        if leader in taken:
            continue
        found = similarities(vectors[leader : leader + 1], vectors, metric)[0]
        places: set[tuple[UUID, int]] = set()
        group: list[FaceTrack] = []
        for other in [leader, *(int(place) for place in (-found).argsort(kind="stable"))]:
            track = everyone[other]
            if other in taken or (track.scene_id, track.run) in places or found[other] < rule.least(metric):
                continue
            taken.add(other)
            places.add((track.scene_id, track.run))
            group.append(track)
        groups.append(group)
    return groups


def _still_free(session: Session, video: Video, group: Sequence[FaceTrack]) -> list[FaceTrack]:
    """Lock the videos of the group's tracks, and return the tracks whose videos were free."""
    others = {track.video_id for track in group} - {video.video_id}
    locked = {video.video_id} | set(
        session.scalars(
            select(Video.video_id)
            .where(Video.video_id.in_(others), Video.deleted_at.is_(None))
            .order_by(Video.video_id)
            .with_for_update(skip_locked=True)
        )
    )
    free = set(
        session.scalars(
            select(FaceTrack.track_id).where(
                FaceTrack.track_id.in_([track.track_id for track in group]),
                FaceTrack.person_id.is_(None),
                FaceTrack.decided_by.is_(None),
            )
        )
    )
    return [track for track in group if track.video_id in locked and track.track_id in free]


def make_unknown(session: Session, user_id: str) -> Person:
    """A person with the user's next free number; call ``lock_user`` first."""
    last = session.execute(_LAST_NUMBER, {"user_id": user_id}).scalar_one()
    person = Person(
        person_id=str(uuid4()), user_id=user_id, name=f"unknown {(last or 0) + 1}", kind="unknown"
    )
    session.add(person)
    session.flush()
    return person
