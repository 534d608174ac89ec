"""Turns errors into problem documents (RFC 9457, ``application/problem+json``), and names the API's own errors."""

from __future__ import annotations

import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from api import dialects
from shared import errors

#: A problem's type is this and its class in lower case: the errors' table of the documentation.
DOCS = "https://github.com/scenefleet/scenefleet/blob/main/docs/api.md#"
MEDIA_TYPE = "application/problem+json"
#: Seconds after which a client may ask again when a server was away.
RETRY_AFTER_S = 2


class Problem(BaseModel):
    """What went wrong."""

    type: str = Field(description="URI of the error's class")
    title: str = Field(description="The class in a sentence")
    status: int = Field(description="HTTP status")
    detail: str = Field(description="What was wrong, with which value, and what to do")
    code: str = Field(description="The error's class, as the fleet and the command name it")


class BadRequest(errors.Permanent):
    """The HTTP request is malformed."""


class NotAuthenticated(errors.Permanent):
    """The request does not say who asks."""


class Forbidden(errors.Permanent):
    """The caller may not do this."""


class UnsupportedMedia(errors.Permanent):
    """The content type of the body is not accepted here."""


class BodyTooLarge(errors.Permanent):
    """The body is larger than this request may be."""


class UnsupportedVersion(errors.Permanent):
    """The client speaks another version of tus."""


class UploadGone(errors.Permanent):
    """The upload is complete, but the fleet has refused the video."""


class UploadLocked(errors.Retryable):
    """Another request works on the same upload."""


class ChecksumMismatch(errors.Retryable):
    """The bytes of a request are not those of its checksum; none of them counts."""


class RangeNotSatisfiable(errors.Permanent):
    """The requested bytes are beyond the end of the file."""

    def __init__(self, message: str, *, size_bytes: int) -> None:
        super().__init__(message)
        self.headers = {"Content-Range": f"bytes */{size_bytes}"}


class SlowClient(errors.Retryable):
    """The client took too long to send its request."""


class IssuerUnavailable(errors.Outage):
    """The OpenID provider does not answer."""


class TooManyRequests(errors.Retryable):
    """The caller has sent too many requests."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


#: The first class that fits an error tells its status.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (BadRequest, 400),
    (NotAuthenticated, 401),
    (Forbidden, 403),
    (errors.NotFound, 404),
    (errors.ObjectMissing, 404),
    (SlowClient, 408),
    (errors.Conflict, 409),
    (UploadGone, 410),
    (UnsupportedVersion, 412),
    (errors.ModelUnavailable, 409),
    (BodyTooLarge, 413),
    (errors.LimitExceeded, 413),
    (UnsupportedMedia, 415),
    (RangeNotSatisfiable, 416),
    (errors.InvalidRequest, 422),
    (errors.InvalidKey, 422),
    (errors.BadMedia, 422),
    (UploadLocked, 423),
    (TooManyRequests, 429),
    (ChecksumMismatch, 460),
    (errors.QuotaExceeded, 429),
    (errors.Overloaded, 429),
    (errors.Retryable, 503),
)
#: What Starlette and FastAPI raise themselves, by status.
TITLES = {
    400: (BadRequest, "The HTTP request is malformed."),
    404: (errors.NotFound, "There is nothing at this address."),
    405: (BadRequest, "The method is not allowed here."),
}


def status_of(error: Exception) -> int:
    """The HTTP status that says what kind of error this is."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def problem(
    error: Exception, status: int | None = None, headers: dict[str, str] | None = None, *, path: str = ""
) -> JSONResponse:
    """The response that tells an error, as the clients of the address ``path`` read it."""
    found = status or status_of(error)
    kind = type(error)
    detail = str(error)
    if found == 500:
        # What broke inside is for the log.
        kind, detail = errors.ScenefleetError, "internal error: it is in the API's log, please report it"
    extra = {**getattr(error, "headers", {}), **(headers or {})}
    if found == 401:
        extra["WWW-Authenticate"] = 'Bearer realm="scenefleet"'
    if found == 429 or (found == 503 and isinstance(error, errors.Retryable)):
        extra["Retry-After"] = str(math.ceil(getattr(error, "retry_after_s", RETRY_AFTER_S)))
    extra = {"Cache-Control": "no-store", **extra}
    dialect = dialects.dialect_of(path)
    if dialect is not None:
        found = dialects.status_for(dialect, found, error)
        told = dialects.tell(dialect, found, detail, error)
        return JSONResponse(told.model_dump(), found, extra)
    content = Problem(
        type=DOCS + kind.__name__.lower(),
        title=(kind.__doc__ or kind.__name__).split("\n")[0],
        status=found,
        detail=detail,
        code=kind.__name__,
    )
    return JSONResponse(content.model_dump(), found, extra, MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route for OpenAPI: those of every route, and these."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _described(status), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({400, 401, 403, 422, 429, 503, *statuses})
    }


def _described(status: int) -> str:
    kinds = [kind for kind, found in STATUS if found == status]
    return " ".join((kind.__doc__ or "").split("\n")[0] for kind in kinds)


def install(app: FastAPI) -> None:
    """Let an application answer every error by a problem document."""
    app.add_exception_handler(errors.ScenefleetError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)


async def _known(request: Request, error: Exception) -> JSONResponse:
    request.app.state.metrics.count_refusal(error, status_of(error))
    return problem(error, path=request.url.path)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = request.url.path
    name = ".".join(str(part) for part in first["loc"][1:]) or "request"
    if first["type"] == "missing":
        return problem(errors.InvalidRequest(f"{name} is missing: send it"), path=path)
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return problem(errors.InvalidRequest(f"{name}={shown} is not acceptable: {first['msg']}"), path=path)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind, title = TITLES.get(error.status_code, (BadRequest, str(error.detail)))
    detail = f"{title.rstrip('.')}: {request.method} {request.url.path}"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return problem(kind(detail), error.status_code, headers, path=request.url.path)


def _methods(request: Request) -> set[str]:
    """The methods that an address takes, of all its routes."""
    described: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    if request.url.path in described:
        return {method.upper() for method in described[request.url.path]}
    return {
        method.upper()
        for path, operations in described.items()
        if re.fullmatch(re.sub(r"\\{.*?\\}", "[^/]+", re.escape(path)), request.url.path)
        for method in operations
    }


async def _internal(request: Request, error: Exception) -> JSONResponse:
    return problem(error, 500, path=request.url.path)
