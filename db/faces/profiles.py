"""Profiles: what a person's face is to each model, the weighted mean of photos or of tracks."""

from __future__ import annotations

from pgvector import HalfVector
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.faces.tracks import as_array, face_metrics, weights_of
from db.faces.vote import centroid
from db.tables import FaceTrack, Person, PersonPhoto, PersonProfile

#: Tracks a profile without photos is made from.
_MAX_TRACKS = 500


def make_profile(session: Session, person_id: str) -> None:
    """Make the person's centroids again: of the good photos by quality; without any, of the tracks in videos.

    A named person is known by those tracks only that a human confirmed: else one wrong match would bring the next.
    """
    session.execute(delete(PersonProfile).where(PersonProfile.person_id == person_id))
    person = session.get_one(Person, person_id)
    if person.deleted_at is not None or person.merged_into is not None:
        # Their tracks are removed batch by batch; the remaining ones make no profile.
        return
    believed = FaceTrack.person_id == person_id
    if person.kind == "named":
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
