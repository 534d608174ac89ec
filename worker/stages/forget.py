"""forget: remove what is left of an erased person in storage and Redis, sweep all three stores, write the receipt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from celery.states import EXCEPTION_STATES
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.people import erasure
from shared.storage import check_key
from worker.app import app
from worker.stages.context import Deferred, Outcome, StageContext

#: How long to wait for jobs that still know the person, seconds.
_PATIENCE_S = 1.0
_BATCH = 256


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    payload = claimed.payload
    ids, names = [str(name) for name in payload["ids"]], [str(name) for name in payload["names"]]
    known_by = _external_ids(payload)
    with reading() as session:
        waiting = erasure.is_waiting(session, claimed.subject_id, payload["videos"], but=claimed.job_id)
    # A face stage that knew the person from before may have finished since.
    _, late = transact(lambda session: erasure.erase_tracks(session, ids))
    if waiting or late:
        raise Deferred(_PATIENCE_S)
    removed = {**payload["removed"], "photo files": _remove_photos(context, payload)}
    removed["sidecars"] = _remove_sidecars(context, known_by)
    removed["cached results"] = _remove_cached(known_by, names)
    left = {
        "photo files": sum(1 for _ in _photo_files(context, payload)),
        "sidecars": sum(1 for _ in _mentions(context, known_by)),
        "cached results": sum(1 for _ in _cached(known_by, names)),
    }

    def write(session: Session) -> None:
        rows = erasure.rows_left(session, ids, names)
        receipt: dict[str, Any] = {"removed": removed, "left": {**left, **rows}}
        erasure.conclude(session, claimed.subject_id, claimed.job_id, ids, receipt)

    return Outcome(result={"left": sum(left.values())}, write=write)


def _external_ids(payload: Mapping[str, Any]) -> list[str]:
    """The ids by which the user, storage and answers know the erased."""
    # A job queued before there were two kinds of ids has one list: they were the same.
    return [str(name) for name in payload.get("external_ids", payload["ids"])]


def _photo_files(context: StageContext, payload: Any) -> Iterator[str]:
    """The photos of the erased that are stored, those of somebody who stays left out."""
    keys = {str(key) for key in payload["keys"] if context.storage.exists("uploads", check_key(str(key)))}
    for person_id in _external_ids(payload):
        prefix = f"faces/{context.claimed.user_id}/{person_id}/"
        keys.update(found.key for found in context.storage.list("uploads", prefix))
    with reading() as session:
        kept = erasure.kept_photos(session, sorted(keys))
    yield from sorted(keys - kept)


def _remove_photos(context: StageContext, payload: Any) -> int:
    count = 0
    for key in _photo_files(context, payload):
        context.storage.delete("uploads", key)
        count += 1
    return count


def _mentions(context: StageContext, ids: list[str]) -> Iterator[str]:
    """Every sidecar of the user that names one of the erased: all are read, also those nobody is shown."""
    wanted = [name.encode() for name in ids]
    found = list(context.storage.list("sidecars", f"sidecars/{context.claimed.user_id}/"))
    for done, stored in enumerate(found):
        if done % _BATCH == 0:
            context.report(done / len(found))
        data = context.storage.get_bytes("sidecars", stored.key) if _is_there(context, stored.key) else b""
        if any(name in data for name in wanted):
            yield stored.key


def _is_there(context: StageContext, key: str) -> bool:
    return context.storage.exists("sidecars", key)


def _remove_sidecars(context: StageContext, ids: list[str]) -> int:
    """Remove revisions that name the erased.

    Raises:
        Deferred: one of them is still shown: its revision is to come.
    """
    keys = list(_mentions(context, ids))
    with reading() as session:
        shown = erasure.current_sidecars(session, keys)
    for key in keys:
        if key not in shown:
            context.storage.delete("sidecars", key)
    if shown:
        raise Deferred(_PATIENCE_S)
    return len(keys)


def _cached(ids: list[str], names: list[str]) -> Iterator[tuple[bytes, bytes]]:
    """Keys in Redis whose values say something of the erased, and what to put there; nothing: remove it."""
    client = app.backend.client
    wanted = [name.encode() for name in ids]
    # As an error says a name.
    quoted = [json.dumps(repr(name))[1:-1].encode() for name in names]
    for key in client.scan_iter(count=1000, _type="STRING"):
        value: bytes = client.get(key) or b""
        answer = _read(value)
        if answer.get("status") in EXCEPTION_STATES:
            # Somebody may wait for it, maybe another user who has asked for the same name.
            cleaned = value
            for name in quoted:
                cleaned = cleaned.replace(name, b"'(erased)'")
            if cleaned != value:
                yield key, cleaned
        elif any(name in value for name in wanted) and not _is_tombstone(answer.get("result"), ids):
            yield key, b""


def _read(value: bytes) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_tombstone(result: Any, ids: list[str]) -> bool:
    """Whether an answer says that somebody is erased and nothing else: whoever waits for the receipt waits for it."""
    return (
        isinstance(result, dict)
        and result.get("person_id") in ids
        and result.get("state") in ("erasing", "erased")
    )


def _remove_cached(ids: list[str], names: list[str]) -> int:
    count = 0
    client = app.backend.client
    for key, cleaned in _cached(ids, names):
        if cleaned:
            count += bool(client.set(key, cleaned, xx=True, keepttl=True))
        else:
            count += int(client.delete(key))
    return count
