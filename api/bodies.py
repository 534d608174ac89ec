"""JSON bodies: what a contract has, less the fields that the caller and the path say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from fastapi import Depends, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool as in_thread

from api.callers import Caller, caller
from api.dialects import InvalidParameter
from api.limits import MAX_JSON_BYTES, read_body
from api.problems import UnsupportedMedia
from shared.contracts.base import Contract, Part, describe_fault
from shared.errors import InvalidRequest

#: Definitions for the OpenAPI file that no route's model brings.
SCHEMAS: dict[str, Any] = {}


@dataclass(frozen=True)
class JsonBody:
    """A kind of body."""

    #: The dependency that reads one: an object without the fields that are not the body's. ``Asking.ask`` checks the rest.
    read: Callable[[Request], Awaitable[dict[str, Any]]]
    #: The route's ``openapi_extra``.
    extra: dict[str, Any]


def json_body(
    contract: type[Contract], *without: str, optional: tuple[str, ...] = (), name: str | None = None
) -> JsonBody:
    """The body of a request that is ``contract`` less some fields; its name in OpenAPI is ``name`` or the contract's.

    ``optional``: fields that the contract requires and the route can say itself.
    """
    name = name or contract.__name__
    schema = contract.model_json_schema(ref_template="#/components/schemas/{model}")
    SCHEMAS.update(schema.pop("$defs", {}))
    hidden = {*without, "version"}
    properties = {field: found for field, found in schema["properties"].items() if field not in hidden}
    required = [field for field in schema.get("required", ()) if field not in {*hidden, *optional}]
    SCHEMAS[name] = {**schema, "title": name, "properties": properties, "required": required}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    async def read(request: Request) -> dict[str, Any]:
        return parse_object(request, await read_body(request, MAX_JSON_BYTES), hidden)

    return JsonBody(read, {"requestBody": {"required": bool(required), "content": content}})


def parse_object(request: Request, data: bytes, hidden: set[str]) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        UnsupportedMedia: the body is said to be something else.
        InvalidRequest: it is no JSON object, or has a field that it must not have.
    """
    if not data:
        return {}
    require_type(request, "application/json")
    try:
        found = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"the body is a JSON {type(found).__name__}: send an object with named fields")
    for name in hidden:
        if name in found:
            raise InvalidRequest(
                f"the body has the field {name}, which is not the body's to say: leave it out"
            )
    return found


def require_type(request: Request, wanted: str) -> None:
    """Refuse a body that is said to be something else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise UnsupportedMedia(f"the body's content type is {kind[:100]!r}: send {wanted}")


P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class PartBody(Generic[P]):
    """A kind of body that is no payload of a task: a drop-in request, which may be large."""

    kind: type[P]
    max_bytes: int

    @property
    def extra(self) -> dict[str, Any]:
        """The route's ``openapi_extra``."""
        schema = self.kind.model_json_schema(ref_template="#/components/schemas/{model}")
        SCHEMAS.update(schema.pop("$defs", {}))
        SCHEMAS[self.kind.__name__] = schema
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{self.kind.__name__}"}}}
        return {"requestBody": {"required": True, "content": content}}

    async def read(self, request: Request, who: Annotated[Caller, Depends(caller)]) -> AsyncIterator[P]:
        """The dependency that reads one. Of large ones a user may have a few at once.

        Raises:
            UnsupportedMedia, BodyTooLarge, SlowClient, TooManyRequests.
            InvalidParameter: a field is not acceptable.
        """
        require_type(request, "application/json")
        announced = request.headers.get("content-length", "")
        is_small = announced.isdecimal() and int(announced) <= MAX_JSON_BYTES
        with ExitStack() as held:
            if not is_small:
                held.enter_context(request.app.state.large_bodies.hold(who.user_id))
            data = await read_body(request, self.max_bytes)
            if is_small:
                parsed = self._parse(data)
            else:
                # What is parsed may take twenty times the memory, until it is refused.
                async with request.app.state.parsing:
                    parsed = await in_thread(self._parse, data)
            del data
            yield parsed

    def _parse(self, data: bytes) -> P:
        try:
            return self.kind.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            named = ".".join(str(part) for part in fault["loc"])
            raise InvalidParameter(describe_fault(fault), named[:100] or "body") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
