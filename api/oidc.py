"""One OpenID provider: verifies its tokens, and exchanges the code of a sign-in for one.

What the provider publishes (addresses and keys) is kept for ``KEPT_S`` by each process; a token with an unknown key has it read again,
at most every ``PAUSE_S``, so that a new key works at once and made-up ones cost the provider nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, urlsplit

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from pydantic import BaseModel, Field

from api.problems import IssuerUnavailable, NotAuthenticated
from shared.addresses import is_loopback
from shared.errors import InvalidRequest
from shared.logs import get_logger
from shared.settings import Settings

log = get_logger(__name__)

#: Only signatures by a key pair: with a shared secret or none (``none``) whoever can check a token could also make one.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
#: Types of tokens that say who asks; not, for example, ``logout+jwt``.
TYPES = ("jwt", "at+jwt", "application/at+jwt")
#: For how long keys count without a look at the provider, and, while it does not answer, at most, seconds.
KEPT_S, KEPT_MAX_S = 3600.0, 24 * 3600.0
#: Shortest time between two looks at the provider, seconds.
PAUSE_S = 10.0
TIMEOUT_S = 5.0
#: Difference of clocks that is allowed, seconds.
LEEWAY_S = 30
MAX_TOKEN_CHARS = 16_384
MAX_ANSWER_BYTES = 512 * 1024
MAX_KEYS = 100


class Metadata(BaseModel):
    """What of a provider's metadata is used (OpenID Connect Discovery 1.0)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    methods: list[str] = Field(["client_secret_basic"], alias="token_endpoint_auth_methods_supported")


@dataclass(frozen=True)
class Published:
    """What the provider published at a time of the monotonic clock."""

    metadata: Metadata
    keys: KeySet
    read_at: float


