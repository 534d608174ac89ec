"""What the clients decide without a fleet: when to send again, when to look, what each call sends."""

from __future__ import annotations

import ast
import inspect
from datetime import UTC, datetime
from typing import Any

import pytest

from shared import attempts, calls, following, routing
from shared.attempts import Attempts
from shared.client import AsyncClient, Client, local_embedder
from shared.contracts import VideoStatus
from shared.errors import BrokerUnavailable, DatabaseBusy, ModelUnavailable, NotFound, Outage, Retryable
from shared.following import Following

SILENT = "redis://127.0.0.1:1/0"


class Clock:
    """Stands for ``time`` in a module."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(attempts, "time", found)
    monkeypatch.setattr(following, "time", found)
    return found


class Full(Retryable):
    retry_after_s = 1.5


# --- attempts


def test_pauses_are_drawn_from_zero_to_a_limit_that_doubles(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(
        attempts.random, "uniform", lambda least, most: drawn.append((least, most)) or most / 2
    )
    tried = Attempts(7, 60.0)
    pauses = [tried.pause_s(Outage("away")) for _ in range(8)]
    assert [most for _, most in drawn] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert {least for least, _ in drawn} == {0}
    assert pauses[:6] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0]) and pauses[7] is None


@pytest.mark.parametrize("error", [Outage("x"), BrokerUnavailable("x"), DatabaseBusy("x"), Full("x")])
def test_harmless_errors_are_retried(clock: Clock, error: Exception) -> None:
    assert Attempts(1, 30.0).pause_s(error) is not None
    assert Attempts(0, 30.0).pause_s(error) is None


@pytest.mark.parametrize("error", [NotFound("x"), Retryable("x")])
def test_other_errors_are_not(clock: Clock, error: Exception) -> None:
    assert Attempts(2, 30.0).pause_s(error) is None


def test_what_must_not_be_done_twice_is_not_sent_twice(clock: Clock) -> None:
    # It may have arrived.
    assert Attempts(2, 30.0, repeatable=False).pause_s(BrokerUnavailable("lost")) is None
    # The fleet says that it did nothing.
    assert Attempts(2, 30.0, repeatable=False).pause_s(DatabaseBusy("locked")) is not None


def test_an_error_that_says_when_to_return_is_believed(clock: Clock) -> None:
    for _ in range(20):
        pause_s = Attempts(2, 30.0).pause_s(Full("full"))
        assert pause_s is not None and 1.5 <= pause_s <= 1.6
    # Not after the call's time limit: the caller gets the error now.
    assert Attempts(2, 1.4).pause_s(Full("full")) is None


def test_attempts_share_one_time_limit(clock: Clock) -> None:
    tried = Attempts(9, 1.0)
    clock.now_s += 0.75
    assert tried.left_s == pytest.approx(0.25)
    clock.now_s += 0.25
    assert tried.pause_s(Outage("away")) is None


# --- following


def status(state: str, scenes: int = 0) -> VideoStatus:
    return VideoStatus.model_validate(
        {
            "video_id": "v1", "user_id": "u1", "storage_key": "k", "state": state, "run": 1, "published_run": None,
            "duration_s": None, "scenes": scenes, "error_class": None, "error": None,
            "created_at": datetime(2026, 1, 1, tzinfo=UTC), "indexed_at": None, "stages": (),
        }
    )  # fmt: skip


def test_a_note_of_the_user_makes_the_next_look_due(clock: Clock) -> None:
    followed = Following("v1", "u1", None)
    assert followed.pause_s() == 0
    followed.look()
    assert followed.pause_s() == following.POLL_S
    for note in (None, b"no JSON", b"[" * 10_000, b"7", b'{"user_id": "u2"}'):
        followed.hear(note)
    assert followed.pause_s() == following.POLL_S
    # Notes come in bursts.
    followed.hear(b'{"user_id": "u1", "video": "7"}')
    assert followed.pause_s() == pytest.approx(following.COALESCE_S)
    clock.now_s += 1
    followed.look()
    clock.now_s += 1
    followed.hear(b'{"user_id": "u1", "video": "7"}')
    assert followed.pause_s() == 0


def test_only_changes_are_news_and_an_end_ends(clock: Clock) -> None:
    followed = Following("v1", "u1", None)
    seen = [status("processing"), status("processing"), status("processing", 2), status("indexed", 2)]
    assert [(followed.is_news(one), followed.ended) for one in seen] == [
        (True, False), (False, False), (True, False), (True, True)
    ]  # fmt: skip


def test_an_absent_fleet_is_waited_for_if_it_ever_answered(clock: Clock) -> None:
    followed = Following("v1", "u1", None)
    with pytest.raises(Outage, match="away"):
        followed.missed(Outage("away"))
    followed.is_news(status("processing"))
    clock.now_s += following.SILENCE_S
    followed.missed(Outage("away"))
    clock.now_s += 1
    with pytest.raises(Outage, match="away"):
        followed.missed(Outage("away"))


def test_the_time_limit_cuts_a_pause(clock: Clock) -> None:
    followed = Following("v1", "u1", 2.0)
    followed.look()
    assert followed.pause_s() == 2.0
    clock.now_s += 2
    with pytest.raises(TimeoutError, match=r"video 'v1' is not answered for after 2 s: follow it again"):
        followed.pause_s()


# --- calls


def test_every_task_has_one_call_and_both_clients_have_it() -> None:
    source = ast.parse(inspect.getsource(calls.Calls))
    named = [
        ast.unparse(node.args[0])
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Call"
    ]
    tasks = [getattr(routing, name.removeprefix("routing.")) for name in named]
    assert sorted(tasks) == sorted(routing.TASK_QUEUE)
    methods = {name for name, _ in inspect.getmembers(calls.Calls, inspect.isfunction)}
    assert len(methods) == len(tasks)
    for client in (Client, AsyncClient):
        assert methods < {name for name in dir(client) if not name.startswith("_")}
    public = {name for name in vars(Client) | vars(AsyncClient) if not name.startswith("_")}
    assert public == {"close", "aclose", "create_key", "follow"}


def test_a_call_refuses_wrong_arguments_before_it_sends() -> None:
    with Client(SILENT) as client:
        wrong: Any = client
        with pytest.raises(TypeError, match="user_id"):
            wrong.status("v1")
        with pytest.raises(TypeError, match="unexpected keyword argument 'user'"):
            wrong.status("v1", user="u1")


def test_a_local_model_needs_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.local_models.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match=r"pip install sentence-transformers"):
        local_embedder("all-MiniLM-L6-v2")
