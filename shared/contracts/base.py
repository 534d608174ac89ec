"""The base class of contracts, and the check of payloads from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from ..errors import InvalidRequest

MAX_MESSAGE_BYTES = 4096

MAX_QUERY_CHARS = 1000

MAX_NAME_CHARS = 200

#: Maximum size of a caller's picture (query or photo): one of 48 megapixels has about 25 MB.
MAX_PICTURE_BYTES = 32 * 2**20

MAX_PICTURE_PIXELS = 50_000_000

ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"


def _check_id(value: str) -> str:
    if not re.fullmatch(ID_PATTERN, value):
        raise ValueError(f"must match {ID_PATTERN}")
    return value


def _check_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode text") from error
    return value


def _check_moment(value: object) -> object:
    # Pydantic also takes numbers, as seconds since 1970, and a date alone.
    if isinstance(value, datetime) or (isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value)):
        return value
    raise ValueError("must be a date and time, as in 2026-01-31T12:00:00Z")


def _check_name(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("must be one printable line without surrounding blanks")
    return value


Id = Annotated[str, AfterValidator(_check_id), Field(json_schema_extra={"pattern": f"^{ID_PATTERN}$"})]

Text = Annotated[str, AfterValidator(_check_text)]

#: A date and time of ISO 8601. Not strict: what a validator has seen counts as Python, where strict wants an object.
Moment = Annotated[datetime, BeforeValidator(_check_moment), Field(strict=False)]

PersonName = Annotated[Text, AfterValidator(_check_name), Field(min_length=1, max_length=MAX_NAME_CHARS)]

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]

#: Kinds of models whose vectors are searched.
SearchedKind = Literal["text", "vision"]


#: x, y, width, height in pixels of the picture it is in.
Box = Annotated[
    tuple[float, float, float, float],
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}),
]


class Part(BaseModel):
    """A part of a contract, which carries the version for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Contract(Part):
    """A payload or an answer: a JSON document of its own."""

    #: Maximum size of a payload, as JSON text.
    max_bytes: ClassVar[int] = MAX_MESSAGE_BYTES

    version: Literal[1] = 1


C = TypeVar("C", bound=Contract)


def parse(contract: type[C], payload: Mapping[str, Any]) -> C:
    """Check a payload from outside.

    Raises:
        InvalidRequest: the payload exceeds the contract's ``max_bytes``, or names the first invalid field and its value.
    """
    if not isinstance(payload, Mapping):
        raise InvalidRequest(
            f"the payload of {contract.__name__} is a {type(payload).__name__}: send an object with named fields"
        )
    try:
        # As UTF-8: escaped, a letter of another script would count six bytes.
        data = json.dumps(payload, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"the payload of {contract.__name__} contains text that is not valid Unicode: send UTF-8"
        ) from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(
            f"the payload of {contract.__name__} is not plain JSON: send strings and numbers"
        ) from None
    if len(data) > contract.max_bytes:
        raise InvalidRequest(
            f"the payload of {contract.__name__} has {len(data)} bytes, more than {contract.max_bytes}:"
            " send storage keys, not data"
        )
    try:
        return contract.model_validate_json(data)
    except ValidationError as error:
        raise InvalidRequest(describe_fault(error.errors()[0])) from None


def describe_fault(fault: Any) -> str:
    """One sentence for one of pydantic's errors."""
    name = ".".join(str(part) for part in fault["loc"]) or "payload"
    if not name.isprintable() or len(name) > 60:
        # An unknown field: its name comes from the caller.
        name = ascii(name)[:60]
    if fault["type"] == "missing":
        return f"{name} is missing: send it"
    value = repr(fault.get("input"))
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{name}={shown} is not acceptable: {fault['msg']}"
