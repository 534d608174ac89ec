"""Webhooks on a real Postgres: what is recorded with the end of a video, and how it reaches a receiver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, update

from db.engine import transact
from db.expressions import NOW, seconds_from_now
from db.ledger import subjects, video_runs
from db.people import erasure
from db.tables import Job, Video, Webhook, WebhookDelivery
from db.webhooks import deliveries
from shared.contracts import WebhookEvent
from shared.errors import BadMedia, Conflict, InvalidRequest, LeaseLost, NotFound
from tasks import webhooks
from tests.integration.conftest import Configure
from tests.support import people
from tests.support.ledger import (
    KEY,
    POLICY,
    accept,
    execute,
    fail,
    finish,
    must_claim,
    read,
    run_queue,
    split,
)
from tests.support.receiver import Receiver
from worker import reconcile, runner
from worker.runtime import get_runtime

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def receiver(configure: Configure) -> Iterator[Receiver]:
    configure(WEBHOOK_ALLOW_HTTP="true", WEBHOOK_ALLOW_PRIVATE="true")
    with Receiver() as found:
        yield found


def register(
    receiver: Receiver, user: str = "u1", path: str = "", events: tuple[WebhookEvent, ...] = ()
) -> str:
    """A webhook of a user; its secret is the receiver's."""
    answer = webhooks.create(user_id=user, url=receiver.url + path, events=list(events))
    receiver.secret = answer["secret"]
    return str(answer["webhook_id"])


def index(video_id: str = "v1", user_id: str = "u1") -> None:
    """A video from its acceptance to its publication."""
    accept(video_id, user_id)
    split(must_claim())
    run_queue("asr", "text", "face", "ocr", "media", "housekeeping")


def deliver() -> int:
    """What a node does: make the jobs that are due, and run them. Returns how many ran."""
    reconcile.stuck("webhook")
    count = 0
    while not runner.work("housekeeping", get_runtime()).get("idle"):
        count += 1
    return count


def come_due(*, only_tried: bool = False) -> None:
    """Let every pause be over, that of events sent before first."""
    before, now = seconds_from_now(-3600), seconds_from_now(-1)
    execute(update(WebhookDelivery).where(WebhookDelivery.attempts > 0).values(next_at=before))
    if not only_tried:
        execute(update(WebhookDelivery).where(WebhookDelivery.attempts == 0).values(next_at=now))
    execute(update(Webhook).values(not_before=now))


def test_the_end_of_a_video_is_sent_once_and_signed(receiver: Receiver) -> None:
    webhook = register(receiver)
    index()
    assert receiver.received == [], "only jobs send"
    assert deliver() == 1 and deliver() == 0
    (got,) = receiver.received
    assert got.is_signed
    assert got.body["type"] == "video.indexed"
    assert got.body["data"] == {"video_id": "v1", "run": 1, "state": "indexed", "error_class": None}
    (shown,) = webhooks.deliveries(user_id="u1")["deliveries"]
    assert (shown["state"], shown["attempts"], shown["status"], shown["error"]) == ("delivered", 1, 200, None)
    assert shown["message_id"] == got.headers["webhook-id"] and shown["webhook_id"] == webhook
    assert shown["body"] == got.body


def test_each_end_state_is_told_also_a_second_one_of_the_same_run(receiver: Receiver) -> None:
    register(receiver)
    accept("cancelled")
    lock = lambda session, name: session.scalars(select(Video).where(Video.external_id == name).with_for_update()).one()  # noqa: E731 # fmt: skip
    transact(lambda session: video_runs.cancel(session, lock(session, "cancelled"), POLICY))
    for _ in range(2):
        # The second time it is retried.
        accept("failed")
        claimed = must_claim()
        fail(claimed, BadMedia("no video"))
        transact(lambda session: video_runs.retry(session, lock(session, "failed"), POLICY))
    deliver()
    found = [(body["type"], body["data"]["video_id"]) for body in (one.body for one in receiver.received)]
    assert found == [("video.cancelled", "cancelled"), *[("video.failed", "failed")] * 2]
    assert receiver.received[1].body["data"]["error_class"] == "BadMedia"


def test_what_is_rolled_back_is_not_told(receiver: Receiver) -> None:
    register(receiver)
    accept()

    def end(session):  # type: ignore[no-untyped-def]
        video_runs.cancel(session, subjects.lock_video(session, KEY), POLICY)
        raise RuntimeError("before the commit")

    with pytest.raises(RuntimeError):
        transact(end)
    assert read(select(WebhookDelivery)) == []


