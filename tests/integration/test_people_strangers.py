"""Strangers are looked up before the transaction that groups them; what changed in between is settled under its locks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import event, literal_column, select, update
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.ledger import subjects
from db.people import unknowns
from db.people.unknowns import Similar
from db.tables import FaceTrack, Person
from tests.support import people
from tests.support.fleet import eventually
from tests.support.ledger import execute, read
from tests.support.people import RULE, axis, film, model_id, tracks

pytestmark = pytest.mark.usefixtures("database")


def look_up(*vectors: np.ndarray, user: str = "u") -> Similar:
    model = model_id()
    wanted = {UUID(int=place): (model, vector) for place, vector in enumerate(vectors)}
    with reading() as session:
        return unknowns.find_similar(session, user, wanted, RULE)


def add(video: str, *scenes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store a film whose tracks are not assigned yet."""
    with monkeypatch.context() as patched:
        patched.setattr(people, "match", lambda session, name: None)
        film(video, *scenes)


def assign(video: str, similar: Similar) -> None:
    own = frozenset(track.track_id for track in tracks(video))
    known = Similar(from_transaction=similar.from_transaction, track_ids=similar.track_ids, looked_up=own)

    def work(session: Session) -> None:
        row = subjects.lock_video(session, video)
        assert row is not None
        unknowns.assign_people(session, row, RULE, similar=known)

    transact(work)


def names() -> list[str]:
    return sorted(read(select(Person.name)))


@contextmanager
def loaded_tracks() -> Iterator[list[UUID]]:
    """The tracks that are read with their vectors."""
    found: list[UUID] = []

    def note(track: FaceTrack, _: Any) -> None:
        found.append(track.track_id)

    event.listen(FaceTrack, "load", note)
    try:
        yield found
    finally:
        event.remove(FaceTrack, "load", note)


def test_only_similar_strangers_are_read_in_the_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    # 300 strangers, seen once each.
    film("a", *([[axis(place)]] for place in range(300)))
    newest = max(read(select(literal_column("xmin::text::bigint")).select_from(FaceTrack)))
    # Another transaction of the server, begun before, may be open still.
    eventually(lambda: look_up().from_transaction > newest, within_s=60, what="older transactions end")
    similar = look_up(axis(17))
    assert len(similar.track_ids) == 1
    add("b", [[axis(17, 0.9)]], monkeypatch=monkeypatch)
    with loaded_tracks() as found:
        assign("b", similar)
    assert len(found) < 20
    assert names() == ["unknown 1"]
    assert len(read(select(FaceTrack.track_id).where(FaceTrack.person_id.is_not(None)))) == 2


def test_a_stranger_that_came_after_the_look_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    similar = look_up(axis(3))
    assert not similar.track_ids
    film("a", [[axis(3)]], [[axis(4)]])
    add("b", [[axis(3, 0.9)]], monkeypatch=monkeypatch)
    assign("b", similar)
    assert names() == ["unknown 1"]
    assert {track.person_id for track in (tracks("a")[0], tracks("b")[0])} == set(
        read(select(Person.person_id))
    )


def test_a_stranger_that_was_assigned_after_the_look_up_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    film("a", [[axis(3)]])
    similar = look_up(axis(3))
    assert similar.track_ids == {tracks("a")[0].track_id}
    execute(update(FaceTrack).values(decided_by="human"))
    add("b", [[axis(3, 0.9)]], monkeypatch=monkeypatch)
    assign("b", similar)
    assert names() == []


def test_a_track_that_matching_made_a_stranger_is_looked_up_then(monkeypatch: pytest.MonkeyPatch) -> None:
    film("a", [[axis(3)]])
    similar = look_up()
    add("b", [[axis(3, 0.9)]], monkeypatch=monkeypatch)

    def work(session: Session) -> None:
        row = subjects.lock_video(session, "b")
        assert row is not None
        unknowns.assign_people(session, row, RULE, similar=similar)

    transact(work)
    assert names() == ["unknown 1"]


def test_strangers_of_another_user_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    film("a", [[axis(3)]], user="other")
    assert not look_up(axis(3)).track_ids
    assert len(look_up(axis(3), user="other").track_ids) == 1
