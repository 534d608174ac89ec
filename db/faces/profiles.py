"""Profiles: what a person's face is to each model, the weighted mean of photos or of tracks."""

from __future__ import annotations

from pgvector import HalfVector
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.faces.tracks import as_array, face_metrics, weights_of
from db.faces.vote import centroid
from db.tables import FaceTrack, PeopleEvent, Person, PersonPhoto, PersonProfile

#: Tracks a profile without photos is made from.
_MAX_TRACKS = 500


def make_profile(session: Session, person_id: str) -> None:
    """Make the person's centroids again: of the good photos by quality; without any, of the tracks in videos.

    A named person is known by those tracks only that a human confirmed: else one wrong match would bring the next. An
    unknown person who was named is known by all tracks until one is confirmed.
    """
    person = session.get_one(Person, person_id)
    by_all = person.kind == "unknown" or is_unconfirmed(session, person)
    session.execute(delete(PersonProfile).where(PersonProfile.person_id == person_id))
    if person.deleted_at is not None or person.merged_into is not None:
        # Their tracks are removed batch by batch; the remaining ones make no profile.
        return
    believed = FaceTrack.person_id == person_id
    if not by_all:
        believed &= FaceTrack.decided_by == "human"
    photos = session.execute(
        select(PersonPhoto.model_id, PersonPhoto.vec, PersonPhoto.quality)
        .where(PersonPhoto.person_id == person_id, PersonPhoto.state == "good")
        .order_by(PersonPhoto.photo_id)
    ).all()
    for model_id, metric in face_metrics(session).items():
        own = [row for row in photos if row.model_id == model_id]
        tracks = (
            select(FaceTrack.vec, FaceTrack.faces.label("quality"))
            .where(believed, FaceTrack.model_id == model_id)
            .order_by(FaceTrack.faces.desc(), FaceTrack.track_id)
            .limit(_MAX_TRACKS)
        )
        used = own or session.execute(tracks).all()
        if not used:
            continue
        middle = centroid(as_array([row.vec for row in used]), weights_of(used), metric)
        session.execute(
            insert(PersonProfile).values(
                person_id=person_id,
                model_id=model_id,
                user_id=person.user_id,
                vec=HalfVector(middle),
                photos=len(own),
                tracks=0 if own else len(used),
            )
        )


def is_unconfirmed(session: Session, person: Person) -> bool:
    """Whether this was an unknown person, was named, and has neither photos nor tracks that a human confirmed."""
    was_unknown = PeopleEvent.payload["before"]["kind"].astext == "unknown"
    named = select(PeopleEvent.event_id).where(
        PeopleEvent.user_id == person.user_id,
        PeopleEvent.person_id == person.person_id,
        PeopleEvent.kind == "rename",
        was_unknown,
    )
    by_tracks = select(PersonProfile.model_id).where(
        PersonProfile.person_id == person.person_id, PersonProfile.tracks > 0
    )
    confirmed = select(FaceTrack.track_id).where(
        FaceTrack.person_id == person.person_id, FaceTrack.decided_by == "human"
    )
    asked = select(named.exists() & by_tracks.exists() & ~confirmed.exists())
    return person.kind == "named" and bool(session.scalar(asked))
