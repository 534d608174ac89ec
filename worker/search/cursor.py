"""Cursors of a search: where its next page begins. A cursor is valid for its search only."""

from __future__ import annotations

import base64
import hashlib
import json

from db import search
from shared.contracts import SearchScenes
from shared.errors import InvalidRequest

#: More than any search has.
_MAX_BLOCKS, _MAX_FIRST = 20, 1_000_000


def query_hash(request: SearchScenes) -> str:
    """The same for all pages of a search."""
    asked = request.model_dump(mode="json", exclude={"cursor", "limit"})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def write_cursor(request: SearchScenes, last: search.Found) -> str:
    place = [query_hash(request), last.score, last.video_id, last.idx, last.block, last.first]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read_cursor(request: SearchScenes) -> search.Place:
    """The place after which the page begins.

    Raises:
        InvalidRequest: it is no cursor, or one of another search.
    """
    cursor = request.cursor or ""
    try:
        decoded = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
        name, score, video_id, idx, block, first = decoded
        place = search.Place(-float(score), str(video_id), int(idx), int(block), int(first))
        if not (
            0 <= place.block <= _MAX_BLOCKS and 0 <= place.first <= _MAX_FIRST and abs(place.idx) < 2**31
        ):
            raise ValueError("out of range")
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidRequest(
            f"cursor={cursor[:40]!a} is none of ours: send next_cursor as it came, or leave it out"
        ) from None
    if name != query_hash(request):
        raise InvalidRequest(
            f"cursor={cursor[:40]!r} belongs to another search: send it with the search it came from"
        )
    return place
