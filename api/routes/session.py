"""Sign-in of a browser: it can't send a key with a picture, a video or a stream, so the key stands in a cookie."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from api import problems
from api.bodies import json_body
from api.callers import COOKIE, check_key
from shared.contracts import SignIn, parse

router = APIRouter(tags=["session"], responses=problems.responses())
#: Lifetime of the cookie, seconds; an ended key is refused all the same.
REMEMBERED_S = 30 * 24 * 3600
Body = json_body(SignIn)


@router.post("/session", status_code=204, responses=problems.responses(413, 415), openapi_extra=Body.extra)
async def sign_in(
    request: Request, response: Response, body: Annotated[dict[str, Any], Depends(Body.read)]
) -> None:
    """Let this browser ask with an API key until it signs out."""
    key = parse(SignIn, body).key
    await check_key(request, key)
    response.set_cookie(
        COOKIE,
        key,
        max_age=REMEMBERED_S,
        path="/api/",
        secure=_is_https(request),
        httponly=True,
        samesite="strict",
    )


@router.delete("/session", status_code=204)
async def sign_out(response: Response) -> None:
    """Let this browser forget its key."""
    response.delete_cookie(COOKIE, path="/api/", httponly=True, samesite="strict")


def _is_https(request: Request) -> bool:
    # Who forges the header gets a stricter cookie.
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
