"""Erases a person: hides it at once; a job deletes rows in batches, then objects and answers, and writes a receipt.

``begin`` is one short transaction: the person becomes a tombstone, which no list and no search shows. The job (stage
``erase_person``) deletes one batch of rows per transaction; the remaining rows say where to continue, so a worker crash loses
nothing. A scene with the person is noted (``erasure_scenes``) in the transaction that deletes its rows, and its sidecars
are checked later. The tombstone remains: the id, so that it is not used again, and the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Executable, any_, delete, func, literal, select, text, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.expressions import NOW, array
from db.ids import name_person
from db.ledger import jobs, subjects
from db.ledger.jobs import WakeUp, make_job
from db.ledger.policy import RunPolicy
from db.people import registry
from db.people.events import record
from db.tables import (
    ErasureScene,
    FaceDecision,
    FaceTrack,
    Job,
    PeopleEvent,
    Person,
    PersonPhoto,
    PersonProfile,
    Scene,
    ScenePerson,
    Video,
    WebhookDelivery,
)
from shared import graph

#: The scene id in ``erasure_scenes`` that means: sidecars of the video that are not shown.
NO_SCENE = UUID(int=0)
#: Rows of one transaction: well under a second.
BATCH = 1000

#: A key of the receipt.
_TABLES: dict[str, type[PersonPhoto | PersonProfile | FaceTrack | ScenePerson | FaceDecision]] = {
    "photos": PersonPhoto,
    "profiles": PersonProfile,
    "face tracks": FaceTrack,
    "scenes": ScenePerson,
    "decisions": FaceDecision,
}


def begin(session: Session, person: Person, policy: RunPolicy) -> list[WakeUp]:
    """Hide a person, whose row is locked, and those merged into it; queue the job that removes all of them."""
    ids = [person.person_id, *registry.merged_into(session, person.person_id)]
    mine = Person.person_id == any_(array(ids))
    known = session.execute(
        select(Person.external_id, Person.name, Person.uploads_until)
        .where(mine)
        .order_by(Person.person_id)
        .with_for_update(key_share=True)
    ).all()
    # Tracks on their way from or to one of them arrive first (``moves.under_way``): else the wrong ones would go.
    theirs = (Job.subject_kind == "person") & (Job.subject_id == any_(array(ids)))
    jobs.cancel(session, theirs, Job.stage != graph.MOVE.name)
    keys = select(PersonPhoto.storage_key).where(PersonPhoto.person_id == any_(array(ids)))
    gone = session.execute(delete(PersonProfile).where(PersonProfile.person_id == any_(array(ids))))
    urls = [row.uploads_until for row in known if row.uploads_until is not None]
    session.execute(
        update(Person)
        .where(mine)
        .values(name="", deleted_at=NOW, merged_into=None)
        .execution_options(synchronize_session=False)
    )
    session.refresh(person)
    person.run += 1
    person.ended_run = person.run
    session.flush()
    record(session, person.user_id, "erase", person.person_id, {})
    payload = {
        "ids": ids,
        "external_ids": [row.external_id for row in known],
        "names": [row.name for row in known],
        "keys": list(session.scalars(keys)),
        "uploads_until": max(urls).isoformat() if urls else None,
        "removed": {"profiles": gone.rowcount},  # type: ignore[attr-defined]
    }
    return jobs.insert(session, [make_job(person, graph.ERASE_PERSON, policy, payload=payload)])


def note_suspects(session: Session, person_id: str, user_id: str) -> None:
    """Note the user's videos that may have sidecars older than their rows (being written, or not removed)."""
    session.execute(
        text(
            """
            INSERT INTO erasure_scenes (person_id, video_id, scene_id, user_id)
            SELECT :person, v.video_id, :none, :user FROM videos v
            WHERE v.user_id = :user AND v.deleted_at IS NULL AND v.video_id IN (
                SELECT video_id FROM jobs WHERE queue IN ('media', 'housekeeping') AND state = 'queued' AND account = :user
                    AND stage IN ('rewrite_sidecars', 'sweep', 'sidecar')
                UNION SELECT video_id FROM jobs WHERE queue IN ('media', 'housekeeping') AND state = 'running' AND account = :user
                    AND stage IN ('rewrite_sidecars', 'sweep', 'sidecar')
                UNION SELECT video_id FROM jobs WHERE state = 'failed' AND user_id = :user
                    AND stage IN ('rewrite_sidecars', 'sweep', 'sidecar')
                UNION SELECT s.video_id FROM scenes s WHERE s.people_changed AND s.user_id = :user
            ) ON CONFLICT DO NOTHING
            """
        ),
        {"person": person_id, "user": user_id, "none": NO_SCENE},
    )


