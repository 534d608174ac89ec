"""Requests that are done later than others that were sent after them: a broker delivers them again when their node is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from db.engine import transact
from db.people import registry
from db.precedence import Arrival
from db.tables import Person, Run, Video
from shared.contracts import CreatePerson
from shared.errors import Conflict
from tasks import people, requests, video
from tests.support.ledger import accept, must_claim, read, split, state

pytestmark = pytest.mark.usefixtures("database")
V1 = {"video_id": "v1", "user_id": "u1"}
#: Sets who asks: the id of the message, and how long ago it was sent, seconds.
Sent = Callable[[str, float], None]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    for module in (requests, people, video):
        monkeypatch.setattr(module, "notify", lambda wake_ups: None, raising=False)

    def by(message: str, age_s: float) -> None:
        for module in (people, video):
            monkeypatch.setattr(module, "arrival", lambda: Arrival(message, lambda: age_s))

    by("first", 0.0)
    return by


def runs() -> list[int]:
    return read(select(Run.run).order_by(Run.run))


def test_a_cancel_that_is_delivered_again_does_not_end_a_later_run(sent: Sent) -> None:
    accept()
    sent("cancel", 0)
    assert video.cancel(**V1)["accepted"] and state() == "cancelled"
    sent("retry", 0)
    assert video.retry(**V1)["accepted"] and runs() == [1, 2]
    # An hour later, to another node, which has no other way to know.
    sent("cancel", 3600)
    with pytest.raises(Conflict, match=r"this request about video v1 was sent 3\d\d\d s before another one"):
        video.cancel(**V1)
    assert state() == "uploaded" and read(select(Run.ended_at).where(Run.run == 2)) == [None]
    sent("another cancel", 0)
    assert video.cancel(**V1)["accepted"], "one of now is done"


@pytest.mark.parametrize("late", [video.retry, video.rerun, video.delete])
def test_nothing_that_was_sent_before_a_cancel_is_done_after_it(sent: Sent, late: Callable[..., Any]) -> None:
    accept()
    sent("cancel", 0)
    video.cancel(**V1)
    sent("late", 60)
    with pytest.raises(Conflict, match="before another one that is done"):
        late(**V1)
    assert state() == "cancelled" and runs() == [1]


def test_a_rerun_that_is_delivered_twice_makes_one_run(sent: Sent) -> None:
    accept()
    split(must_claim())
    sent("rerun", 0)
    assert video.rerun(**V1)["accepted"] and runs() == [1, 2]
    sent("rerun", 300)
    assert video.rerun(**V1)["accepted"], "it is the answer that was lost"
    assert runs() == [1, 2] and read(select(Video.run)) == [2]


def test_requests_of_one_moment_are_done_as_they_come(sent: Sent) -> None:
    """Nodes may overtake each other, and a caller that waits for answers sends them in order."""
    accept()
    sent("rerun", 0)
    video.rerun(**V1)
    sent("cancel", 10)
    assert video.cancel(**V1)["accepted"]


def test_a_time_in_the_future_does_not_refuse_others(sent: Sent) -> None:
    accept()
    sent("hostile", -3600)
    video.rerun(**V1)
    sent("cancel", 0)
    assert video.cancel(**V1)["accepted"]


def test_an_old_name_of_a_person_does_not_come_back(sent: Sent) -> None:
    who = {"user_id": "u1", "person_id": "ann"}
    transact(lambda session: registry.create(session, CreatePerson(name="Ann", **who)))
    sent("second", 0)
    people.rename(**who, name="Anna")
    sent("first", 60)
    with pytest.raises(Conflict, match="person ann was sent"):
        people.rename(**who, name="An")
    assert read(select(Person.name)) == ["Anna"]
