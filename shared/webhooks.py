"""Webhooks by the specification Standard Webhooks (https://www.standardwebhooks.com): secrets, signatures, URLs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

SECRET_PREFIX = "whsec_"
#: Random bytes of a secret that we make, and the limits of the specification.
_SECRET_BYTES, _MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 32, 24, 64
MAX_URL_CHARS = 2048


def make_secret() -> str:
    """A new random secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)


def check_secret(secret: str) -> str:
    """The secret itself.

    Raises:
        ValueError: it is not ``whsec_`` with 24 to 64 bytes in base64. Its text is not repeated.
    """
    try:
        fits = secret.startswith(SECRET_PREFIX) and (
            _MIN_SECRET_BYTES <= len(_key(secret)) <= _MAX_SECRET_BYTES
        )
    except ValueError:
        fits = False
    if not fits:
        raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
    return secret


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The header ``webhook-signature``: HMAC-SHA256 of id, time and body."""
    signed = b".".join((message_id.encode(), str(timestamp_s).encode(), body))
    digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def check_url(url: str) -> str:
    """The URL itself; where it leads is checked when it is used.

    Raises:
        ValueError: it is no http or https URL with a host, or it has a password, a fragment or unusual characters.
    """
    wrong = not url.isascii() or not url.isprintable() or " " in url or "\\" in url
    try:
        parts = urlsplit(url)
        wrong = wrong or parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise ValueError("must be an https URL with a host, in ASCII")
    if "@" in parts.netloc or "#" in url:
        raise ValueError("must have neither a user, a password nor a fragment")
    return url
