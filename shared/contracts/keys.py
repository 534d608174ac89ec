"""Requests about API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from .base import MAX_NAME_CHARS, Contract, Id, Text

KeyId = Annotated[str, Field(pattern=r"^[a-z0-9]{12}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CreateKey(Contract):
    """Store a key whose text the caller has made (``shared.keys``)."""

    key_id: KeyId
    #: Of the secret.
    secret_sha256: Sha256
    #: Whose key it is.
    user_id: Id
    #: Whether it may see and change what belongs to the fleet: models, nodes, queues.
    operator: bool = False
    #: What it is for.
    name: Text = Field("", max_length=MAX_NAME_CHARS)


class ListKeys(Contract):
    """List the newest keys, without their secrets."""

    #: None: of every user.
    user_id: Id | None = None
    limit: int = Field(1000, ge=1, le=1000)


class EndKey(Contract):
    """End a key: it is refused from now on."""

    key_id: KeyId


class CheckKey(Contract):
    """Find whose key this is."""

    key_id: KeyId
    secret_sha256: Sha256


class SignIn(Contract):
    """Sign a browser in with an API key."""

    key: Text = Field(min_length=1, max_length=200)


class KeyView(Contract):
    key_id: str
    user_id: str
    operator: bool
    name: str
    created_at: datetime
    #: None: it is accepted.
    ended_at: datetime | None


class KeyList(Contract):
    keys: tuple[KeyView, ...]
