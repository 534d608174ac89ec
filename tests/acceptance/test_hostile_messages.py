"""Whatever stands in a queue is dropped with one line in the log: the node lives, and the next message is answered.

A table of messages, good but for one part each, is sent to one running node, and a good request after every few.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from tests.acceptance.conftest import MakeFleet
from tests.support.fleet import Fleet, NodeProcess, eventually
from tests.support.messages import encode, make_message

USER = "u1"
QUEUE = "search"
#: Stands in every body, and must not stand in a log.
CANARY = "canary-of-a-caller"
DEEP = 200_000
#: Messages between two good requests.
TOGETHER = 8
STATUS = "tasks.video.status"


@pytest.fixture(scope="module")
def fleet(make_fleet: MakeFleet) -> Fleet:
    """A node that waits for requests, two processes of it, and puts back what was not acknowledged."""
    found = make_fleet(VISIBILITY_TIMEOUT_S="1", SCENEFLEET_LOG_FORMAT="json")
    found.start("search", concurrency=2)
    found.wait_ready()
    return found


@pytest.fixture(scope="module")
def broker(fleet: Fleet) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(fleet.redis_url) as client:
        yield client


class Caller:
    """Sends good requests, and knows what the node has logged since."""

    def __init__(self, fleet: Fleet) -> None:
        self.node: NodeProcess = fleet.nodes["search"]
        self.pids = self.now()
        self.app = Celery("api", broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False)
        self._read = 0

    def now(self) -> set[int]:
        return {self.node.process.pid, *(child.pid for child in self.node.children)}

    def good(self) -> None:
        """A request is answered, by the same processes as ever."""
        sent = self.app.send_task(STATUS, kwargs={"video_id": "unheard-of", "user_id": USER}, queue=QUEUE)
        assert self.error_of(sent) == "NotFound"
        assert self.now() == self.pids, "a process has died"

    def error_of(self, sent: AsyncResult, timeout_s: float = 20.0) -> str:
        deadline = time.monotonic() + timeout_s
        try:
            while not sent.ready():
                assert time.monotonic() < deadline, "no answer"
                time.sleep(0.002)
            return type(sent.result).__name__
        finally:
            sent.backend = None

    def log(self) -> str:
        """What the node has logged since this was asked last."""
        with self.node.log.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        self._read += len(found)
        return found.decode()


@pytest.fixture
def caller(fleet: Fleet) -> Iterator[Caller]:
    made = Caller(fleet)
    made.log()
    yield made
    assert made.now() == made.pids


#: A good message but for the changes.
message = partial(make_message, STATUS, {"video_id": CANARY, "user_id": USER}, QUEUE)
#: Values of every kind but the right one; most parts get all of them.
WRONG: list[Any] = [
    5, -1, 1.5, 10**400, True, None, "", "x", "a\x00b", "\ud83d", "x" * 70_000, [1], [[[]]], {"a": 1},
    {"__type__": "uuid", "__value__": "zz"}, {"__type__": ["uuid"], "__value__": {}},
    {"__type__": "base64", "__value__": "%%%"},
]  # fmt: skip
PARTS = [
    "body", "content-encoding", "content-type", "headers", "properties",
    *(f"headers.{name}" for name in (
        "task", "id", "root_id", "parent_id", "group", "group_index", "retries", "eta", "expires", "timelimit", "lang",
        "origin", "argsrepr", "shadow", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
        "compression", "meth", "chord", "callbacks", "children", "update", "delivery_info", "redelivered",
    )),
    *(f"properties.{name}" for name in (
        "correlation_id", "reply_to", "delivery_mode", "delivery_info", "priority", "body_encoding", "delivery_tag",
        "delivery_info.exchange", "delivery_info.routing_key", "delivery_info.priority", "delivery_info.redelivered",
        "expiration", "headers",
    )),
]  # fmt: skip
BODIES: list[str | bytes] = [
    "garbage", "", "null", "5", "{}", "[]", "[1]", "[[], {}, {}, {}]", "[[], {}", "[{}, [], null]",
    '["args", {}, null]', '[[], "kwargs", null]', "[[], null, null]", "[[], {}, []]", '[[], {}, "x"]',
    '[[], {}, {"callbacks": [1]}]', '[[], {}, {"callbacks": "x"}]', '[[], {}, {"errbacks": [{"task": 5}]}]',
    '[[], {}, {"callbacks": [{"task": "x", "options": 5}]}]',
    '[[], {}, {"callbacks": [{"task": "x", "args": {}, "kwargs": []}]}]',
    '[[], {}, {"chain": [[1]]}]', '[[], {}, {"chain": {"a": 1}}]', '[[], {}, {"chord": 5}]',
    b"\xff\xfe\x00", b'[[], {"a": "\xed\xa0\xbd"}, null]', "[" * DEEP, "[" * DEEP + "]" * DEEP,
    '[[], {"a": ' + "[" * 500 + "]" * 500 + "}, null]", '[[], {"a": ' + "9" * 10_000 + "}, null]",
    '{"__type__": "uuid", "__value__": "zz"}',
    # Messages of protocol 1.
    json.dumps({"task": STATUS, "id": "x", "args": [], "kwargs": {}}),
    json.dumps({"task": STATUS, "id": "x", "args": [], "kwargs": {}, "eta": 5}),
]  # fmt: skip
ITEMS: list[str | bytes] = [
    "garbage", "", b"\x80\x04\x95garbage", "5", '"x"', "[1]", "{}", "null", "NaN", "[" * DEEP,
    "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "9" * 10_000,
    '{"__type__": "uuid", "__value__": "zz"}', '{"__type__": [], "__value__": {}}', '"\\ud83d"',
]  # fmt: skip
#: Changes of a good message.
MORE: list[dict[str, Any]] = [
    {"headers.eta": "9999-12-31T23:59:59.999999+00:00"}, {"headers.eta": "0001-01-01T00:00:00"},
    {"headers.expires": "9999-12-31T23:59:59-23:59"}, {"headers.expires": "yesterday"},
    *({"headers.timelimit": limits} for limits in (["a", "b"], [1], [inf, 1], [nan, nan], [-1, -1])),
    {"headers.compression": "application/x-gzip", "body": encode(b"\x1f\x8b")},
    {"content-type": "application/x-python-serialize", "content-encoding": "binary"},
    {"content-type": "application/x-yaml"}, {"content-encoding": "klingon"},
    # No base64, and that of another alphabet.
    {"body": "%%%"}, {"body": "__--" * 5},
    {"headers.task": "tasks.no.such"}, {"headers.task": "celery.chord_unlock"},
    {"headers.task": "nothing", "headers.id": ...}, {"body": ...}, {"headers": ...}, {"properties": ...},
    {"properties.delivery_info": ...}, {"properties.delivery_tag": ...},
    {"headers": {**message()["headers"], **{f"h{i}": [i] for i in range(1000)}}},
    # The same tag twice.
    {"properties.delivery_tag": "same"}, {"properties.delivery_tag": "same"},
]  # fmt: skip


def hostile() -> Iterator[tuple[str, str | bytes]]:
    """Every case, by name; JSON whose surrogates stay escaped."""
    for number, item in enumerate(ITEMS):
        yield f"item {number}: {item[:40]!r}", item
    for number, body in enumerate(BODIES):
        yield f"body {number}: {body[:60]!r}", json.dumps(message(body=encode(body)))
    for part in PARTS:
        for value in WRONG:
            # A number of more digits than Python writes.
            huge = value == 10**400
            made = json.dumps(message(**{part: "@" if huge else value}))
            yield f"{part}: {'1e400' if huge else repr(value)[:40]}", made.replace('"@"', "1" + "0" * 400)
    for number, changes in enumerate(MORE):
        yield f"changes {number}: {changes!r:.60}", json.dumps(message(**changes))


CASES = list(hostile())


def test_whatever_stands_in_a_queue_is_dropped_and_the_next_request_is_answered(
    broker: redis.Redis, caller: Caller
) -> None:
    assert len({name for name, _ in CASES}) == len(CASES) >= 277
    dropped = 0
    for first in range(0, len(CASES), TOGETHER):
        names, items = zip(*CASES[first : first + TOGETHER], strict=True)
        broker.lpush(QUEUE, *items)
        try:
            caller.good()
        except AssertionError as error:
            raise AssertionError(f"one of {names}: {error}\n{caller.log()[-3000:]}") from None
        said = caller.log()
        lines = [line for line in said.splitlines() if "message dropped" in line]
        assert len(lines) <= len(items), (names, lines)
        assert "Traceback" not in said and CANARY not in said, (names, said)
        dropped += len(lines)
    print(f"{len(CASES)} hostile messages, {dropped} dropped with one line each")
    eventually(
        lambda: not broker.hlen("unacked") and not broker.llen(QUEUE), within_s=20, what="all acknowledged"
    )
    # The rest is good but for a part that is left out, or that nobody reads.
    assert dropped > 277


@pytest.mark.parametrize(
    "value",
    ["\x00", json.loads("[" * 500 + "]" * 500), {"__type__": "uuid", "__value__": "zz"}],
    ids=["not valid", "deep", "typed"],
)
def test_a_callers_data_gets_an_answer(caller: Caller, value: Any) -> None:
    """Data of a tenant may look like anything, and somebody waits for the answer."""
    for task, kwargs in (
        (STATUS, {"video_id": value, "user_id": USER}),
        ("tasks.people.create", {"user_id": USER, "name": value}),
        ("tasks.search.scenes", {"user_id": USER, "query": value}),
        ("tasks.search.scenes", {"user_id": USER, "query": "x", "people": [value]}),
        (STATUS, {"video_id": "v", "user_id": USER, "more": {"a": [value]}}),
    ):
        sent = caller.app.send_task(task, kwargs=kwargs, queue=QUEUE)
        assert caller.error_of(sent) == "InvalidRequest", (task, kwargs)


def test_what_looks_typed_stays_what_it_is(caller: Caller) -> None:
    typed = {"__type__": "bytes", "__value__": "v"}
    sent = caller.app.send_task(STATUS, kwargs={"video_id": typed, "user_id": USER}, queue=QUEUE)
    caller.error_of(sent)
    said = str(caller.app.AsyncResult(sent.id).result)
    assert re.match(r"video_id=\{'__type__': 'bytes', '__value__': 'v'\} ", said), said


CONTROL: list[Any] = [
    {}, [1], "x", None,
    {"method": "explode"}, {"method": [1]}, {"method": {"__type__": "uuid", "__value__": "zz"}},
    {"method": "ping", "arguments": "x"}, {"method": "ping", "arguments": {"nonsense": 1}},
    {"method": "ping", "destination": 5}, {"method": "ping", "destination": [{}]},
    {"method": "ping", "pattern": "(a+)+$", "matcher": "pcre"}, {"method": "ping", "pattern": "*", "matcher": "magic"},
    {"method": "ping", "reply_to": 5}, {"method": "ping", "reply_to": {}},
    {"method": "ping", "reply_to": {"exchange": [1], "routing_key": {}}},
    {"method": "load_model", "arguments": {"name": {"a": 1}}}, {"method": "revoke", "arguments": {"task_id": {"a": [1]}}},
]  # fmt: skip


def test_remote_control_survives_what_it_is_sent(fleet: Fleet, broker: redis.Redis, caller: Caller) -> None:
    items = [*ITEMS, *(json.dumps(message(**{part: 5})) for part in ("body", "headers", "properties"))]
    for content in CONTROL:
        plain = message(body=encode(content), **{"headers": {"clock": 1}})
        items += [json.dumps(plain), json.dumps({**plain, "headers": {"clock": "x", "expires": "y"}})]
        huge = json.dumps({**plain, "headers": {"clock": 10**400 - 1}})
        items.append(huge.replace("9" * 400, "9" * 4000))
    for item in items:
        broker.publish("/0.celery.pidbox", item)
    caller.good()
    said = caller.log()
    assert CANARY not in said
    # It still does what it is told.
    inspect = Celery("op", broker=fleet.redis_url).control.inspect(timeout=1)
    answers = eventually(inspect.ping, within_s=20, what="pong")
    assert list(answers.values()) == [{"ok": "pong"}]
    print(f"{len(items)} hostile control messages")


def test_what_is_put_back_is_checked_too(broker: redis.Redis, caller: Caller) -> None:
    """Entries of ``unacked`` that no node of ours wrote; the visibility timeout is a second here."""
    changes: list[dict[str, Any]] = [{"headers": 5}, {"headers.timelimit": "x"}, {"properties": None}]
    changed = [[message(**each), "", QUEUE] for each in (*changes, {"body": encode("garbage")})]
    places = [[message(), "", "scenefleet:node:x"], [message(), "", None], [message(), {}, []]]
    whole: list[Any] = [[1, 2, 3], [{}, "", QUEUE], *places, *changed]
    entries: list[str | bytes] = [*filter(None, ITEMS), *map(json.dumps, whole)]
    for number, entry in enumerate(entries):
        broker.hset("unacked", f"hostile-{number}", entry)
        broker.zadd("unacked_index", {f"hostile-{number}": 1.0})
    broker.zadd("unacked_index", {"nothing": 1.0, b"\xff\xfe": 1.0})
    good = encode([[], {"video_id": "unheard-of", "user_id": USER}, None])
    kept = message(**{"headers.id": "was-lost", "body": good})
    broker.hset("unacked", "good", json.dumps([kept, "another exchange", QUEUE]))
    broker.zadd("unacked_index", {"good": 1.0})
    lost = caller.app.AsyncResult("was-lost")
    eventually(lambda: broker.zcard("unacked_index") == 0, within_s=60, what="all looked at")
    assert broker.hlen("unacked") == 0 and not broker.exists("scenefleet:node:x")
    assert caller.error_of(lost) == "NotFound", "the good one among them ran"
    said = caller.log()
    assert CANARY not in said and "Traceback" not in said, said
    assert said.count("unacknowledged message dropped") == len(entries)
    caller.good()
    print(f"{len(entries)} hostile unacknowledged messages")
