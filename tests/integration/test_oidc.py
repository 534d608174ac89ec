"""Users of a real OpenID provider: browsers that sign in there, programs that send its tokens. Two API processes' apps."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from api import oidc
from shared.settings import Settings
from tests.support.oidc import AUDIENCE, PAGE, SECRET, Provider, make_key, sign_in
from tests.support.replicas import PlayedFleet, Replica, replica
from tests.support.services import RedisServer

BEGIN = "/api/v1/session/oidc"


class Signed:
    """Two replicas over one provider."""

    def __init__(self, first: Replica, second: Replica, fleet: PlayedFleet, provider: Provider) -> None:
        self.urls, self.fleet, self.provider = (first.url, second.url), fleet, provider

    def ask(self, token: str, path: str = "/me", number: int = 0) -> httpx.Response:
        return httpx.get(
            f"{self.urls[number]}/api/v1{path}", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )

    def sign_in(self, browser: httpx.Client, name: str, to: str = "/library?q=a%20b") -> str:
        """The address to which the provider leads back; it is not opened."""
        begin = f"{self.urls[0]}{BEGIN}?{httpx.QueryParams({'next': to})}"
        return sign_in(browser, begin, name, until=f"{self.urls[0]}{BEGIN}/callback")


@pytest.fixture(scope="module")
def signed(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Signed]:
    with pytest.MonkeyPatch.context() as monkeypatch, ExitStack() as opened:
        # A key that the provider has just begun to use is looked for at once.
        monkeypatch.setattr(oidc, "PAUSE_S", 0.0)
        redirect_uris: list[str] = []
        provider = Provider(redirect_uris)
        values: dict[str, Any] = {
            "redis_url": redis_server.url,
            "storage_root": tmp_path_factory.mktemp("storage"),
            "api_rate_per_minute": 0,
            "api_operators": "boss",
            "oidc_issuer": provider.url,
            "oidc_client_id": PAGE,
            "oidc_client_secret": SECRET,
            "oidc_audience": AUDIENCE,
        }
        fleet = PlayedFleet()
        fleet.answer = lambda task, kwargs: {"videos": [], "next_after": None}
        first, second = (
            opened.enter_context(replica(monkeypatch, Settings(**values), fleet, by_proxy=False))
            for _ in range(2)
        )
        redirect_uris.append(f"{first.url}{BEGIN}/callback")
        opened.callback(provider.stop)
        provider.start()
        yield Signed(first, second, fleet, provider)


def problem(answer: httpx.Response, status: int = 401, code: str = "NotAuthenticated") -> str:
    """What a problem document says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    return str(answer.json()["detail"])


def test_a_browser_signs_in_at_the_provider_until_it_signs_out(signed: Signed) -> None:
    with httpx.Client() as browser:
        assert problem(browser.get(f"{signed.urls[0]}/api/v1/me"))
        back = signed.sign_in(browser, "ann")
        answer = browser.get(back)
        assert answer.status_code == 303, answer.text
        assert answer.headers["location"] == "/library?q=a%20b"
        (cookie,) = (
            found
            for found in answer.headers.get_list("set-cookie")
            if found.startswith("scenefleet_session=") and "Max-Age=0" not in found
        )
        assert {"HttpOnly", "SameSite=strict", "Path=/api/", "Max-Age=43200"} <= set(cookie.split("; "))
        kept = {"scenefleet_session": browser.cookies["scenefleet_session"]}
        for url in signed.urls:
            me = browser.get(f"{url}/api/v1/me").json()
            assert (me["user_id"], me["operator"], me["how"]) == ("ann", False, "oidc")
            foreign = browser.delete(f"{url}/api/v1/videos/v1", headers={"Origin": "https://evil.example"})
            assert problem(foreign, 403, "Forbidden")
        assert browser.delete(f"{signed.urls[1]}/api/v1/session").status_code == 204
        assert "scenefleet_session" not in browser.cookies
    for url in signed.urls:
        assert "sign in again" in problem(httpx.get(f"{url}/api/v1/me", cookies=kept))


