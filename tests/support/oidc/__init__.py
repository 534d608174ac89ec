"""A real OpenID provider (npm's `oidc-provider`) in a process of its own, and people who sign in there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import RSAKey

from local.servers.ports import find_free_port
from tests.support.assets import give_up

FOLDER = Path(__file__).parent
#: Audience of its access tokens.
AUDIENCE = "urn:scenefleet:api"
#: The API's client, and a program's, with its redirect URI.
PAGE, SECRET = "page", "s+e%41c r&e=t:"
PROGRAM, PROGRAM_URI = "program", "http://127.0.0.1:9/back"


class Provider:
    """One provider, whose signing keys the test knows."""

    def __init__(self, redirect_uris: list[str], secret: str | None = SECRET) -> None:
        """``redirect_uris``: of the page's client; read by ``start``. ``secret``: None: it is a public client."""
        self._secret = secret
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = make_key("first")
        self._redirect_uris = redirect_uris
        self.process: subprocess.Popen[str] | None = None

    def start(self, key: RSAKey | None = None) -> None:
        """Start it, with another signing key if one is given; returns when it answers."""
        self.key = key or self.key
        node = shutil.which("node")
        if node is None:
            give_up("node is not installed: install Node.js 20 or newer")
        if not (FOLDER / "node_modules").is_dir():
            give_up("oidc-provider is not installed: run `npm ci --prefix tests/support/oidc`")
        self.process = subprocess.Popen(
            [node, "provider.mjs"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.process.stdin as said:
            json.dump(self._configuration(), said)
        assert self.process.stdout.readline().strip() == self.url

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=10)
            self.process = None

    def _configuration(self) -> dict[str, Any]:
        one = {"grant_types": ["authorization_code"], "response_types": ["code"]}
        public = {"token_endpoint_auth_method": "none"}
        page = {"client_id": PAGE, "redirect_uris": self._redirect_uris, "application_type": "native"}
        page |= {"client_secret": self._secret} if self._secret else public
        program = {"client_id": PROGRAM, "redirect_uris": [PROGRAM_URI], "application_type": "native"}
        return {
            "port": self.port,
            "jwks": {"keys": [self.key.as_dict(private=True)]},
            "audience": AUDIENCE,
            "clients": [page | one, program | one | public],
        }

    def forge(self, key: RSAKey | None = None, alg: str = "RS256", **changed: Any) -> str:
        """A token that its key, or another, signs: an access token of ann, but for what is changed (None: left out)."""
        key, now = key or self.key, int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 300}
        header = {"alg": alg, "kid": key.kid, "typ": changed.pop("typ", "at+jwt")}
        said = {name: value for name, value in {**claims, **changed}.items() if value is not None}
        return jwt.encode({name: value for name, value in header.items() if value}, said, key)

    def tokens(self, name: str) -> dict[str, Any]:
        """The tokens that a program gets when a person signs in for it."""
        verifier = "v" * 64
        asked = {"client_id": PROGRAM, "response_type": "code", "scope": "openid", "redirect_uri": PROGRAM_URI,
                 "code_challenge": create_s256_code_challenge(verifier), "code_challenge_method": "S256"}  # fmt: skip
        with httpx.Client() as browser:
            back = sign_in(browser, f"{self.url}/auth?{httpx.QueryParams(asked)}", name, until=PROGRAM_URI)
            found = browser.post(
                f"{self.url}/token",
                data={"grant_type": "authorization_code", "code": parse_qs(urlsplit(back).query)["code"][0],
                      "redirect_uri": PROGRAM_URI, "client_id": PROGRAM, "code_verifier": verifier},
            )  # fmt: skip
        assert found.status_code == 200, found.text
        tokens: dict[str, Any] = found.json()
        return tokens


def make_key(kid: str) -> RSAKey:
    """A signing key."""
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


def sign_in(browser: httpx.Client, url: str, name: str, *, until: str) -> str:
    """Do what a person does from ``url`` on: follow redirects, fill in the name, agree. Returns the first address that begins with
    ``until`` and is not opened."""
    answer = browser.get(url)
    for _ in range(20):
        if answer.is_redirect:
            found = urljoin(str(answer.url), answer.headers["location"])
            if found.startswith(until):
                return found
            answer = browser.get(found)
            continue
        assert answer.status_code == 200, answer.text
        form = re.search(r'<form[^>]* action="([^"]+)"', answer.text)
        assert form is not None, answer.text
        fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', answer.text))
        if 'name="login"' in answer.text:
            fields |= {"login": name, "password": "x"}
        answer = browser.post(urljoin(str(answer.url), form[1]), data=fields)
    raise AssertionError(f"no way back to {until}")
