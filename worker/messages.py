"""What a message in a queue must look like, and what is left of it when it is taken: pure functions over plain JSON.

Anybody who can write to Redis can put anything into a queue. Celery and kombu take a message apart in many places,
in the main process of the node, and most of them end it when a part is of another kind than expected. So a message
is checked whole before any of them sees it, and only what a task needs is handed on: headers that are not known, or
that Celery would take for attributes of its own, are left out.

Must not import Celery: what it would do with a message is what is guarded against here.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared import routing
from shared.redaction import HIDDEN

#: Longest message that is looked at, bytes. Requests are refused far below that, with an answer.
MAX_BYTES = 64 * 2**20
#: Deepest nesting of a body: Python's parser, and whoever walks the result, ends at about a thousand.
MAX_DEPTH = 64
MAX_ID_CHARS = 255
MAX_HEADER_CHARS = 1024
#: Longest time limit that a caller may give, seconds.
MAX_LIMIT_S = 7 * 24 * 3600
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
#: How Celery's callers name JSON.
_CONTENT_TYPE = "application/json"
_CONTENT_ENCODINGS = ("utf-8", "utf8")


class NotAMessage(Exception):
    """What stood in a queue is not a message. Says which part is of which kind, never what it holds."""


class UnreadableBody(NotAMessage):
    """Whoever sent it can be told: its id is known, its body can't be used."""

    def __init__(self, reason: str, headers: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.headers = headers


@dataclass(frozen=True)
class TaskMessage:
    """A message that is safe to hand to Celery."""

    raw: dict[str, Any]
    task: str
    task_id: str
    ignore_result: bool


# --- parts


def _fail(name: str, value: Any, wanted: str) -> NotAMessage:
    return NotAMessage(f"{name} is a {type(value).__name__}, not {wanted}")


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _fail(name, value, "an object")
    return value


def _text(name: str, value: Any, limit: int = MAX_HEADER_CHARS) -> str:
    if not isinstance(value, str):
        raise _fail(name, value, "text")
    if len(value) > limit:
        raise NotAMessage(f"{name} has {len(value)} characters, more than {limit}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotAMessage(f"{name} is not valid Unicode") from None
    return value


def _name(name: str, value: Any) -> str:
    text = _text(name, value, MAX_ID_CHARS)
    if not text or not text.isprintable():
        raise NotAMessage(f"{name} is empty or has characters that can't be printed")
    return text


def _whole(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _fail(name, value, "a whole number")
    if not 0 <= value <= most:
        raise NotAMessage(f"{name} is not between 0 and {most}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _fail(name, value, "true or false")
    return value


def _time(name: str, value: Any) -> str:
    text = _text(name, value, 64)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise NotAMessage(f"{name} is no ISO 8601 time") from None
    if not _EARLIEST <= (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) <= _LATEST:
        raise NotAMessage(f"{name} is not between 2000 and 2100")
    return text


def _limits(name: str, value: Any) -> list[float | None]:
    if not isinstance(value, list) or len(value) != 2:
        raise _fail(name, value, "a pair of seconds")
    for limit in value:
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, (int, float)):
            raise _fail(name, limit, "seconds")
        if not (math.isfinite(limit) and 0 < limit <= MAX_LIMIT_S):
            raise NotAMessage(f"{name} is not between 0 and {MAX_LIMIT_S} s")
    return value


def _excerpt(name: str, value: Any) -> str:
    return _text(name, value, MAX_BYTES)[:MAX_HEADER_CHARS]


Check = Callable[[str, Any], Any]
#: What a task needs of its headers. None is as good as absent.
_HEADERS: Mapping[str, Check] = {
    "lang": _text,
    "root_id": _name,
    "parent_id": _name,
    "group": _name,
    "group_index": lambda name, value: _whole(name, value, 2**31),
    "retries": lambda name, value: _whole(name, value, 1000),
    "eta": _time,
    "expires": _time,
    "timelimit": _limits,
    "origin": _text,
    # Written into events and logs where settings ask for it.
    "argsrepr": _excerpt,
    "kwargsrepr": _excerpt,
    "ignore_result": _flag,
    "replaced_task_nesting": lambda name, value: _whole(name, value, 1000),
    # https://www.w3.org/TR/trace-context/
    "traceparent": _text,
    "tracestate": _text,
}
_PROPERTIES: Mapping[str, Check] = {
    "correlation_id": _name,
    "reply_to": _name,
    "priority": lambda name, value: _whole(name, value, 255),
}


_COMMAND = {"method", "arguments", "destination", "pattern", "matcher", "ticket", "reply_to"}
_CONTROL_HEADERS: Mapping[str, Check] = {
    "clock": lambda name, value: _whole(name, value, 2**53),
    "expires": lambda name, value: value if isinstance(value, float) else _whole(name, value, 2**53),
    "ticket": _text,
    "hostname": _text,
}


def _kept(part: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    return {name: check(name, part[name]) for name, check in checks.items() if part.get(name) is not None}


def _depth(value: Any) -> int:
    """How deep objects and lists are nested, without recursion."""
    deepest, open_ = 0, [(value, 1)]
    while open_:
        found, depth = open_.pop()
        if isinstance(found, (dict, list)):
            deepest = max(deepest, depth)
            if depth > MAX_DEPTH:
                return depth
            open_.extend(
                (inner, depth + 1) for inner in (found.values() if isinstance(found, dict) else found)
            )
    return deepest


def _content(raw: Mapping[str, Any], properties: Mapping[str, Any]) -> Any:
    """The decoded JSON of the body."""
    if raw.get("content-type") != _CONTENT_TYPE:
        raise NotAMessage(f"the content type is not {_CONTENT_TYPE}")
    if raw.get("content-encoding") not in _CONTENT_ENCODINGS:
        raise NotAMessage("the content encoding is not utf-8")
    body, encoding = raw.get("body"), properties.get("body_encoding")
    if not isinstance(body, str):
        raise _fail("the body", body, "text")
    try:
        if encoding == "base64":
            data = base64.b64decode(body)
        elif encoding is None:
            data = body.encode()
        else:
            raise NotAMessage("the body's encoding is not base64")
        # Not as bytes: then the parser takes other encodings, and halves of surrogate pairs.
        content = json.loads(data.decode())
    except (ValueError, binascii.Error) as error:
        raise NotAMessage(f"the body is no JSON in UTF-8 ({type(error).__name__})") from None
    except RecursionError:
        raise NotAMessage("the body is nested too deep") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(content) > MAX_DEPTH:
        raise NotAMessage("the body is nested too deep")
    return content


def _signature(name: str, value: Any, depth: int = 0) -> None:
    """A task that is to be sent when this one has ended; Celery's chains and groups hold others in their arguments."""
    part = _mapping(name, value)
    _name(f"{name}.task", part.get("task"))
    for key, kind in (("args", list), ("kwargs", dict), ("options", dict)):
        if part.get(key) is not None and not isinstance(part[key], kind):
            raise _fail(f"{name}.{key}", part[key], f"a {kind.__name__}")


def _arguments(content: Any) -> None:
    if not isinstance(content, list) or len(content) != 3:
        raise _fail("the body", content, "a list of arguments, named arguments and what follows")
    args, kwargs, embed = content
    if not isinstance(args, list):
        raise _fail("args", args, "a list")
    _mapping("kwargs", kwargs)
    if embed is None:
        return
    _mapping("what follows", embed)
    for name in ("callbacks", "errbacks", "chain"):
        found = embed.get(name)
        if found is None:
            continue
        if not isinstance(found, list):
            raise _fail(name, found, "a list")
        for one in found:
            _signature(name, one)
    if embed.get("chord") is not None:
        _signature("chord", embed["chord"])


# --- whole messages


def parse(item: bytes | str) -> Any:
    """The JSON of what stood in a queue.

    Raises:
        NotAMessage: it is none, or is too long.
    """
    if len(item) > MAX_BYTES:
        raise NotAMessage(f"it has {len(item)} bytes, more than {MAX_BYTES}")
    try:
        return json.loads(item.decode() if isinstance(item, bytes) else item)
    except ValueError as error:
        raise NotAMessage(f"it is no JSON ({type(error).__name__})") from None
    except RecursionError:
        raise NotAMessage("it is nested too deep") from None


def check_task(raw: Any, queue: str) -> TaskMessage:
    """What a task's message has that Celery needs, and nothing else; it now belongs to ``queue``.

    Raises:
        UnreadableBody: only its body is at fault. NotAMessage: anything else is.
    """
    raw = _mapping("it", raw)
    given = _mapping("headers", raw.get("headers"))
    properties = _mapping("properties", raw.get("properties"))
    if given.get("compression") is not None:
        raise NotAMessage("it is compressed, which is not accepted")
    headers = {
        "task": _name("task", given.get("task")),
        "id": _name("id", given.get("id")),
        **_kept(given, _HEADERS),
    }
    clean = {
        **_kept(properties, _PROPERTIES),
        "delivery_mode": 2,
        # Ours, not the sender's: two messages with the same one would take each other's place.
        "delivery_tag": str(uuid.uuid4()),
        # Where it was found is where it is put back.
        "delivery_info": {"exchange": "", "routing_key": queue},
    }
    try:
        _arguments(_content(raw, properties))
    except NotAMessage as error:
        raise UnreadableBody(str(error), {**headers, **clean}) from None
    if properties.get("body_encoding") is not None:
        clean["body_encoding"] = properties["body_encoding"]
    message = {
        "body": raw["body"],
        "content-type": _CONTENT_TYPE,
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": clean,
    }
    return TaskMessage(message, headers["task"], headers["id"], headers.get("ignore_result", False))


def check_control(raw: Any, *, command: bool) -> dict[str, Any]:
    """A command of remote control; or an answer to one, or an event: what Celery reads of it.

    Raises:
        NotAMessage: a part is missing or of a wrong kind.
    """
    raw = _mapping("it", raw)
    given = _mapping("headers", raw.get("headers") or {})
    properties = _mapping("properties", raw.get("properties"))
    if given.get("compression") is not None:
        raise NotAMessage("it is compressed, which is not accepted")
    content = _content(raw, properties)
    if not isinstance(content, (dict, list)):
        raise _fail("the body", content, "an object or a list of events")
    if command:
        content = _mapping("the body", content)
        if content.keys() - _COMMAND:
            raise NotAMessage("the body has parts that no command has")
        _name("method", content.get("method"))
        if content.get("arguments") is not None:
            _mapping("arguments", content["arguments"])
        if content.get("destination") is not None:
            destination = content["destination"]
            if not isinstance(destination, list) or not all(isinstance(node, str) for node in destination):
                raise _fail("destination", destination, "a list of names")
        for name in ("pattern", "ticket"):
            if content.get(name) is not None:
                _text(name, content[name])
        # Regular expressions of strangers can take for ever.
        if content.get("matcher") not in (None, "glob"):
            raise NotAMessage("matcher is not glob")
        if content.get("reply_to") is not None:
            reply_to = _mapping("reply_to", content["reply_to"])
            _name("reply_to.exchange", reply_to.get("exchange"))
            _name("reply_to.routing_key", reply_to.get("routing_key"))
    headers = _kept(given, _CONTROL_HEADERS)
    info = properties.get("delivery_info")
    info = info if isinstance(info, dict) else {}
    clean: dict[str, Any] = {
        "delivery_tag": str(uuid.uuid4()),
        "delivery_info": {
            name: info[name] if isinstance(info.get(name), str) else ""
            for name in ("exchange", "routing_key")
        },
    }
    if properties.get("body_encoding") is not None:
        clean["body_encoding"] = properties["body_encoding"]
    return {
        "body": raw["body"],
        "content-type": _CONTENT_TYPE,
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": clean,
    }


def check_unacknowledged(entry: bytes | str) -> tuple[dict[str, Any], str]:
    """A message that some node took and did not acknowledge, and the queue it goes back to.

    Raises:
        NotAMessage: it is none of ours.
    """
    content = parse(entry)
    if not isinstance(content, list) or len(content) != 3:
        raise _fail("it", content, "a message with the place it came from")
    raw, _, queue = content
    if not isinstance(queue, str) or queue not in routing.QUEUES:
        raise NotAMessage("it came from no queue of ours")
    return check_task(raw, queue).raw, queue


def describe(raw: Any, may_show: Callable[[str], bool]) -> dict[str, Any]:
    """What may be logged of anything that was dropped: ids and sizes.

    ``may_show``: whether a task's name may be written out; one that no task has is the sender's own words.
    """
    said: dict[str, Any] = {"kind": type(raw).__name__}
    if not isinstance(raw, dict):
        return said
    headers, body = raw.get("headers"), raw.get("body")
    if isinstance(headers, dict):
        for name in ("task", "id"):
            try:
                said[name] = _name(name, headers.get(name))[:64]
            except NotAMessage:
                continue
        if "task" in said and not may_show(headers["task"]):
            said["task"] = HIDDEN
    if isinstance(body, (str, list, dict)):
        said["body_size"] = len(body)
    return said