def test_a_sign_in_ends_where_it_began_and_once(signed: Signed) -> None:
    with httpx.Client() as ann, httpx.Client() as other:
        back = signed.sign_in(ann, "ann")
        # Somebody makes another browser sign in as themselves.
        assert "not begun in this browser" in problem(other.get(back))
        mine = {found.name: found.value for found in ann.cookies.jar if found.path == BEGIN}
        assert ann.get(back).status_code == 303
        assert "not begun in this browser" in problem(ann.get(back))
        assert "refuses the sign-in (invalid_grant)" in problem(httpx.get(back, cookies=mine))
        # Two tabs; the code of one with the state of the other is bound to the first's verifier.
        first, second = (httpx.URL(signed.sign_in(ann, "ann")) for _ in range(2))
        assert "invalid_grant" in problem(ann.get(second.copy_set_param("code", first.params["code"])))
        second = httpx.URL(signed.sign_in(ann, "ann"))
        assert "another provider" in problem(ann.get(second.copy_set_param("iss", "https://evil.example")))
        refused = ann.get(first.copy_remove_param("code").copy_set_param("error", "access_denied"))
        assert "access_denied" in problem(refused)


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\nb", ""])
def test_a_sign_in_leads_back_to_this_site_only(signed: Signed, to: str) -> None:
    refused = httpx.get(f"{signed.urls[0]}{BEGIN}", params={"next": to})
    assert "next=" in problem(refused, 422, "InvalidRequest")


def test_tokens_are_those_of_their_user(signed: Signed) -> None:
    for name in ("ann", "boss", "bob@films.example"):
        tokens = signed.provider.tokens(name)
        me = signed.ask(tokens["access_token"], number=1).json()
        assert me["how"] == "oidc" and me["operator"] is (name == "boss")
        assert me["user_id"] == name if "@" not in name else me["user_id"].startswith("u_")
        signed.fleet.asked.clear()
        assert signed.ask(tokens["access_token"], "/videos").status_code == 200
        assert [kwargs["user_id"] for _, kwargs in signed.fleet.asked] == [me["user_id"]]
        # The ID token is for the program, not for us.
        assert "aud" in problem(signed.ask(tokens["id_token"]))
    own = signed.provider.forge(aud=[PAGE, "other"], typ=None, sub="bob")
    assert signed.ask(own).json()["user_id"] == "bob"


def unsigned(provider: Provider) -> str:
    return with_header(provider, {"alg": "none"})


def by_public_key(provider: Provider) -> str:
    """HMAC with the public key as the secret."""
    said = with_header(provider, {"alg": "HS256"}).rstrip(".")
    return f"{said}.{base64url(hmac.digest(provider.key.as_pem(private=False), said.encode(), 'sha256'))}"


def with_header(provider: Provider, header: dict[str, str]) -> str:
    """A token with no signature."""
    said = json.dumps({**header, "kid": provider.key.kid}).encode()
    return f"{base64url(said)}.{provider.forge().split('.')[1]}."


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


BAD = {
    "another issuer": lambda one: one.forge(iss="https://evil.example"),
    "the issuer with a slash": lambda one: one.forge(iss=f"{one.url}/"),
    "no issuer": lambda one: one.forge(iss=None),
    "another audience": lambda one: one.forge(aud="other"),
    "no audience": lambda one: one.forge(aud=None),
    "expired": lambda one: one.forge(exp=int(time.time()) - oidc.LEEWAY_S - 1),
    "no end": lambda one: one.forge(exp=None),
    "not yet": lambda one: one.forge(nbf=int(time.time()) + 300),
    "nobody": lambda one: one.forge(sub=None),
    "a user who is no text": lambda one: one.forge(sub=5),
    "a token for signing out": lambda one: one.forge(typ="logout+jwt"),
    "no signature": unsigned,
    "signed by the public key": by_public_key,
    "another key of the same name": lambda one: one.forge(key=make_key(one.key.kid)),
    "an unknown key": lambda one: one.forge(key=make_key("unknown")),
    "another algorithm than the key's": lambda one: with_header(one, {"alg": "ES256"}) + "A" * 86,
    "a changed signature": lambda one: one.forge()[:-8] + "AAAAAAAA",
    "a key": lambda one: "sf_000000000000_" + "x" * 43,
    "deep": lambda one: base64url(b'{"alg":' + b"[" * 5000) + ".e30.e30",
    "a list": lambda one: base64url(b'["alg"]') + ".e30.e30",
    "dots": lambda one: "..",
    "no token": lambda one: "x",
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_provider_has_not_signed_for_us_is_refused(signed: Signed, name: str) -> None:
    assert problem(signed.ask(BAD[name](signed.provider)))


def test_a_new_key_counts_at_once_and_an_old_one_no_longer(signed: Signed) -> None:
    old, new = signed.provider.key, make_key("second")
    before = signed.provider.forge()
    assert signed.ask(before).status_code == 200
    signed.provider.stop()
    # Known keys count while the provider is away.
    assert signed.ask(before).status_code == 200
    assert problem(httpx.get(f"{signed.urls[0]}/api/v1/me", headers={"Authorization": "Bearer x"}))
    signed.provider.start(new)
    try:
        assert signed.ask(signed.provider.forge()).status_code == 200
        assert "not valid" in problem(signed.ask(before))
    finally:
        signed.provider.stop()
        signed.provider.start(old)
