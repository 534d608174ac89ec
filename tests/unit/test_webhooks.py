"""Webhooks without servers of ours: signatures, URLs, addresses, and what a receiver can do to us."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from db.webhooks.deliveries import Answer, Due
from shared.contracts import CreateWebhook, parse
from shared.errors import InvalidRequest, Outage
from shared.webhooks import check_secret, make_secret, sign
from tests.support.receiver import Receiver
from worker.webhooks import addresses
from worker.webhooks.sending import send

#: The example of https://github.com/standard-webhooks/standard-webhooks.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DUE = Due(delivery_id=1, message_id="msg_w_1", url="", secret=SECRET, body='{"type": "video.indexed"}')


def test_the_signature_is_that_of_the_specifications_example() -> None:
    message = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert sign(SECRET, *message) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert check_secret(make_secret()) != check_secret(make_secret())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://example.com/"),
        ("url", "https:///path"),
        ("url", "https://user:pass@example.com/"),
        ("url", "https://example.com/#top"),
        ("url", "https://example.com/a b"),
        ("url", "https://example.com\r\nx-injected: 1"),
        ("url", "https://exämple.com/"),
        ("url", "https://example.com:99999/"),
        ("url", "https://example.com/" + "a" * 2048),
        ("secret", "whsec_c2hvcnQ="),
        ("secret", "no secret of ours, though it is long enough"),
        ("events", ["video.indexed", "video.watched"]),
    ],
)
def test_what_is_no_webhook_is_refused_in_one_sentence(field: str, value: object) -> None:
    good = {"user_id": "u1", "url": "https://example.com/hook?a=1", "secret": SECRET}
    assert parse(CreateWebhook, good).events == ()
    with pytest.raises(InvalidRequest, match=field) as refused:
        parse(CreateWebhook, {**good, field: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16",
        "0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not addresses.is_public(address)
    with pytest.raises(InvalidRequest, match="not public"):
        addresses.resolve(address, 443, allow_private=False)
    assert addresses.resolve(address, 443, allow_private=True)


def test_a_name_with_one_private_address_among_public_ones_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(0, 0, 0, "", ("8.8.8.8", 443)), (0, 0, 0, "", ("10.0.0.1", 443))]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(InvalidRequest, match=r"'two\.example' leads to an address that is not"):
        addresses.resolve("two.example", 443, allow_private=False)
    del found[1]
    assert addresses.resolve("one.example", 443, allow_private=False) == "8.8.8.8"

    def fails(*_: object, **__: object) -> None:
        raise OSError("no such name")

    monkeypatch.setattr(addresses.socket, "getaddrinfo", fails)
    with pytest.raises(Outage, match="can't be resolved"):
        addresses.resolve("none.example", 443, allow_private=False)


def post(url: str, *, allow_http: bool = True, allow_private: bool = True, limit_s: float = 5.0) -> Answer:
    due = replace(DUE, url=url)
    return send(due, allow_http=allow_http, allow_private=allow_private, limit_s=limit_s)


def test_an_event_arrives_as_the_specification_says() -> None:
    with Receiver(SECRET) as receiver:
        assert post(receiver.url + "?tenant=1") == Answer(status=200)
        (got,) = receiver.received
        assert got.path == "/hook?tenant=1" and got.is_signed and got.body == {"type": "video.indexed"}
        assert got.headers["host"] == receiver.url.split("/")[2]
        assert got.headers["content-type"] == "application/json"
        assert got.headers["webhook-id"] == "msg_w_1"


@pytest.mark.parametrize(
    ("status", "out_of_order"),
    [(204, False), (302, False), (404, False), (410, False), (429, True), (500, True)],
)
def test_only_a_status_of_success_is_one(status: int, out_of_order: bool) -> None:
    with Receiver(SECRET) as receiver:
        receiver.answers = [status]
        answer = post(receiver.url)
        assert answer.status == status and bool(answer.error) == (status != 204)
        assert answer.out_of_order == out_of_order
        assert len(receiver.received) == 1, "redirects are not followed"


def test_neither_http_nor_a_private_address_is_used_unless_allowed() -> None:
    with Receiver(SECRET) as receiver:
        assert "not https" in post(receiver.url, allow_http=False).error
        assert "not public" in post(receiver.url, allow_private=False).error
        assert "did not answer" in post(receiver.url.replace("http:", "https:")).error
        assert receiver.received == []
    assert "ConnectionRefusedError" in post(receiver.url).error


@pytest.mark.parametrize("act", ["silent", "endless_headers", "endless_line"])
def test_a_receiver_that_does_not_end_is_left_within_the_limit(act: str) -> None:
    with Receiver(SECRET) as receiver:
        receiver.answers = [act]
        began_s = time.monotonic()
        answer = post(receiver.url, limit_s=0.5)
        assert "within 0.5 s" in answer.error and answer.out_of_order
        assert time.monotonic() - began_s < 3


def test_a_long_answer_is_not_read() -> None:
    with Receiver(SECRET) as receiver:
        receiver.answers = ["endless_body"]
        began_s = time.monotonic()
        assert post(receiver.url).status == 200
        assert time.monotonic() - began_s < 3
