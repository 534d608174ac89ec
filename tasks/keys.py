"""Requests about API keys: create, list, end, check."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db import api_keys
from db.engine import reading
from shared import routing
from shared.contracts import CheckKey, CreateKey, EndKey, KeyList, KeyView, ListKeys
from tasks.requests import Changed, change_task, request_task


@change_task(routing.KEYS_CREATE, CreateKey)
def create(session: Session, request: CreateKey) -> Changed:
    """Store a key; repeating it changes nothing."""
    return api_keys.create(session, request), []


@change_task(routing.KEYS_END, EndKey)
def end(session: Session, request: EndKey) -> Changed:
    """Refuse a key from now on."""
    return api_keys.end(session, request.key_id), []


@request_task(routing.KEYS_LIST, ListKeys)
def list_keys(request: ListKeys) -> KeyList:
    """Return the newest keys, without their secrets."""
    with reading() as session:
        return api_keys.list_keys(session, request)


@request_task(routing.KEYS_CHECK, CheckKey)
def check(request: CheckKey) -> KeyView:
    """Return whose key this is."""
    with reading() as session:
        return api_keys.check(session, request)
