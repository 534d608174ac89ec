"""JSON bodies: what a contract has, less the fields that the caller and the path say."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from fastapi import Request

from api.limits import MAX_JSON_BYTES, read_body
from api.problems import UnsupportedMedia
from shared.contracts.base import Contract
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
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMedia(f"the body's content type is {kind!r}: send application/json")
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


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
