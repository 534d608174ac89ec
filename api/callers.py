"""Who asks: the local user, a key, or a user whom an OpenID provider or a trusted proxy names."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request

from api.asking import Asking
from api.limits import count_failure, count_request, require_few_failures
from api.problems import Forbidden, NotAuthenticated
from shared import routing
from shared.contracts import ID_PATTERN, CheckKey, KeyView
from shared.errors import NotFound
from shared.keys import read_key
from shared.settings import Settings

#: Longest time for which an ended key is accepted, seconds.
CHECKED_S = 30
MAX_CHECKED = 10_000
#: The cookie of a browser that has signed in with a key (api/routes/session.py).
COOKIE = "scenefleet_key"
#: The cookie of one that has signed in at the OpenID provider (api/sessions.py).
SESSION_COOKIE = "scenefleet_session"
#: How a key begins; what else is sent as one is a token.
KEY_PREFIX = "sf_"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and what they may do."""

    user_id: str
    #: Whether they may see and change what belongs to the fleet: models, nodes, queues.
    operator: bool
    how: Literal["local", "key", "proxy", "oidc"]
    #: The key they have shown; None: another way.
    key_id: str | None = None


class Keys:
    """Checks API keys; remembers for ``CHECKED_S`` whose they are, and which are not valid."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        #: (key id, hash) -> (until when, by the monotonic clock; whose; None: not valid)
        self._checked: dict[tuple[str, str], tuple[float, Caller | None]] = {}

    def knows(self, text: str) -> bool:
        """Whether ``check`` asks no node."""
        key = read_key(text)
        if key is None:
            return True
        until, _ = self._checked.get((key.key_id, key.secret_sha256), (0.0, None))
        return time.monotonic() < until

    async def check(self, text: str) -> Caller | None:
        """Whose key this is; None: it is not valid."""
        key = read_key(text)
        if key is None:
            return None
        named = (key.key_id, key.secret_sha256)
        if self.knows(text):
            return self._checked[named][1]
        asked = time.monotonic()
        kwargs = {"key_id": key.key_id, "secret_sha256": key.secret_sha256}
        try:
            found = await self._asking.ask(routing.KEYS_CHECK, CheckKey, kwargs, KeyView)
        except NotFound:
            who = None
        else:
            who = Caller(user_id=found.user_id, operator=found.operator, how="key", key_id=found.key_id)
        if len(self._checked) >= MAX_CHECKED:
            self._checked.clear()
        self._checked[named] = (asked + CHECKED_S, who)
        return who


async def caller(request: Request) -> Caller:
    """The dependency of every route but health.

    Raises:
        NotAuthenticated: the request names no user, or its key, token or sign-in is not valid.
        IssuerUnavailable: the OpenID provider does not answer, and a token can't be checked without it.
        Forbidden: the header of a proxy came from elsewhere.
        TooManyRequests: this caller has sent too many requests, or this address too many wrong keys.
    """
    who = await identify(request)
    if who.how != "local":
        await count_request(request, who.key_id or who.user_id)
    return who


async def identify(request: Request) -> Caller:
    """As ``caller``, without counting the request."""
    settings: Settings = request.app.state.settings
    who = (
        await _by_key(request, settings) or await _by_oidc(request, settings) or _by_proxy(request, settings)
    )
    if who is not None:
        return who
    if settings.says_who_asks:
        raise NotAuthenticated(_missing(settings))
    # Only this machine gets here: api.server listens on loopback, api.origins refuses foreign pages.
    return Caller(user_id=settings.user_id, operator=True, how="local")


async def operator(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """The dependency of routes for operators."""
    if not who.operator:
        raise Forbidden(f"user {who.user_id} is no operator: ask for a key made with --operator")
    return who


async def _by_key(request: Request, settings: Settings) -> Caller | None:
    if not settings.api_keys:
        return None
    text = _bearer(request)
    if text is None:
        text = request.cookies.get(COOKIE, "").strip()
    elif settings.oidc_issuer and not text.startswith(KEY_PREFIX):
        return None
    return await check_key(request, text) if text else None


def _bearer(request: Request) -> str | None:
    """What stands in `Authorization: Bearer`; None: no such header."""
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    return text.strip() if kind.lower() == "bearer" else None


async def check_key(request: Request, text: str) -> Caller:
    """Whose key this is.

    Raises:
        NotAuthenticated: it is not valid, or this API takes no keys.
        TooManyRequests: this address has sent too many wrong keys.
    """
    if not request.app.state.settings.api_keys:
        raise NotAuthenticated("this API takes no keys: set API_KEYS=true")
    keys: Keys = request.app.state.keys
    # What is known costs the fleet nothing: neither do others at this address stop a valid key, nor does a page with an
    # ended one stop others.
    known = keys.knows(text)
    if not known:
        await require_few_failures(request)
    who = await keys.check(text)
    if who is None:
        if not known:
            await count_failure(request)
        raise NotAuthenticated("the API key is not valid: it is mistyped, or has ended")
    return who


async def _by_oidc(request: Request, settings: Settings) -> Caller | None:
    if not settings.oidc_issuer:
        return None
    text = _bearer(request)
    if text:
        try:
            name = await request.app.state.issuer.check_bearer(text)
        except NotAuthenticated:
            await require_few_failures(request)
            await count_failure(request)
            raise
        return _named(as_user_id(name), settings, "oidc")
    token = request.cookies.get(SESSION_COOKIE)
    if not token:
        return None
    user_id = await request.app.state.sessions.find(token)
    if user_id is None:
        raise NotAuthenticated("the sign-in of this browser has ended: sign in again")
    return _named(user_id, settings, "oidc")


def _by_proxy(request: Request, settings: Settings) -> Caller | None:
    name = settings.api_user_header
    user = request.headers.get(name, "") if name else ""
    if not user:
        return None
    if len(request.headers.getlist(name)) > 1:
        raise Forbidden(f"the header {name} came twice: the proxy has to remove what clients send")
    if not is_trusted(peer(request), settings.api_trusted_proxies):
        raise Forbidden(
            f"{peer(request)} is no trusted proxy: add it to API_TRUSTED_PROXIES, or leave {name} out"
        )
    return _named(as_user_id(user), settings, "proxy")


def _named(user_id: str, settings: Settings, how: Literal["proxy", "oidc"]) -> Caller:
    operators = {as_user_id(part.strip()) for part in settings.api_operators.split(",") if part.strip()}
    return Caller(user_id=user_id, operator=user_id in operators, how=how)


def as_user_id(name: str) -> str:
    """The user id for a name that an identity provider has: itself, or where it is no id (a mail address), its hash."""
    if re.fullmatch(ID_PATTERN, name):
        return name
    return "u_" + hashlib.sha256(name.encode()).hexdigest()[:40]


def peer(request: Request) -> str:
    """The address at the other end of the connection."""
    return request.client.host if request.client else ""


def is_trusted(address: str, proxies: str) -> bool:
    """Whether an address is in one of the networks ``proxies`` lists."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks(proxies))


def networks(proxies: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The networks that API_TRUSTED_PROXIES lists.

    Raises:
        ValueError: an item is no address or network.
    """
    return [ipaddress.ip_network(part.strip()) for part in proxies.split(",") if part.strip()]


def _missing(settings: Settings) -> str:
    ways = []
    if settings.api_keys:
        ways.append("send an API key in `Authorization: Bearer`")
    if settings.oidc_issuer:
        ways.append(f"send a token of {settings.oidc_issuer} in `Authorization: Bearer`")
        if settings.oidc_client_id:
            ways.append("sign in at /api/v1/session/oidc")
    if settings.api_user_header:
        ways.append(f"come through the proxy that sets {settings.api_user_header}")
    return "nothing says who asks: " + " or ".join(ways)
