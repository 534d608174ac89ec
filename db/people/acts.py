"""Corrections of people by humans: confirm, reject, merge, split, undo.

Corrections are stored as decisions bound to a time and a place in a video: matching never overrides them, and they apply
to later runs and splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, BigInteger, Select, any_, delete, insert, literal, select, update
from sqlalchemy.orm import Session

from db.expressions import array, uuids
from db.faces.profiles import is_unconfirmed, make_profile
from db.faces.tracks import count_tracks
from db.faces.vote import FaceRule
from db.ids import find_people
from db.ledger import person_runs, subjects
from db.ledger.jobs import WakeUp
from db.ledger.policy import RunPolicy
from db.people import moves, registry
from db.people.events import record
from db.people.unknowns import assign_people, lock_user, make_unknown
from db.tables import FaceDecision, FaceTrack, PeopleEvent, Person, PersonPhoto, PersonProfile, Scene
from shared.errors import Conflict, InvalidRequest, NotFound

#: Maximum number of tracks for which a merge or a split creates decisions, the longest first; matching finds the others.
_MAX_DECISIONS = 2000


def judge(
    session: Session, person: Person, track_ids: Sequence[str], rule: FaceRule, *, is_person: bool
) -> int:
    """Decide that tracks are, or are not, this person (whose row is locked). Returns the event's id.

    Raises:
        NotFound: the user has no such track.
    """
    tracks = _tracks(session, person.user_id, track_ids)
    decisions = [_decide(session, track, person.person_id, is_person=is_person) for track in tracks]
    payload: dict[str, Any] = {
        "decisions": decisions,
        "tracks": [str(track.track_id) for track in tracks],
        "videos": [track.video_id for track in tracks],
        # The previous persons: an unknown person without other faces could not be found again by similarity.
        "were": {
            str(decision): track.person_id
            for decision, track in zip(decisions, tracks, strict=True)
            if track.person_id is not None
        },
    }
    _settle_all(session, payload["videos"], rule)
    confirmed = (FaceTrack.person_id == person.person_id) & (FaceTrack.decided_by == "human")
    # Without confirmed tracks a profile remains as it is: it may be that of an unknown person who was named.
    if session.scalars(select(FaceTrack.track_id).where(confirmed).limit(1)).first() is not None:
        make_profile(session, person.person_id)
    return record(session, person.user_id, "confirm" if is_person else "reject", person.person_id, payload)


def _tracks(session: Session, user_id: str, ids: Sequence[str]) -> list[FaceTrack]:
    wanted = list(dict.fromkeys(registry.as_uuid(name) for name in ids))
    tracks = select(FaceTrack).where(FaceTrack.track_id.in_(wanted), FaceTrack.user_id == user_id)
    found = {track.track_id: track for track in session.scalars(tracks)}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise NotFound(f"there is no face {str(missing[0])!r}: see tasks.people.faces")
    return [found[name] for name in wanted]


def _decide(
    session: Session, track: FaceTrack, person_id: str, *, is_person: bool, event_id: int | None = None
) -> int:
    decision = FaceDecision(
        user_id=track.user_id,
        video_id=track.video_id,
        person_id=person_id,
        is_person=is_person,
        ts_s=track.ts_s,
        box=track.box,
        event_id=event_id,
    )
    session.add(decision)
    session.flush()
    return decision.decision_id


def _settle_all(session: Session, videos: Sequence[str], rule: FaceRule) -> None:
    for video in subjects.lock_videos(session, set(videos)).values():
        if video.deleted_at is None:
            assign_people(session, video, rule)


def lock_two(session: Session, one: str, other: str, user_id: str) -> tuple[Person, Person]:
    """Lock two people of the user, in the order of their primary keys.

    Raises:
        NotFound, InvalidRequest.
    """
    if one == other:
        raise InvalidRequest(f"into={other!r} is the person itself: name another one")
    keys = find_people(session, user_id, (one, other))
    locked = {name: registry.lock(session, name, user_id) for name in sorted(keys, key=keys.__getitem__)}
    return locked[one], locked[other]


def merge(session: Session, person: Person, into: Person, policy: RunPolicy) -> tuple[int, list[WakeUp]]:
    """Make all photos and tracks of a person another one's, for good. Returns the event's id and wake-up messages.

    Raises:
        Conflict: an earlier merge or split of one of them is still in progress.
    """
    _make_part_of(session, person, into)
    photos = session.scalars(
        update(PersonPhoto)
        .where(PersonPhoto.person_id == person.person_id)
        .values(person_id=into.person_id)
        .returning(PersonPhoto.photo_id)
    ).all()
    payload = {
        "into": into.person_id,
        "photos": [str(photo) for photo in photos],
        "faces": count_tracks(session, [person.person_id]),
    }
    event = record(session, person.user_id, "merge", person.person_id, payload)
    theirs = select(FaceTrack).where(FaceTrack.person_id == person.person_id)
    chosen = [theirs, _doubted(session, person, into)]
    if is_unconfirmed(session, into):
        # Otherwise the other's tracks alone would make the profile.
        chosen.append(select(FaceTrack).where(FaceTrack.person_id == into.person_id))
    for tracks in chosen:
        _decide_longest(session, event, into.person_id, tracks, is_person=True)
    return event, moves.begin(session, "merge", event, person, into, policy)


def _make_part_of(session: Session, person: Person, into: Person) -> None:
    moves.require_still(person, into)
    person_runs.stop(session, person)
    person.merged_into = into.person_id
    session.execute(delete(PersonProfile).where(PersonProfile.person_id == person.person_id))
    session.flush()


def _decide_longest(
    session: Session, event_id: int, person_id: str, tracks: Select[Any], *, is_person: bool
) -> None:
    """Store decisions that the longest of these tracks, up to ``_MAX_DECISIONS``, are, or are not, this person."""
    chosen = (
        tracks.with_only_columns(
            FaceTrack.user_id,
            FaceTrack.video_id,
            literal(person_id),
            literal(is_person),
            FaceTrack.ts_s,
            FaceTrack.box,
            literal(event_id, BigInteger),
        )
        .order_by(FaceTrack.faces.desc(), FaceTrack.track_id)
        .limit(_MAX_DECISIONS)
    )
    columns = ["user_id", "video_id", "person_id", "is_person", "ts_s", "box", "event_id"]
    session.execute(insert(FaceDecision).from_select(columns, chosen))


def _doubted(session: Session, person: Person, into: Person) -> Select[Any]:
    """Tracks of ``into`` in scenes with a decision against ``person``, for example by a split.

    The merge confirms that they are ``into``'s: otherwise the decision against the one would separate them from the
    other.
    """
    who = [person.person_id, *registry.merged_into(session, person.person_id)]
    scenes = (
        select(Scene.scene_id)
        .join(FaceDecision, FaceDecision.video_id == Scene.video_id)
        .where(
            FaceDecision.person_id == any_(array(who)),
            FaceDecision.is_person.is_(False),
            FaceDecision.ts_s.between(Scene.start_s, Scene.end_s),
        )
    )
    return select(FaceTrack).where(FaceTrack.person_id == into.person_id, FaceTrack.scene_id.in_(scenes))


def split(
    session: Session,
    person: Person,
    track_ids: Sequence[str],
    name: str | None,
    rule: FaceRule,
    policy: RunPolicy,
) -> tuple[Person, int, list[WakeUp]]:
    """Move some tracks of a person to a new person with a name or the next number.

    Raises:
        NotFound: a track is not this person's.
        Conflict: the name is taken, or an earlier merge or split of the person is still in progress.
    """
    moves.require_still(person)
    tracks = _tracks(session, person.user_id, track_ids)
    for track in tracks:
        if track.person_id != person.person_id:
            raise NotFound(f"face {str(track.track_id)!r} is not of {person.name!r}: see tasks.people.faces")
    subjects.lock_videos(session, {track.video_id for track in tracks})
    if name is None:
        lock_user(session, person.user_id)
        new = make_unknown(session, person.user_id)
    else:
        registry.require_free(session, person.user_id, name)
        new = Person(person_id=str(uuid4()), user_id=person.user_id, name=name)
        session.add(new)
        session.flush()
    videos = [track.video_id for track in tracks]
    payload = {"new": new.person_id, "tracks": [str(track.track_id) for track in tracks], "videos": videos}
    event = record(session, person.user_id, "split", person.person_id, payload)
    for track in tracks:
        _decide(session, track, person.person_id, is_person=False, event_id=event)
        _decide(session, track, new.person_id, is_person=True, event_id=event)
    # A human who moves some faces has seen that the others stay.
    others = FaceTrack.track_id.not_in([track.track_id for track in tracks])
    rest = select(FaceTrack).where(FaceTrack.person_id == person.person_id, others)
    _decide_longest(session, event, new.person_id, rest, is_person=False)
    _settle_all(session, videos, rule)
    make_profile(session, new.person_id)
    return new, event, person_runs.start(session, new, policy)


def undo(
    session: Session, user_id: str, event_id: int, rule: FaceRule, policy: RunPolicy
) -> tuple[Person, int, list[WakeUp]]:
    """Undo one of the user's events. Returns its person, the new event's id and wake-up messages.

    Raises:
        NotFound: no such event of this user.
        Conflict: it can't be undone.
    """
    mine = (PeopleEvent.event_id == event_id) & (PeopleEvent.user_id == user_id)
    event = session.scalars(select(PeopleEvent).where(mine)).one_or_none()
    if event is None or event.person_id is None:
        raise NotFound(f"there is no event {event_id}: see tasks.people.events")
    undone = session.scalars(select(PeopleEvent.event_id).where(PeopleEvent.undoes == event_id)).one_or_none()
    if undone is not None:
        raise Conflict(f"event {event_id} has been undone by event {undone}")
    if event.kind not in ("rename", "confirm", "reject", "merge", "split"):
        raise Conflict(f"event {event_id} is {event.kind!r}, which can't be undone: do the opposite")
    payload = event.payload
    others = [payload[name] for name in ("into", "new") if name in payload]
    were: dict[str, str] = payload.get("were", {})
    locked = _lock_all(session, user_id, {event.person_id, *others}, set(were.values()))
    person = locked[event.person_id]
    for decision_id, before in were.items():
        if before in locked and locked[before].merged_into is None:
            session.execute(
                update(FaceDecision)
                .where(FaceDecision.user_id == user_id, FaceDecision.decision_id == int(decision_id))
                .values(person_id=before, is_person=True)
            )
    _settle_all(session, payload["videos"] if were else (), rule)
    _forget_decisions(session, event)
    wake_ups: list[WakeUp] = []
    if event.kind == "rename":
        registry.set_name(session, person, payload["before"]["name"], payload["before"]["kind"])
    elif event.kind == "merge":
        wake_ups = _part(session, event, person, locked[payload["into"]], policy)
    elif event.kind == "split":
        new = locked[payload["new"]]
        _make_part_of(session, new, person)
        wake_ups = moves.begin(session, "unsplit", event_id, new, person, policy)
    else:
        _settle_all(session, payload["videos"], rule)
    return person, record(session, user_id, "undo", person.person_id, {}, undoes=event_id), wake_ups


def _lock_all(session: Session, user_id: str, needed: set[str], others: set[str]) -> dict[str, Person]:
    """People by id, also merged ones; of ``others`` only those that were not erased.

    Raises:
        Conflict: a required person was erased.
    """
    locked = {}
    for person_id in sorted(needed | others):
        person = subjects.lock_person(session, person_id)
        if person is not None and person.user_id == user_id and person.deleted_at is None:
            locked[person_id] = person
    if not needed <= locked.keys():
        raise Conflict("the person was erased: nothing to undo")
    return locked


def _forget_decisions(session: Session, event: PeopleEvent) -> None:
    """Delete the decisions of an event; older events list them."""
    listed = any_(literal(list(event.payload.get("decisions", ())), ARRAY(BigInteger)))
    theirs = (FaceDecision.event_id == event.event_id) | (FaceDecision.decision_id == listed)
    session.execute(delete(FaceDecision).where(FaceDecision.user_id == event.user_id, theirs))


def _part(
    session: Session, event: PeopleEvent, person: Person, into: Person, policy: RunPolicy
) -> list[WakeUp]:
    """Undo a merge: move back what came from the person; newer photos and tracks stay."""
    if person.merged_into != into.person_id:
        raise Conflict(f"{person.name!r} is not part of {into.name!r} any more")
    moves.require_still(person, into)
    registry.require_free(session, person.user_id, person.name, but=person.person_id)
    person.merged_into = None
    theirs = PersonPhoto.photo_id == any_(uuids([UUID(photo) for photo in event.payload["photos"]]))
    session.execute(
        update(PersonPhoto)
        .where(PersonPhoto.person_id == into.person_id, theirs)
        .values(person_id=person.person_id)
    )
    session.flush()
    if "tracks" in event.payload:
        # An event of before its tracks were rows of their own.
        moves.note(session, event.event_id, [UUID(track) for track in event.payload["tracks"]])
    return moves.begin(session, "unmerge", event.event_id, into, person, policy)
