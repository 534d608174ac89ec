"""Unknown people: tracks of strangers seen repeatedly become "unknown 1, 2, ..." of the user, to be named, merged or split."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid4

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from db.faces.profiles import make_profile
from db.faces.tracks import as_array, face_metrics, match_tracks, refresh_scene_people
from db.faces.vote import FaceRule, similarities
from db.ledger.subjects import lock_person
from db.locks import AdvisoryLock
from db.tables import FaceTrack, Person, PersonProfile, Video

#: Minimum number of faces of an unknown person: a single one may be a false detection.
MIN_FACES = 2
#: Maximum number of strangers' tracks with which new ones are compared, the newest first.
_MAX_OTHERS = 20_000


#: The highest number of a user, in the words of the index ``ix_people_numbers``.
_LAST_NUMBER = text(
    "SELECT max(CAST(substring(name from '^unknown ([0-9]{1,6})$') AS integer)) FROM people WHERE user_id = :user_id"
)


def assign_people(
    session: Session, video: Video, rule: FaceRule, scene_ids: Sequence[UUID] | None = None
) -> None:
    """Assign the tracks of a video, whose row is locked, to people, and cluster strangers seen more than once."""
    changed = match_tracks(session, video, rule, scene_ids)
    lock_user(session, video.user_id)
    unknown = session.scalars(
        select(Person.person_id).where(Person.person_id.in_(changed), Person.kind == "unknown")
    ).all()
    for person_id in sorted(unknown):
        make_profile(session, person_id)
    _cluster_unknowns(session, video, rule, scene_ids)


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
    session: Session, video: Video, rule: FaceRule, scene_ids: Sequence[UUID] | None
) -> None:
    """Create unknown people from similar strangers in this video and the user's other videos.

    A track joins the first group with a similar leader, the longest track first; of two tracks of one scene only one.
    """
    stranger = FaceTrack.person_id.is_(None) & FaceTrack.decided_by.is_(None)
    new = select(FaceTrack).where(
        FaceTrack.video_id == video.video_id, FaceTrack.user_id == video.user_id, stranger
    )
    if scene_ids is not None:
        new = new.where(FaceTrack.scene_id.in_(scene_ids))
    leaders = session.scalars(
        new.order_by(FaceTrack.faces.desc(), FaceTrack.track_id).execution_options(populate_existing=True)
    ).all()
    metrics = face_metrics(session)
    touched: set[UUID] = set()
    for model_id in sorted({track.model_id for track in leaders}):
        own = [track for track in leaders if track.model_id == model_id]
        others = session.scalars(
            select(FaceTrack)
            .where(
                FaceTrack.user_id == video.user_id,
                FaceTrack.model_id == model_id,
                stranger,
                FaceTrack.track_id.not_in([track.track_id for track in own]),
            )
            .order_by(FaceTrack.track_id)
            .limit(_MAX_OTHERS)
        ).all()
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
