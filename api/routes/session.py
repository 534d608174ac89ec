"""Sign-in of a browser: it can't send a key or token with a picture, a video or a stream, so what says who asks stands in a cookie."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from api import problems
from api.bodies import json_body
from api.callers import COOKIE, SESSION_COOKIE, as_user_id, check_key
from api.limits import count_failure, require_few_failures
from api.oidc import Issuer
from api.problems import NotAuthenticated
from shared.contracts import SignIn, parse
from shared.errors import NotFound
from shared.logs import get_logger
from shared.settings import Settings

log = get_logger(__name__)
router = APIRouter(tags=["session"], responses=problems.responses())
#: Lifetime of the cookie with a key, seconds; an ended key is refused all the same.
REMEMBERED_S = 30 * 24 * 3600
#: Time for signing in at the OpenID provider, seconds.
SIGN_IN_S = 600
OIDC_PATH = "/api/v1/session/oidc"
#: Where the page says that a sign-in failed.
FAILED = "/#sign-in-failed"
#: A path of this site: no `//host`, no `/\\host`.
PATH = r"^/([!-.0-\[\]-~][!-~]*)?$"
Body = json_body(SignIn)


class SignInWays(BaseModel):
    """How a browser can sign in here."""

    #: Whether `POST /session` takes an API key.
    key: bool
    #: The address that leads to the OpenID provider; null: there is none.
    oidc: str | None


@router.get("/session")
async def sign_in_ways(request: Request) -> SignInWays:
    """Say how a browser can sign in. Needs no sign-in."""
    settings: Settings = request.app.state.settings
    oidc = OIDC_PATH if settings.oidc_issuer and settings.oidc_client_id else None
    return SignInWays(key=settings.api_keys, oidc=oidc)


@router.post("/session", status_code=204, responses=problems.responses(413, 415), openapi_extra=Body.extra)
async def sign_in(
    request: Request, response: Response, body: Annotated[dict[str, Any], Depends(Body.read)]
) -> None:
    """Let this browser ask with an API key until it signs out."""
    key = parse(SignIn, body).key
    await check_key(request, key)
    _set_cookie(request, response, COOKIE, key, REMEMBERED_S)


@router.delete("/session", status_code=204)
async def sign_out(request: Request, response: Response) -> None:
    """Let this browser forget its key, and end its sign-in."""
    for name in (COOKIE, SESSION_COOKIE):
        response.delete_cookie(name, path="/api/", httponly=True, samesite="strict")
    token = request.cookies.get(SESSION_COOKIE)
    if token:
        await request.app.state.sessions.end(token)


REDIRECT: dict[int | str, dict[str, Any]] = {303: {"description": "Go on there"}}


@router.get(
    "/session/oidc",
    status_code=303,
    response_class=RedirectResponse,
    responses=REDIRECT | problems.responses(404),
)
async def begin_oidc(
    request: Request,
    next: Annotated[
        str, Query(pattern=PATH, max_length=1000, description="Where the browser goes afterwards")
    ] = "/",
) -> RedirectResponse:
    """Lead this browser to the OpenID provider, to sign in there."""
    issuer = _issuer(request)
    state, nonce, verifier = (secrets.token_urlsafe(48) for _ in range(3))
    url = await issuer.sign_in_url(_redirect_uri(request), state, nonce, verifier)
    response = RedirectResponse(url, 303)
    said = json.dumps({"state": state, "nonce": nonce, "verifier": verifier, "next": next})
    response.set_cookie(
        _begun(state),
        base64.urlsafe_b64encode(said.encode()).decode(),
        max_age=SIGN_IN_S,
        path=OIDC_PATH,
        secure=_is_https(request),
        httponly=True,
        # Strict would keep it from the provider's redirect back.
        samesite="lax",
    )
    return response


@router.get(
    "/session/oidc/callback",
    status_code=303,
    response_class=RedirectResponse,
    responses=REDIRECT | problems.responses(404),
)
async def end_oidc(
    request: Request,
    state: Annotated[str, Query(max_length=200)] = "",
    code: Annotated[str, Query(max_length=3000)] = "",
    iss: Annotated[str, Query(max_length=500)] = "",
    error: Annotated[str, Query(max_length=200)] = "",
) -> RedirectResponse:
    """Where the OpenID provider leads a browser back: let it ask as the user who has signed in.

    A person whose sign-in failed gets the page, which says so; a program gets a problem document.
    """
    issuer = _issuer(request)
    try:
        return await _signed_in(request, issuer, state, code, iss, error)
    except NotAuthenticated as refusal:
        if "text/html" not in request.headers.get("accept", ""):
            raise
        log.info("a sign-in by OIDC failed", error=refusal)
        return RedirectResponse(FAILED, 303)


async def _signed_in(
    request: Request, issuer: Issuer, state: str, code: str, iss: str, error: str
) -> RedirectResponse:
    settings = request.app.state.settings
    begun = _read_begun(request, state)
    await require_few_failures(request)
    try:
        if error or not code:
            raise NotAuthenticated(f"the provider refuses the sign-in ({error or 'no code'}): sign in again")
        if iss and iss != settings.oidc_issuer:
            raise NotAuthenticated(f"the sign-in is of another provider than {settings.oidc_issuer}")
        name = await issuer.exchange(code, _redirect_uri(request), begun["nonce"], begun["verifier"])
    except NotAuthenticated:
        await count_failure(request)
        raise
    token = await request.app.state.sessions.open(as_user_id(name), settings.oidc_session_s)
    response = RedirectResponse(begun["next"], 303)
    _set_cookie(request, response, SESSION_COOKIE, token, settings.oidc_session_s)
    response.delete_cookie(COOKIE, path="/api/", httponly=True, samesite="strict")
    response.delete_cookie(_begun(state), path=OIDC_PATH, httponly=True, samesite="lax")
    return response


def _issuer(request: Request) -> Issuer:
    issuer: Issuer | None = request.app.state.issuer
    if issuer is None or not request.app.state.settings.oidc_client_id:
        raise NotFound("this API has no sign-in by OIDC: set OIDC_ISSUER and OIDC_CLIENT_ID")
    return issuer


def _begun(state: str) -> str:
    """The cookie of a sign-in that has begun: several may, in several tabs."""
    return f"scenefleet_oidc_{state[:12]}"


def _read_begun(request: Request, state: str) -> dict[str, str]:
    try:
        found = json.loads(base64.urlsafe_b64decode(request.cookies.get(_begun(state), "")))
        if secrets.compare_digest(found["state"].encode(), state.encode()):
            return {name: str(found[name]) for name in ("nonce", "verifier", "next")}
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise NotAuthenticated(
        f"this sign-in was not begun in this browser in the last {SIGN_IN_S // 60} minutes: begin at {OIDC_PATH}"
    )


def _redirect_uri(request: Request) -> str:
    base = request.app.state.settings.api_public_url
    if not base:
        base = f"{'https' if _is_https(request) else 'http'}://{request.headers.get('host', '')}"
    return f"{base}{OIDC_PATH}/callback"


def _set_cookie(request: Request, response: Response, name: str, value: str, lifetime_s: int) -> None:
    response.set_cookie(
        name,
        value,
        max_age=lifetime_s,
        path="/api/",
        secure=_is_https(request),
        httponly=True,
        samesite="strict",
    )


def _is_https(request: Request) -> bool:
    # Who forges the header gets a stricter cookie.
    settings: Settings = request.app.state.settings
    schemes = (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
    return "https" in schemes or settings.api_public_url.startswith("https:")
