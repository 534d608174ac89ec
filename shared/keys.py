"""API keys: ``sf_<key id>_<secret>``. Only the hash of the secret is sent to the fleet and stored."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import NamedTuple

_KEY = re.compile(r"sf_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")


class ApiKey(NamedTuple):
    """A key and what of it may travel."""

    #: What the caller sends; nothing can show it again.
    text: str
    key_id: str
    secret_sha256: str


def make_key() -> ApiKey:
    """A new key with 256 random bits."""
    key_id = secrets.token_hex(6)
    return _with_hash(key_id, secrets.token_urlsafe(32))


def read_key(text: str) -> ApiKey | None:
    """The parts of a key; None: it is none."""
    found = _KEY.fullmatch(text)
    return _with_hash(*found.groups()) if found else None


def _with_hash(key_id: str, secret: str) -> ApiKey:
    return ApiKey(f"sf_{key_id}_{secret}", key_id, hashlib.sha256(secret.encode()).hexdigest())
