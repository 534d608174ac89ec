"""Translates between the ids that callers choose and the primary keys of videos and people.

Two users may choose the same id. The chosen id (``external_id``) is unique among the user's rows and used in
requests, answers and storage keys; the primary key (``video_id``, ``person_id``) is used in foreign keys, joins and logs.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID, uuid5

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables import Person, Video

#: Namespace of the primary keys: the same id of the same user gives the same key, and so the same ids of its scenes.
_NAMESPACE = UUID("0c8f4a4e-6a57-5b0e-8a55-2b3f5a1f7d90")


def video_key(user_id: str, external_id: str) -> str:
    """The primary key of a new video with this ``external_id``; older rows may have another."""
    return str(uuid5(_NAMESPACE, f"video/{user_id}/{external_id}"))


def person_key(user_id: str, external_id: str) -> str:
    """The primary key of a new person with this ``external_id``; older rows may have another."""
    return str(uuid5(_NAMESPACE, f"person/{user_id}/{external_id}"))


def find_videos(session: Session, user_id: str, external_ids: Collection[str]) -> dict[str, str]:
    """Primary keys by the user's own ids; an unknown id gets a key that no row has."""
    found = {name: video_key(user_id, name) for name in external_ids}
    if found:
        mine = (Video.user_id == user_id) & Video.external_id.in_(found)
        rows = session.execute(select(Video.external_id, Video.video_id).where(mine))
        found.update((name, key) for name, key in rows)
    return found


def find_people(session: Session, user_id: str, external_ids: Collection[str]) -> dict[str, str]:
    """Primary keys by the user's own ids; an unknown id, or that of an erased person, gets a key that no row has."""
    found = {name: person_key(user_id, name) for name in external_ids}
    if found:
        mine = (Person.user_id == user_id) & Person.external_id.in_(found)
        rows = session.execute(select(Person.external_id, Person.person_id, Person.deleted_at).where(mine))
        # Rows of an erased person are deleted in batches: meanwhile they must not be found.
        found.update((name, key if gone is None else f"erased/{key}") for name, key, gone in rows)
    return found


def name_videos(session: Session, user_id: str, video_ids: Collection[str]) -> dict[str, str]:
    """The user's own ids by primary key; a key that is not of this user is left out."""
    if not video_ids:
        return {}
    mine = (Video.user_id == user_id) & Video.video_id.in_(video_ids)
    rows = session.execute(select(Video.video_id, Video.external_id).where(mine))
    return {row.video_id: row.external_id for row in rows}


def name_person(session: Session, person_id: str) -> str:
    """The external id of a person."""
    return session.scalars(select(Person.external_id).where(Person.person_id == person_id)).one()


def name_video(session: Session, video_id: str) -> str:
    """The external id of a video, which is part of its storage keys."""
    return session.scalars(select(Video.external_id).where(Video.video_id == video_id)).one()