# --- rows: each step deletes up to ``limit`` rows of these people and returns their number; 0: none are left

_NOTE = text(
    """
    INSERT INTO erasure_scenes (person_id, video_id, scene_id, user_id)
    SELECT DISTINCT CAST(:person AS text), s.video_id, place.scene_id, s.user_id FROM scenes s
    CROSS JOIN LATERAL (VALUES (s.scene_id), (CAST(:none AS uuid))) place(scene_id)
    WHERE s.scene_id = ANY(CAST(:scenes AS uuid[])) ON CONFLICT DO NOTHING
    """
)
_REMOVE_FACES = text(
    """
    DELETE FROM faces f USING unnest(CAST(:scenes AS uuid[]), CAST(:runs AS int[]), CAST(:tracks AS int[]))
        AS gone(scene_id, run, track)
    WHERE f.scene_id = gone.scene_id AND f.run = gone.run AND f.track = gone.track
    """
)


def remove_tracks(session: Session, person_id: str, ids: Sequence[str], limit: int = BATCH) -> int:
    """Faces found in videos that were given to them, with vectors; their scenes' sidecars will be written again."""
    mine = FaceTrack.person_id == any_(array(ids))
    first = select(FaceTrack.track_id).where(mine).limit(limit)
    videos = set(session.scalars(select(FaceTrack.video_id).where(FaceTrack.track_id.in_(first))))
    if not videos:
        return 0
    subjects.lock_videos(session, videos)
    chosen = select(FaceTrack.track_id).where(mine, FaceTrack.video_id == any_(array(videos))).limit(limit)
    gone = session.execute(
        delete(FaceTrack)
        .where(FaceTrack.track_id.in_(chosen))
        .returning(FaceTrack.scene_id, FaceTrack.run, FaceTrack.track)
        .execution_options(synchronize_session=False)
    ).all()
    places = {"scenes": [row.scene_id for row in gone], "runs": [row.run for row in gone]}
    session.execute(_REMOVE_FACES, {**places, "tracks": [row.track for row in gone]})
    _leave_scenes(session, person_id, ids, list({row.scene_id for row in gone}))
    return len(gone)


def remove_from_scenes(session: Session, person_id: str, ids: Sequence[str], limit: int = BATCH) -> int:
    """What is left of who is in which scene."""
    mine = ScenePerson.person_id == any_(array(ids))
    scenes = list(session.scalars(select(ScenePerson.scene_id).where(mine).limit(limit)))
    if scenes:
        videos = select(Scene.video_id).where(Scene.scene_id.in_(scenes))
        subjects.lock_videos(session, set(session.scalars(videos)))
        _leave_scenes(session, person_id, ids, scenes)
    return len(scenes)


def _leave_scenes(session: Session, person_id: str, ids: Sequence[str], scenes: list[UUID]) -> None:
    """Note scenes with these people, and remove them there."""
    session.execute(_NOTE, {"person": person_id, "none": NO_SCENE, "scenes": scenes})
    session.execute(
        delete(ScenePerson).where(ScenePerson.person_id == any_(array(ids)), ScenePerson.scene_id.in_(scenes))
    )
    _outdate(session, scenes)


def _outdate(session: Session, scenes: Sequence[UUID]) -> None:
    """Have the sidecars of published scenes written again."""
    session.execute(
        update(Scene)
        .where(Scene.live, Scene.scene_id.in_(scenes))
        .values(people_changed=True)
        .execution_options(synchronize_session=False)
    )


def _remove(
    key: InstrumentedAttribute[Any], session: Session, person_id: str, ids: Sequence[str], limit: int = BATCH
) -> int:
    """Delete rows of a table by this column."""
    chosen = select(key).where(key.class_.person_id == any_(array(ids))).limit(limit)
    gone = session.execute(
        delete(key.class_).where(key.in_(chosen)).execution_options(synchronize_session=False)
    )
    return gone.rowcount  # type: ignore[attr-defined, no-any-return]


_ABOUT = """
    user_id = :user AND kind <> 'erase'
    AND (person_id = ANY(:ids) OR payload->>'into' = ANY(:ids) OR payload->>'new' = ANY(:ids))
"""


