"""What a message in a queue must look like, and what is left of it when it is taken: pure functions over plain JSON.

Anybody who can write to Redis can put anything into a queue. Celery and kombu parse a message in many places, in the
main process of the node, and most of them end it when a part has an unexpected type. So a message is checked as a
whole before they see it, and only what a task needs is passed on: unknown headers, and those that Celery would take for
attributes of its own, are left out.

Must not import Celery: these checks are needed because of what it does with a message.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, ValidationError

from shared import routing
from shared.redaction import HIDDEN

#: Maximum size of a message that is read, bytes. Requests have a much lower limit, with an answer.
MAX_BYTES = 64 * 2**20
#: Maximum nesting of a body: Python's parser, and code that walks the result, fails at about a thousand.
MAX_DEPTH = 64
MAX_ID_CHARS = 255
MAX_HEADER_CHARS = 1024
#: Maximum time limit that a caller may give, seconds.
MAX_LIMIT_S = 7 * 24 * 3600
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


class NotAMessage(Exception):
    """An item of a queue is not a message. Names the part and what is wrong with it, never its content."""


class UnreadableBody(NotAMessage):
    """The body can't be used, but the sender can be told: the id is known."""

    def __init__(self, reason: str, headers: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.headers = headers


# --- parts


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("has characters that can't be printed")
    return value


def _time(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("is no ISO 8601 time") from None
    if not _EARLIEST <= (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) <= _LATEST:
        raise ValueError("is not between 2000 and 2100")
    return value


# Where a text has a maximum length, pydantic also refuses halves of surrogate pairs.
Text = Annotated[str, Field(max_length=MAX_HEADER_CHARS)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS), AfterValidator(_printable)]
Time = Annotated[str, Field(max_length=64), AfterValidator(_time)]
Excerpt = Annotated[str, Field(max_length=MAX_BYTES), AfterValidator(lambda value: value[:MAX_HEADER_CHARS])]
Limit = Annotated[float, Field(gt=0, le=MAX_LIMIT_S, allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of a message; None is the same as absent, and what is not named here is left out."""

    model_config = ConfigDict(strict=True)


class _Envelope(_Part):
    headers: dict[Any, Any]
    properties: dict[Any, Any]


class _Body(_Part):
    body: str
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8", "utf8"] = Field(alias="content-encoding")
    body_encoding: Literal["base64"] | None = None


class _Headers(_Part):
    """What a task needs of its headers."""

    task: Name
    id: Name
    compression: None = None
    lang: Text | None = None
    root_id: Name | None = None
    parent_id: Name | None = None
    group: Name | None = None
    group_index: Annotated[int, Field(ge=0, le=2**31)] | None = None
    retries: Annotated[int, Field(ge=0, le=1000)] | None = None
    eta: Time | None = None
    expires: Time | None = None
    # By the fleet's clock (shared/fleet_clock.py).
    sent_at: Annotated[float, Field(ge=0, le=_LATEST.timestamp(), allow_inf_nan=False)] | None = None
    timelimit: Annotated[list[Limit | None], Field(min_length=2, max_length=2)] | None = None
    origin: Text | None = None
    # Written to events and logs if LOG_PAYLOADS is on.
    argsrepr: Excerpt | None = None
    kwargsrepr: Excerpt | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: Annotated[int, Field(ge=0, le=1000)] | None = None
    # https://www.w3.org/TR/trace-context/
    traceparent: Text | None = None
    tracestate: Text | None = None
    # When it was sent, seconds since 1970 (shared/broker.py).
    scenefleet_sent: Annotated[float, Field(gt=0, lt=2**33)] | None = None
    # The reservation of its items (shared/admission.py).
    scenefleet_lease: Name | None = None


class _Properties(_Part):
    correlation_id: Name | None = None
    reply_to: Name | None = None
    priority: Annotated[int, Field(ge=0, le=255)] | None = None


class _Signature(_Part):  # type: ignore[no-redef] # pydantic's plugin: a field `kwargs`
    """A task that is to be sent when this one has ended; chains and groups hold others in their arguments."""

    task: Name
    args: list[Any] | None = None
    kwargs: dict[Any, Any] | None = None
    options: dict[Any, Any] | None = None


class _Embed(_Part):
    """What is to be sent when a task has ended."""

    callbacks: list[_Signature] | None = None
    errbacks: list[_Signature] | None = None
    chain: list[_Signature] | None = None
    chord: _Signature | None = None


class _Arguments(RootModel[tuple[list[Any], dict[Any, Any], _Embed | None]]):
    """The content of a task's body: arguments, named arguments, and what follows."""


class _Unacknowledged(RootModel[tuple[Any, Any, str]]):
    """A message, its exchange, and its queue, as kombu notes it when a node takes it."""


class _Name(RootModel[Name]):
    """A name by itself."""


class _ReplyTo(_Part):
    exchange: Name
    routing_key: Name


class _Command(_Part):
    """A command of remote control."""

    method: Name
    arguments: dict[Any, Any] | None = None
    destination: list[str] | None = None
    pattern: Text | None = None
    # A regular expression from a stranger may take for ever.
    matcher: Literal["glob"] | None = None
    ticket: Text | None = None
    reply_to: _ReplyTo | None = None


class _ControlHeaders(_Part):
    compression: None = None
    clock: Annotated[int, Field(ge=0, le=2**53)] | None = None
    expires: Annotated[float, Field(ge=0, le=2**53)] | None = None
    ticket: Text | None = None
    hostname: Text | None = None


P = TypeVar("P", bound=BaseModel)


def _check(kind: type[P], value: Any) -> P:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "it"
        raise NotAMessage(f"{place}: {fault['msg']}") from None


def _is_too_deep(content: Any) -> bool:
    """Whether objects and lists are nested deeper than ``MAX_DEPTH``; without recursion."""
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for part in level
            if isinstance(part, (dict, list))
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
    return any(isinstance(part, (dict, list)) for part in level)


def _content(raw: Mapping[str, Any], properties: Mapping[str, Any]) -> Any:
    """The decoded JSON of the body."""
    part = _check(_Body, {**raw, "body_encoding": properties.get("body_encoding")})
    try:
        data = base64.b64decode(part.body) if part.body_encoding else part.body.encode()
        # Not as bytes: then the parser takes other encodings, and halves of surrogate pairs.
        content = json.loads(data.decode())
    except ValueError as error:
        raise NotAMessage(f"the body is no JSON in UTF-8 ({type(error).__name__})") from None
    except RecursionError:
        raise NotAMessage("the body is nested too deep") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_too_deep(content):
        raise NotAMessage("the body is nested too deep")
    return content


# --- whole messages


def _clean(raw: Mapping[str, Any], headers: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """A checked message, with a delivery tag of our own: two with the same one would take each other's place."""
    encoding = raw["properties"].get("body_encoding")
    return {
        "body": raw["body"],
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            **properties,
            "delivery_tag": str(uuid.uuid4()),
            **({} if encoding is None else {"body_encoding": encoding}),
        },
    }


def check_task(raw: Any, queue: str) -> dict[str, Any]:
    """What a task's message has that Celery needs, and nothing else; it now belongs to ``queue``.

    Raises:
        UnreadableBody: only its body is at fault. NotAMessage: anything else is.
    """
    envelope = _check(_Envelope, raw)
    headers = _check(_Headers, envelope.headers).model_dump(exclude_none=True)
    properties = {
        **_check(_Properties, envelope.properties).model_dump(exclude_none=True),
        "delivery_mode": 2,
        # Where it was found is where it is put back.
        "delivery_info": {"exchange": "", "routing_key": queue},
    }
    try:
        _check(_Arguments, _content(raw, envelope.properties))
    except NotAMessage as error:
        raise UnreadableBody(str(error), {**headers, **properties}) from None
    return _clean(raw, headers, properties)


def check_control(raw: Any, *, command: bool) -> dict[str, Any]:
    """A command of remote control; or an answer to one, or an event: what Celery reads of it.

    Raises:
        NotAMessage: a part is missing or of a wrong kind.
    """
    envelope = _check(
        _Envelope, {**raw, "headers": raw.get("headers") or {}} if isinstance(raw, dict) else raw
    )
    content = _content(raw, envelope.properties)
    if command:
        _check(_Command, content)
        if content.keys() - _Command.model_fields.keys():
            raise NotAMessage("the body has parts that no command has")
    elif not isinstance(content, (dict, list)):
        raise NotAMessage("the body is neither an object nor a list of events")
    headers = _check(_ControlHeaders, envelope.headers).model_dump(exclude_none=True)
    info = envelope.properties.get("delivery_info")
    info = info if isinstance(info, dict) else {}
    place = {
        name: info[name] if isinstance(info.get(name), str) else "" for name in ("exchange", "routing_key")
    }
    return _clean(raw, headers, {"delivery_info": place})


def check_unacknowledged(entry: bytes | str) -> tuple[dict[str, Any], str]:
    """A message that some node took and did not acknowledge, and the queue it goes back to.

    Raises:
        NotAMessage: it is none of ours.
    """
    if len(entry) > MAX_BYTES:
        raise NotAMessage(f"it has {len(entry)} bytes, more than {MAX_BYTES}")
    try:
        content = json.loads(entry.decode() if isinstance(entry, bytes) else entry)
    except (ValueError, RecursionError) as error:
        raise NotAMessage(f"it is no JSON ({type(error).__name__})") from None
    raw, _, queue = _check(_Unacknowledged, content).root
    if queue not in routing.QUEUES:
        raise NotAMessage("it came from no queue of ours")
    return check_task(raw, queue), queue


def describe(raw: Any, may_show: Callable[[str], bool]) -> dict[str, Any]:
    """What may be logged of a dropped message: ids and sizes.

    ``may_show``: whether a task's name may be logged; a name that no task has is the sender's own text.
    """
    said: dict[str, Any] = {"kind": type(raw).__name__}
    if not isinstance(raw, dict):
        return said
    headers, body = raw.get("headers"), raw.get("body")
    if isinstance(headers, dict):
        for name in ("task", "id"):
            with suppress(NotAMessage):
                said[name] = _check(_Name, headers.get(name)).root[:64]
        if "task" in said and not may_show(headers["task"]):
            said["task"] = HIDDEN
    if isinstance(body, (str, list, dict)):
        said["body_size"] = len(body)
    return said
