"""What the API believes of an OpenID provider, which a transport plays here; tests/integration/test_oidc.py has a real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from api import oidc
from api.oidc import Issuer
from api.problems import IssuerUnavailable, NotAuthenticated
from shared.errors import InvalidRequest
from shared.settings import Settings

URL = "https://sign-in.example/realm"
KEY = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"})
Answer = Callable[[httpx.Request], httpx.Response]


def settings(**changed: str) -> Settings:
    return Settings(**{"oidc_issuer": URL, "oidc_client_id": "page", "oidc_client_secret": "x", **changed})


def token(key: RSAKey = KEY, **claims: Any) -> str:
    now = int(time.time())
    said = {"iss": URL, "aud": "page", "sub": "ann", "iat": now, "exp": now + 60, **claims}
    return jwt.encode({"alg": "RS256", "kid": key.kid}, said, key)


class Played:
    """A provider whose answers a test may change."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {
            "issuer": URL,
            "authorization_endpoint": f"{URL}/auth",
            "token_endpoint": f"{URL}/token",
            "jwks_uri": f"{URL}/keys",
        }
        self.keys: list[Any] = [KEY.as_dict(private=False)]
        self.id_token = ""
        self.seen: list[str] = []
        self.fault: Exception | httpx.Response | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request.url.path.removeprefix("/realm"))
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault is not None:
            return self.fault
        found = {
            "/.well-known/openid-configuration": self.metadata,
            "/keys": {"keys": self.keys},
            "/token": {"id_token": self.id_token},
        }
        return httpx.Response(200, json=found[self.seen[-1]])

    def issuer(self, **changed: str) -> Issuer:
        found = Issuer(settings(**changed))
        found._http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return found


def test_made_up_keys_cost_the_provider_one_look_per_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    played, other = Played(), RSAKey.generate_key(2048, {"kid": "k2"})
    look = ["/.well-known/openid-configuration", "/keys"]

    async def story() -> None:
        issuer = played.issuer()
        # Many at once wait for one look.
        assert set(await asyncio.gather(*(issuer.check_bearer(token()) for _ in range(20)))) == {"ann"}
        assert played.seen == look
        for _ in range(20):
            with pytest.raises(NotAuthenticated):
                await issuer.check_bearer(token(other))
        assert played.seen == look
        played.keys.append(other.as_dict(private=False))
        issuer._next_look = 0.0
        assert await issuer.check_bearer(token(other)) == "ann"
        assert played.seen == look * 2

    asyncio.run(story())


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("refused"),
        httpx.Response(503, json={}),
        httpx.Response(302, headers={"location": "https://evil.example/"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, content=b" " * (oidc.MAX_ANSWER_BYTES + 1)),
        httpx.Response(200, json={"issuer": URL}),
    ],
    ids=lambda fault: str(getattr(fault, "status_code", "away")),
)
def test_a_provider_that_does_not_answer_is_named_and_left_alone_for_a_while(fault: Any) -> None:
    played = Played()
    played.fault = fault

    async def story() -> None:
        issuer = played.issuer()
        for _ in range(5):
            with pytest.raises(
                IssuerUnavailable, match=r"^the OpenID provider https://sign-in\.example/realm"
            ):
                await issuer.check_bearer(token())
        assert len(played.seen) == 1
        played.fault, issuer._next_look = None, 0.0
        assert await issuer.check_bearer(token()) == "ann"

    asyncio.run(story())


def test_known_keys_count_for_a_day_while_the_provider_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    played, now = Played(), time.monotonic()

    async def story() -> None:
        issuer = played.issuer()
        await issuer.check_bearer(token())
        played.fault = httpx.ConnectError("refused")
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now + oidc.KEPT_MAX_S - 10)
        assert await issuer.check_bearer(token()) == "ann"
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now + oidc.KEPT_MAX_S + 10)
        with pytest.raises(IssuerUnavailable):
            await issuer.check_bearer(token())

    asyncio.run(story())


def test_one_request_waits_for_a_slow_provider_and_the_others_do_not() -> None:
    played = Played()

    async def story() -> None:
        issuer, begun, answered = played.issuer(), asyncio.Event(), asyncio.Event()
        await issuer.check_bearer(token())
        assert issuer._published is not None
        issuer._published = replace(issuer._published, read_at=time.monotonic() - oidc.KEPT_S - 1)
        issuer._next_look = 0.0

        async def slow(request: httpx.Request) -> httpx.Response:
            begun.set()
            await answered.wait()
            return played(request)

        issuer._http = httpx.AsyncClient(transport=httpx.MockTransport(slow))
        looking = asyncio.create_task(issuer.check_bearer(token()))
        await begun.wait()
        assert await asyncio.wait_for(issuer.check_bearer(token()), oidc.TIMEOUT_S / 2) == "ann"
        assert not looking.done()
        answered.set()
        assert await looking == "ann"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("issuer", "https://evil.example"),
        ("token_endpoint", "http://sign-in.example/token"),
        ("jwks_uri", "file:///etc/passwd"),
        ("authorization_endpoint", "javascript:alert(1)"),
    ],
)
def test_metadata_that_lead_elsewhere_are_refused(name: str, value: str) -> None:
    played = Played()
    played.metadata[name] = value
    with pytest.raises(IssuerUnavailable):
        asyncio.run(played.issuer().check_bearer(token()))


def test_keys_of_unknown_kinds_do_not_hide_the_others() -> None:
    played = Played()
    played.keys = [{"kty": "new"}, "x", {"kty": "oct", "k": "AA", "kid": "k1"}, *played.keys]
    assert asyncio.run(played.issuer().check_bearer(token())) == "ann"


@pytest.mark.parametrize(
    ("claims", "accepted"),
    [
        ({"nonce": "n"}, True),
        ({"nonce": "n", "azp": "page", "aud": ["page", "other"]}, True),
        ({"nonce": "other"}, False),
        ({}, False),
        ({"nonce": "n", "azp": "other"}, False),
        ({"nonce": "n", "aud": "audience"}, False),
    ],
)
def test_the_token_of_a_sign_in_is_of_this_sign_in(claims: dict[str, Any], accepted: bool) -> None:
    played = Played()
    played.id_token = token(**claims)
    exchanged = played.issuer(oidc_audience="audience").exchange("code", "https://x/", "n", "v" * 43)
    if accepted:
        assert asyncio.run(exchanged) == "ann"
    else:
        with pytest.raises(NotAuthenticated):
            asyncio.run(exchanged)


def test_an_address_counts_once_the_provider_has_verified_it() -> None:
    issuer = Played().issuer(oidc_user_claim="email")
    good = token(email="ann@films.example", email_verified=True)
    assert asyncio.run(issuer.check_bearer(good)) == "ann@films.example"
    for claims in ({"email": "ann@films.example"}, {"email": "ann@films.example", "email_verified": "true"}):
        with pytest.raises(NotAuthenticated, match="email_verified"):
            asyncio.run(Played().issuer(oidc_user_claim="email").check_bearer(token(**claims)))


def test_settings_that_anyone_on_the_way_could_misuse_are_refused() -> None:
    oidc.check_settings(settings())
    oidc.check_settings(settings(oidc_issuer="http://127.0.0.1:9000"))
    oidc.check_settings(Settings())
    with pytest.raises(InvalidRequest, match="https://"):
        oidc.check_settings(settings(oidc_issuer="http://sign-in.example"))
    with pytest.raises(InvalidRequest, match="OIDC_CLIENT_ID"):
        oidc.check_settings(settings(oidc_client_id=""))