class Issuer:
    """The provider of OIDC_ISSUER."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False)
        self._published: Published | None = None
        self._fault: IssuerUnavailable | None = None
        self._next_look = 0.0
        self._looking = asyncio.Lock()

    async def close(self) -> None:
        await self._http.aclose()

    async def check_bearer(self, token: str) -> str:
        """The name of the user whose ID or access token this is.

        Raises:
            NotAuthenticated: it is not valid, or not for this API.
            IssuerUnavailable: its keys can't be read.
        """
        audiences = [self._settings.oidc_client_id, self._settings.oidc_audience]
        return self._name_of(await self._claims_of(token, [name for name in audiences if name]))

    async def sign_in_url(self, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Where a browser signs in."""
        metadata = (await self._read()).metadata
        url: str = prepare_grant_uri(
            metadata.authorization_endpoint,
            client_id=self._settings.oidc_client_id,
            response_type="code",
            redirect_uri=redirect_uri,
            scope=self._settings.oidc_scopes,
            state=state,
            nonce=nonce,
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )
        return url

    async def exchange(self, code: str, redirect_uri: str, nonce: str, verifier: str) -> str:
        """The name of the user who has signed in.

        Raises:
            NotAuthenticated: the provider refuses the code, or its token is not valid.
            IssuerUnavailable: the provider does not answer.
        """
        metadata = (await self._read()).metadata
        secret = self._settings.oidc_client_secret.get_secret_value()
        body = prepare_token_request(
            "authorization_code", redirect_uri=redirect_uri, code=code, code_verifier=verifier
        )
        auth = _client_auth(self._settings.oidc_client_id, secret, metadata.methods)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        url, headers, body = auth.prepare("POST", metadata.token_endpoint, headers, body)
        try:
            status, answer = await self._ask("POST", url, headers=headers, content=body)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._unavailable(error) from error
        token = answer.get("id_token")
        if status >= 500:
            raise self._unavailable(f"status {status}")
        if status != 200 or not isinstance(token, str):
            reason = str(answer.get("error") or status)[:80]
            remedy = "sign in again"
            if reason in ("invalid_client", "unauthorized_client"):
                remedy = "correct OIDC_CLIENT_ID and OIDC_CLIENT_SECRET"
            raise NotAuthenticated(f"the provider refuses the sign-in ({reason}): {remedy}")
        claims = await self._claims_of(token, [self._settings.oidc_client_id])
        if claims.get("nonce") != nonce or claims.get("azp", self._settings.oidc_client_id) != (
            self._settings.oidc_client_id
        ):
            raise NotAuthenticated("the provider's token is not of this sign-in: sign in again")
        return self._name_of(claims)

    async def _claims_of(self, token: str, audiences: list[str]) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_CHARS:
            raise NotAuthenticated(f"the token has more than {MAX_TOKEN_CHARS} characters")
        try:
            try:
                found = jwt.decode(token, (await self._read()).keys, algorithms=ALGORITHMS)
            except InvalidKeyIdError:
                found = jwt.decode(token, (await self._read(anew=True)).keys, algorithms=ALGORITHMS)
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self._settings.oidc_issuer},
                aud={"essential": True, "values": audiences},
                exp={"essential": True},
            ).validate(found.claims)
        except ExpiredTokenError:
            raise NotAuthenticated("the token has expired: sign in again") from None
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise NotAuthenticated(
                f"the token is not valid ({error}): send a JWT that {self._settings.oidc_issuer} has signed for"
                f" {' or '.join(audiences)}"
            ) from None
        kind = found.header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in TYPES:
            raise NotAuthenticated(
                f"the token's type is {str(kind)[:40]!r}: send an ID token or an access token"
            )
        return found.claims

    def _name_of(self, claims: dict[str, Any]) -> str:
        claim = self._settings.oidc_user_claim
        name = claims.get(claim)
        if not isinstance(name, str) or not name:
            raise NotAuthenticated(
                f"the token has no text in its claim {claim}: let the provider add it, or set OIDC_USER_CLAIM"
            )
        if claim == "email" and claims.get("email_verified") is not True:
            raise NotAuthenticated(
                "the token does not say that the mail address is verified (email_verified)"
            )
        return name

    async def _read(self, *, anew: bool = False) -> Published:
        """What the provider publishes. ``anew``: a key is missing in what is known."""
        known = self._published
        if known is not None and not anew:
            # While one request looks, which may take TIMEOUT_S, the others go on with what is known.
            kept_s = KEPT_MAX_S if self._looking.locked() else KEPT_S
            if time.monotonic() < known.read_at + kept_s:
                return known
        async with self._looking:
            if self._published is not None and self._published is not known:
                return self._published
            now = time.monotonic()
            if now >= self._next_look:
                try:
                    self._published = await self._fetch()
                    self._fault = None
                except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                    self._fault = self._unavailable(error)
                    log.warning("the OpenID provider can't be read", error=str(self._fault))
                self._next_look = time.monotonic() + PAUSE_S
            if self._published is not None and now < self._published.read_at + KEPT_MAX_S:
                return self._published
            raise self._fault or self._unavailable("nothing was read")

    async def _fetch(self) -> Published:
        read_at = time.monotonic()
        issuer = self._settings.oidc_issuer
        status, found = await self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if status != 200:
            raise ValueError(f"status {status} for its metadata")
        metadata = Metadata.model_validate(found)
        if metadata.issuer != issuer:
            raise ValueError(f"it calls itself {metadata.issuer[:200]}: correct OIDC_ISSUER")
        for url in (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri):
            require_safe("the provider's address", url)
        status, found = await self._ask("GET", metadata.jwks_uri)
        keys = found.get("keys")
        if status != 200 or not isinstance(keys, list):
            raise ValueError(f"status {status} for its keys")
        return Published(metadata, _import_keys(keys[:MAX_KEYS]), read_at)

    async def _ask(self, method: str, url: str, **request: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of an answer, of at most ``MAX_ANSWER_BYTES`` within ``TIMEOUT_S``."""
        body = bytearray()
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._http.stream(method, url, **request) as response,
            ):
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise ValueError(f"its answer has more than {MAX_ANSWER_BYTES} bytes")
        except TimeoutError:
            raise ValueError(f"no answer within {TIMEOUT_S:g} s") from None
        try:
            found = json.loads(bytes(body))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"status {response.status_code} without a JSON object")
        return response.status_code, found

    def _unavailable(self, error: object) -> IssuerUnavailable:
        reason = str(error).split("\n")[0][:300] or type(error).__name__
        return IssuerUnavailable(
            f"the OpenID provider {self._settings.oidc_issuer} does not answer as it should ({reason}):"
            " is it running, and reached from this API?"
        )


def check_settings(settings: Settings) -> None:
    """Refuse settings that can't work, or that anyone on the way to the provider could misuse.

    Raises:
        InvalidRequest: says which.
    """
    if not settings.oidc_issuer:
        return
    try:
        require_safe("OIDC_ISSUER", settings.oidc_issuer)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    if not (settings.oidc_client_id or settings.oidc_audience):
        raise InvalidRequest(
            "OIDC_ISSUER is set, but neither OIDC_CLIENT_ID nor OIDC_AUDIENCE says whose tokens are accepted: set one"
        )


def require_safe(name: str, url: str) -> None:
    """Raise a ValueError unless a URL is HTTPS, or HTTP on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError(
            f"{name} {url[:200]!r} is not safe from others on the network: it has to be https://"
        )


def _import_keys(found: list[Any]) -> KeySet:
    """The keys that verify signatures; those of kinds that are not known here are left out."""
    keys = []
    for key in found:
        if not isinstance(key, dict) or key.get("use", "sig") != "sig" or key.get("kty") == "oct":
            continue
        try:
            keys += KeySet.import_key_set({"keys": [key]}).keys
        except (JoseError, ValueError, TypeError, KeyError):
            log.warning("a key of the OpenID provider can't be used", kid=str(key.get("kid"))[:80])
    return KeySet(keys)


def _client_auth(client_id: str, secret: str, supported: list[str]) -> ClientAuth:
    if not secret:
        return ClientAuth(client_id, None, "none")
    if "client_secret_basic" in supported:
        # Authlib leaves out this encoding of RFC 6749, section 2.3.1.
        return ClientAuth(quote_plus(client_id), quote_plus(secret), "client_secret_basic")
    return ClientAuth(client_id, secret, "client_secret_post")