def test_a_receiver_that_fails_gets_the_event_again_with_the_same_id(receiver: Receiver) -> None:
    register(receiver)
    receiver.answers = [500]
    index()
    deliver()
    (shown,) = webhooks.deliveries(user_id="u1", state="pending")["deliveries"]
    assert (shown["attempts"], shown["status"], shown["error"]) == (1, 500, "HTTP 500")
    assert webhooks.list_webhooks(user_id="u1")["webhooks"][0]["failures"] == 1
    receiver.answers = [404]
    for _ in range(2):
        come_due()
        deliver()
    assert [one.is_signed for one in receiver.received] == [True] * 3
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
    (shown,) = webhooks.deliveries(user_id="u1")["deliveries"]
    assert (shown["state"], shown["attempts"], shown["status"], shown["error"]) == ("delivered", 3, 200, None)
    assert webhooks.list_webhooks(user_id="u1")["webhooks"][0]["failures"] == 0
    assert read(select(func.count()).where(Job.subject_kind == "webhook")) == [1], "old jobs are removed"


def test_the_pauses_grow_and_the_receiver_is_left_alone_meanwhile(receiver: Receiver) -> None:
    register(receiver)
    index("v1")
    index("v2")
    pauses = []
    for _ in range(9):
        receiver.answers = [503]
        deliver()
        assert deliver() == 0
        ((own_s, rest_s),) = transact(
            lambda session: session.execute(
                select(
                    func.extract("epoch", WebhookDelivery.next_at - NOW),
                    func.extract("epoch", Webhook.not_before - NOW),
                ).where(WebhookDelivery.attempts > 0)
            ).all()
        )
        pauses.append((round(own_s), round(rest_s)))
        come_due(only_tried=True)
    assert len(receiver.received) == 9, "the other event waits for the receiver, too"
    assert pauses[:4] == [(5, 5), (20, 20), (80, 80), (320, 300)]
    assert pauses[-1] == (4 * 3600, 300)


def test_an_event_is_given_up_after_its_time_and_can_be_sent_again(receiver: Receiver) -> None:
    register(receiver)
    index()
    receiver.answers = [404]
    execute(update(WebhookDelivery).values(give_up_at=seconds_from_now(-1)))
    deliver()
    (shown,) = webhooks.deliveries(user_id="u1", state="failed")["deliveries"]
    assert shown["next_at"] is None and shown["ended_at"] is not None
    come_due()
    assert deliver() == 0
    again = webhooks.resend(user_id="u1", delivery_id=shown["delivery_id"])
    assert again["state"] == "pending"
    assert deliver() == 1
    assert [one.headers["webhook-id"] for one in receiver.received] == [shown["message_id"]] * 2
    assert webhooks.deliveries(user_id="u1")["deliveries"][0]["state"] == "delivered"


def test_a_receiver_that_is_gone_gets_nothing_more_until_it_is_registered_again(receiver: Receiver) -> None:
    register(receiver)
    receiver.answers = [410]
    index("v1")
    deliver()
    (hook,) = webhooks.list_webhooks(user_id="u1")["webhooks"]
    assert not hook["enabled"]
    (shown,) = webhooks.deliveries(user_id="u1")["deliveries"]
    assert shown["state"] == "failed"
    with pytest.raises(Conflict, match="disabled"):
        webhooks.resend(user_id="u1", delivery_id=shown["delivery_id"])
    index("v2")
    assert deliver() == 0 and len(receiver.received) == 1
    assert register(receiver) == hook["webhook_id"]
    index("v3")
    deliver()
    assert [one.body["data"]["video_id"] for one in receiver.received] == ["v1", "v3"]


