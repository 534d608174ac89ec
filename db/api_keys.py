"""API keys: create, list, end, check."""

from __future__ import annotations

import hmac

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.tables import ApiKey
from shared.contracts import CheckKey, CreateKey, KeyList, KeyView, ListKeys
from shared.errors import Conflict, NotFound


def create(session: Session, request: CreateKey) -> KeyView:
    """Store a key. Sending it again changes nothing.

    Raises:
        Conflict: another key has this id.
    """
    values = request.model_dump(include={"key_id", "secret_sha256", "operator", "name"})
    session.execute(insert(ApiKey).values(**values, account=request.user_id).on_conflict_do_nothing())
    stored = session.get_one(ApiKey, request.key_id)
    if stored.secret_sha256 != request.secret_sha256 or stored.account != request.user_id:
        raise Conflict(f"key {request.key_id} exists: make another one")
    return view(stored)


def list_keys(session: Session, request: ListKeys) -> KeyList:
    """The newest keys, also ended ones."""
    query = select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.key_id).limit(request.limit)
    if request.user_id is not None:
        query = query.where(ApiKey.account == request.user_id)
    return KeyList(keys=tuple(map(view, session.scalars(query))))


def end(session: Session, key_id: str) -> KeyView:
    """Refuse a key from now on; when it ended first counts.

    Raises:
        NotFound: there is no such key.
    """
    ended_at = func.coalesce(ApiKey.ended_at, func.clock_timestamp())
    found = session.scalars(
        update(ApiKey).where(ApiKey.key_id == key_id).values(ended_at=ended_at).returning(ApiKey)
    ).one_or_none()
    if found is None:
        raise NotFound(f"there is no key {key_id}: see `scenefleet keys list`")
    return view(found)


def check(session: Session, request: CheckKey) -> KeyView:
    """Whose key this is.

    Raises:
        NotFound: there is no such key, its secret is another one, or it has ended; which of them is not told.
    """
    found = session.get(ApiKey, request.key_id)
    right = found is not None and hmac.compare_digest(found.secret_sha256, request.secret_sha256)
    if found is None or not right or found.ended_at is not None:
        raise NotFound("the API key is not valid: it is mistyped, or has ended")
    return view(found)


def view(key: ApiKey) -> KeyView:
    return KeyView(
        key_id=key.key_id,
        user_id=key.account,
        operator=key.operator,
        name=key.name,
        created_at=key.created_at,
        ended_at=key.ended_at,
    )