def remove_events(session: Session, person_id: str, ids: Sequence[str], limit: int = BATCH) -> int:
    """Delete their events, and which tracks these moved."""
    user = session.scalars(select(Person.user_id).where(Person.person_id == person_id)).one()
    about = text(f"SELECT event_id FROM people_events WHERE {_ABOUT} ORDER BY event_id LIMIT :limit")
    found = list(session.scalars(about, {"user": user, "ids": list(ids), "limit": limit}))
    if not found:
        return 0
    moved = session.execute(
        text(
            "DELETE FROM moved_tracks WHERE (event_id, video_id, track_id) IN (SELECT event_id, video_id, track_id"
            " FROM moved_tracks WHERE event_id = ANY(:events) LIMIT :limit)"
        ),
        {"events": found, "limit": 5 * BATCH},
    )
    if not moved.rowcount:  # type: ignore[attr-defined]
        session.execute(delete(PeopleEvent).where(PeopleEvent.event_id.in_(found)))
    return len(found)


def remove_former_owners(session: Session, person_id: str, ids: Sequence[str], limit: int = BATCH) -> int:
    """Delete them as the previous persons of a face, which a judgement keeps for its undo."""
    user = session.scalars(select(Person.user_id).where(Person.person_id == person_id)).one()
    events = session.scalars(
        select(PeopleEvent)
        .where(
            PeopleEvent.user_id == user,
            text(
                "EXISTS (SELECT FROM jsonb_each_text(CASE jsonb_typeof(payload->'were') WHEN 'object'"
                " THEN payload->'were' ELSE '{}' END) were WHERE were.value = ANY(:ids))"
            ).bindparams(ids=list(ids)),
        )
        .limit(limit)
    ).all()
    gone = set(ids)
    for event in events:
        were = {key: before for key, before in event.payload["were"].items() if before not in gone}
        rest = {key: value for key, value in event.payload.items() if key != "were"}
        event.payload = {**rest, "were": were} if were else rest
    session.flush()
    return len(events)


#: The steps in order, by key of the receipt. Decisions first: matching no longer uses them.
STEPS: Mapping[str, Callable[[Session, str, Sequence[str], int], int]] = {
    # There are some only if an attempt ran during ``begin``.
    "profiles": partial(_remove, PersonProfile.person_id),
    "decisions": partial(_remove, FaceDecision.decision_id),
    "photos": partial(_remove, PersonPhoto.photo_id),
    "face tracks": remove_tracks,
    "scenes": remove_from_scenes,
    "events": remove_events,
    "former owners": remove_former_owners,
    "webhook deliveries": partial(_remove, WebhookDelivery.delivery_id),
}


def now(session: Session) -> str:
    """Postgres's time, to be stored in a job."""
    return str(session.scalars(select(func.clock_timestamp())).one().isoformat())


def is_waiting(session: Session, person_id: str, user_id: str, since: str) -> bool:
    """Whether rows or documents with the person may still be written, from rows older than ``since``.

    The reason is an attempt that began before the last row was deleted, or a shown sidecar that is not rewritten yet.
    """
    found = text(
        """
        SELECT EXISTS (
            SELECT FROM jobs WHERE account = :user AND queue IN ('media', 'housekeeping', 'face') AND state = 'running'
                AND stage IN ('face', 'match', 'enroll', 'sidecar', 'rewrite_sidecars')
                AND started_at < CAST(:since AS timestamptz)
        ) OR EXISTS (
            SELECT FROM scenes s JOIN videos v USING (video_id) WHERE s.people_changed AND s.live AND v.deleted_at IS NULL
                AND EXISTS (SELECT FROM erasure_scenes e WHERE e.person_id = :person AND e.video_id = s.video_id)
        )
        """
    )
    return bool(session.scalar(found, {"person": person_id, "user": user_id, "since": since}))


# --- sidecars


def next_video(session: Session, person_id: str, after: str) -> tuple[str, str, bool] | None:
    """The next video with scenes to check: primary key, external id, whether it was deleted."""
    found = session.execute(
        select(Video.video_id, Video.external_id, Video.deleted_at.is_not(None))
        .join(ErasureScene, ErasureScene.video_id == Video.video_id)
        .where(ErasureScene.person_id == person_id, ErasureScene.video_id > after)
        .order_by(ErasureScene.video_id)
        .limit(1)
    )
    return found.first()


def noted_scenes(session: Session, person_id: str, video_id: str) -> set[UUID]:
    """Scenes of a video that are still to be checked; with ``NO_SCENE`` also sidecars that are not shown."""
    noted = (ErasureScene.person_id == person_id) & (ErasureScene.video_id == video_id)
    return set(session.scalars(select(ErasureScene.scene_id).where(noted)))