def test_a_worker_that_dies_after_sending_sends_again_with_the_same_id(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(receiver)
    index()

    class Killed(BaseException):
        """As if the process had ended."""

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(deliveries, "mark", die)
        with pytest.raises(Killed):
            deliver()
    execute(update(Job).where(Job.subject_kind == "webhook").values(lease_until=seconds_from_now(-1)))
    reconcile.expired_leases()
    execute(update(Job).values(not_before=seconds_from_now(-1)))
    deliver()
    assert len(receiver.received) == 2
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
    assert webhooks.deliveries(user_id="u1")["deliveries"][0]["attempts"] == 1


def test_people_found_are_told_by_ids_once_also_in_older_videos(receiver: Receiver) -> None:
    register(receiver, "u", events=("person.found",))
    people.enrol("Ann Secretname", people.axis(0), person_id="ann")
    people.film("v", [[people.axis(0, 0.9)] * 3, [people.axis(1)]], [[people.axis(0, 0.9)]])
    people.enrol("Bea", people.axis(1), person_id="bea")
    people.match_all()
    transact(lambda session: people.match(session, "v"))
    deliver()
    found = [one.body["data"] for one in receiver.received]
    assert found == [{"video_id": "v", "person_id": "ann"}, {"video_id": "v", "person_id": "bea"}]
    assert "Secretname" not in str([one.body for one in receiver.received])


def test_what_is_erased_is_not_told(receiver: Receiver) -> None:
    register(receiver, "u")
    person = people.enrol("Ann", people.axis(0))
    people.film("v", [[people.axis(0, 0.9)]])
    register(receiver)
    index()
    assert len(read(select(WebhookDelivery))) == 2
    transact(lambda session: erasure.STEPS["webhook deliveries"](session, person, [person], 10))
    transact(lambda session: video_runs.erase_rows(session, subjects.lock_video(session, KEY), 0))
    assert read(select(WebhookDelivery)) == []
    assert deliver() == 0


def test_users_have_webhooks_of_their_own(receiver: Receiver) -> None:
    mine, other = register(receiver, "u1", "/1"), register(receiver, "u2", "/2")
    index("v1", "u1")
    (shown,) = webhooks.deliveries(user_id="u1")["deliveries"]
    assert webhooks.deliveries(user_id="u2")["deliveries"] == []
    assert webhooks.deliveries(user_id="u2", webhook_id=mine)["deliveries"] == []
    assert [hook["webhook_id"] for hook in webhooks.list_webhooks(user_id="u2")["webhooks"]] == [other]
    assert webhooks.list_webhooks(user_id="u2")["webhooks"][0]["secret"] is None
    with pytest.raises(NotFound):
        webhooks.resend(user_id="u2", delivery_id=shown["delivery_id"])
    with pytest.raises(NotFound):
        webhooks.delete(user_id="u2", webhook_id=mine)
    deliver()
    assert [one.path for one in receiver.received] == ["/hook/1"]


def test_a_deleted_webhook_leaves_nothing_and_its_job_ends(receiver: Receiver) -> None:
    hook = register(receiver)
    index()
    reconcile.stuck("webhook")
    claimed = must_claim("housekeeping")
    assert webhooks.delete(user_id="u1", webhook_id=hook)["deleted"]
    assert read(select(Job).where(Job.subject_kind == "webhook")) == []
    assert read(select(WebhookDelivery)) == []
    with pytest.raises(LeaseLost):
        finish(claimed)
    assert deliver() == 0


def test_the_limits_of_a_user(receiver: Receiver, configure: Configure) -> None:
    ids = {register(receiver, path=f"/{number}") for number in range(10)}
    with pytest.raises(Conflict, match="10 webhooks"):
        register(receiver, path="/10")
    assert register(receiver, path="/3", events=("video.failed",)) in ids, "the same URL is the same webhook"
    assert webhooks.list_webhooks(user_id="u1")["webhooks"][3]["events"] == ["video.failed"]
    register(receiver, "u2", path="/10")
    index()
    assert len(read(select(WebhookDelivery))) == 9
    page = webhooks.deliveries(user_id="u1", limit=5)
    rest = webhooks.deliveries(user_id="u1", limit=5, before=page["next_before"])
    assert (len(page["deliveries"]), len(rest["deliveries"]), rest["next_before"]) == (5, 4, None)
    configure(WEBHOOK_ALLOW_HTTP="false")
    with pytest.raises(InvalidRequest, match="https"):
        webhooks.create(user_id="u1", url=receiver.url)


def test_old_deliveries_are_deleted(receiver: Receiver) -> None:
    register(receiver)
    index("v1")
    index("v2")
    deliver()
    index("v3")
    first = read(select(func.min(WebhookDelivery.delivery_id)))[0]
    old = seconds_from_now(-8 * 24 * 3600.0)
    which = WebhookDelivery.delivery_id != first + 1
    execute(update(WebhookDelivery).where(which).values(give_up_at=old))
    assert transact(deliveries.purge) == 1, "neither a younger one nor one that was not sent yet"
    execute(update(Webhook).values(enabled=False))
    assert transact(deliveries.purge) == 1
    assert read(select(WebhookDelivery.delivery_id)) == [first + 1]
