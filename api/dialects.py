"""Errors as the clients of other services read them: OpenAI's, Cohere's (and Jina's) and TEI's, by address.

Imports nothing of the API, so that ``problems`` can use it for every error of an address, also for those of no route.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from shared import errors

Dialect = Literal["openai", "cohere", "tei"]
#: Addresses outside OpenAI's, which are all others under /v1.
_COHERE = ("/v1/rerank", "/v1/embed", "/v2/rerank", "/v2/embed")
_TEI = ("/rerank", "/embed", "/similarity")


class InvalidParameter(errors.InvalidRequest):
    """A parameter of a request is not acceptable."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        #: Its name, as OpenAI's clients show it.
        self.param = param


class UnknownModel(errors.ModelUnavailable):
    """The request names a model that callers can't use."""


class OpenAIErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="What was wrong, with which value, and what to do")
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`")
    param: str | None = Field(description="The parameter that is not acceptable")
    code: str = Field(
        description="`model_not_found`, `invalid_api_key`, `rate_limit_exceeded` or the error's class"
    )


class OpenAIError(BaseModel):
    """An error of the addresses that OpenAI's clients call."""

    error: OpenAIErrorDetail


class CohereError(BaseModel):
    """An error of the addresses that Cohere's and Jina's clients call."""

    message: str = Field(description="What was wrong, with which value, and what to do")
    detail: str = Field(description="The same, where Jina's clients look for it")


class TEIError(BaseModel):
    """An error of the addresses that clients of Text Embeddings Inference call."""

    error: str = Field(description="What was wrong, with which value, and what to do")
    error_type: str = Field(description="`validation`, `overloaded`, `unhealthy` or `backend`")


SHAPES: dict[Dialect, type[BaseModel]] = {"openai": OpenAIError, "cohere": CohereError, "tei": TEIError}


def dialect_of(path: str) -> Dialect | None:
    """Whose errors an address answers with; None: problem documents."""
    if path in _TEI:
        return "tei"
    if path in _COHERE or path.startswith("/v2/"):
        return "cohere"
    return "openai" if path.startswith("/v1/") else None


def status_for(dialect: Dialect, status: int, error: Exception) -> int:
    """The status by which clients choose their exception, for one of ``problems.STATUS``."""
    if isinstance(error, errors.DeviceUnavailable | errors.ModelDoesNotFit):
        return 503
    if isinstance(error, errors.ModelUnavailable):
        return 404
    return 400 if status == 422 and dialect != "tei" else status


def tell(dialect: Dialect, status: int, detail: str, error: Exception) -> BaseModel:
    """The body of an error. ``detail``: its sentence."""
    if dialect == "cohere":
        return CohereError(message=detail, detail=detail)
    if dialect == "tei":
        kinds = {429: "overloaded", 500: "backend", 503: "unhealthy"}
        return TEIError(error=detail, error_type=kinds.get(status, "validation"))
    kinds = {429: "rate_limit_error"}
    codes = {401: "invalid_api_key", 429: "rate_limit_exceeded", 500: "ScenefleetError"}
    code = "model_not_found" if isinstance(error, UnknownModel) else type(error).__name__
    return OpenAIError(
        error=OpenAIErrorDetail(
            message=detail,
            type="server_error" if status >= 500 else kinds.get(status, "invalid_request_error"),
            param=getattr(error, "param", "model" if isinstance(error, UnknownModel) else None),
            code=codes.get(status, "InvalidRequest" if isinstance(error, InvalidParameter) else code),
        )
    )


def responses(dialect: Dialect, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route for OpenAPI: the errors of every route of a dialect, and these."""
    invalid = 422 if dialect == "tei" else 400
    found = {400, 401, 403, 404, 408, 413, 415, 429, 503, invalid, *statuses}
    return {status: {"description": DESCRIBED[status], "model": SHAPES[dialect]} for status in sorted(found)}


DESCRIBED = {
    400: "The request is malformed, or a value is not acceptable.",
    401: "The request does not say who asks.",
    403: "The caller may not do this.",
    404: "Callers can't use this model, or there is nothing at this address.",
    408: "The body came too slowly.",
    413: "The body, or the sound in it, is larger than allowed.",
    415: "The content type of the body is not accepted here.",
    422: "A value is not acceptable.",
    429: "More than allowed at this time: `Retry-After` says when to ask again.",
    503: "A server or node is away: ask again.",
}
