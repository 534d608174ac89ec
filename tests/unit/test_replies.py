"""Reply lists: their keys and items, without a server."""

from __future__ import annotations

import pytest

from shared.errors import InvalidRequest, Retryable
from shared.replies import Reply, decode_reply, encode_reply, is_reply_key, new_reply_key


def test_a_new_key_is_a_reply_key_and_is_given_once() -> None:
    first, second = new_reply_key(), new_reply_key()
    assert first != second
    assert is_reply_key(first)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "",
        "search",
        "scenefleet:reply:",
        "scenefleet:reply:" + "g" * 32,
        "scenefleet:reply:" + "a" * 31,
        "scenefleet:reply:" + "a" * 32 + "\n",
        "x" + "scenefleet:reply:" + "a" * 32,
        "scenefleet:vector:" + "a" * 32,
        "unacked",
    ],
)
def test_no_other_key_is_written_to(value: object) -> None:
    assert not is_reply_key(value)


def test_an_answer_is_read_as_it_was_sent() -> None:
    reply = Reply(id="t1", result={"hits": ["ä😀", 1.5, None]})
    assert decode_reply(encode_reply(reply)) == reply
    assert reply.error is None


def test_an_error_is_read_with_its_class() -> None:
    reply = decode_reply(
        encode_reply(Reply(id="t1", error_class="InvalidRequest", message="query='' is empty: send one"))
    )
    assert reply is not None
    assert isinstance(reply.error, InvalidRequest)
    assert str(reply.error) == "query='' is empty: send one"


@pytest.mark.parametrize("name", ["KeyError", "annotations", "ScenefleetErrors", "__doc__"])
def test_an_error_of_another_class_may_be_sent_again(name: str) -> None:
    error = Reply(id="t1", error_class=name, message="x").error
    assert type(error) is Retryable
    assert str(error) == f"{name}: x"


@pytest.mark.parametrize(
    "item", [b"", b"nonsense", b"[]", b"5", b'"x"', b"{}", b'{"status":"SUCCESS"}', b"\xff", b"[" * 10_000]
)
def test_an_item_that_is_no_reply_is_passed_over(item: bytes) -> None:
    assert decode_reply(item) is None