def shown_sidecars(session: Session, video_id: str) -> dict[str, UUID]:
    """The sidecars of a video that callers see, by key."""
    shown = (Scene.video_id == video_id) & Scene.live & Scene.sidecar_key.is_not(None)
    rows = session.execute(select(Scene.sidecar_key, Scene.scene_id).where(shown))
    return {str(row.sidecar_key): row.scene_id for row in rows}


def note_looked_at(session: Session, person_id: str, video_id: str, scenes: Sequence[UUID] | None) -> None:
    """Mark scenes of a video, or (None) all of them, as checked."""
    mine = (ErasureScene.person_id == person_id) & (ErasureScene.video_id == video_id)
    if scenes is not None:
        mine &= ErasureScene.scene_id.in_(scenes)
    session.execute(delete(ErasureScene).where(mine))


def write_again(session: Session, video_id: str, scenes: Sequence[UUID]) -> None:
    """Sidecars that are shown name somebody erased, whatever rows say: let them be written again."""
    subjects.lock_video(session, video_id)
    _outdate(session, scenes)


def count_noted(session: Session, person_id: str) -> int:
    """The number of scenes and videos that are still to be checked."""
    return session.scalars(select(func.count()).where(ErasureScene.person_id == person_id)).one()


def kept_photos(session: Session, keys: Sequence[str]) -> set[str]:
    """The keys that are photos of other people: merges and their undo move photos."""
    kept = select(PersonPhoto.storage_key).where(PersonPhoto.storage_key == any_(array(keys)))
    return set(session.scalars(kept))


def current_sidecars(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of some keys that callers are shown."""
    shown = session.scalars(select(Scene.sidecar_key).where(Scene.sidecar_key == any_(array(keys))))
    return {key for key in shown if key is not None}


# --- the end


def rows_left(session: Session, user_id: str, ids: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """What a sweep of every table about people finds of somebody erased, but the tombstone and the job at work."""
    mine = array(ids)
    counts: dict[str, Executable] = {
        what: select(func.count()).where(table.person_id == any_(mine)) for what, table in _TABLES.items()
    }
    about = text(f"SELECT count(*) FROM people_events WHERE {_ABOUT}")
    counts["events"] = about.bindparams(user=user_id, ids=list(ids))
    named = (Person.person_id == any_(mine)) & (Person.name == any_(array(names)))
    counts["names"] = select(func.count()).where(named)
    return {what: session.execute(count).scalar_one() for what, count in counts.items()}


def note_receipt(session: Session, person_id: str, receipt: Mapping[str, Any]) -> None:
    """Store the progress of the erasure in the receipt."""
    session.execute(update(Person).where(Person.person_id == person_id).values(receipt=dict(receipt)))


def conclude(
    session: Session,
    person_id: str,
    job_id: int,
    payload: Mapping[str, Any],
    receipt: Mapping[str, Any],
    policy: RunPolicy,
    grace_s: float,
) -> None:
    """Write the receipt on the tombstones, and remove the name from the job.

    If an upload URL is still valid, a last check follows when it has expired.
    """
    ids = [str(name) for name in payload["ids"]]
    theirs = (Job.subject_kind == "person") & (Job.subject_id == any_(array(ids)))
    session.execute(delete(Job).where(theirs, Job.job_id != job_id, Job.lease_owner.is_(None)))
    receipt = dict(receipt)
    if payload.get("uploads_until"):
        person = session.get_one(Person, person_id)
        due = datetime.fromisoformat(payload["uploads_until"]) + timedelta(seconds=grace_s)
        if session.scalar(select(literal(due) > NOW)):
            receipt["sweep_due"] = due.isoformat()
        rest = {"ids": ids, "external_ids": payload["external_ids"], "keys": payload["keys"]}
        job = make_job(person, graph.ERASE_PERSON, policy, part=1, not_before=due, payload=rest)
        jobs.insert(session, [job])
    note_receipt(session, person_id, receipt)
    others = [name for name in ids if name != person_id]
    session.execute(
        update(Person)
        .where(Person.person_id == any_(array(others)))
        .values(receipt={"state": "complete", "erased_with": name_person(session, person_id)})
    )
    session.execute(update(Job).where(Job.job_id == job_id).values(payload={}))


def note_late_sweep(session: Session, person_id: str, files: int) -> None:
    """The last look has been taken: no URL is left by which a photo could come back."""
    person = subjects.lock_person(session, person_id)
    if person is None or person.receipt is None:
        return
    receipt = {key: value for key, value in person.receipt.items() if key != "sweep_due"}
    receipt["removed"] = {**receipt.get("removed", {}), "late photo files": files}
    person.receipt = receipt
    session.flush()
