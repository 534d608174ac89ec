"""Messages of tasks as kombu writes them to Redis, to be changed part by part."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any


def encode(content: Any) -> str:
    """A body: base64 of text or bytes as they are, or of JSON."""
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def make_message(task: str, kwargs: Mapping[str, Any], queue: str, **changes: Any) -> dict[str, Any]:
    """A good message but for the changes: each names a part, by dots where it lies in another; ``...`` removes it."""
    task_id = str(uuid.uuid4())
    made: dict[str, Any] = {
        "body": encode([[], kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": task, "id": task_id, "shadow": None, "eta": None, "expires": None,
            "group": None, "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": task_id,
            "parent_id": None, "argsrepr": repr(kwargs), "kwargsrepr": repr(kwargs), "origin": "gen1@h",
            "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
        },
        "properties": {
            "correlation_id": task_id, "reply_to": str(uuid.uuid4()), "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue}, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }  # fmt: skip
    for path, value in changes.items():
        *place, last = path.split(".")
        part = made
        for name in place:
            part = part[name]
        if value is ...:
            part.pop(last, None)
        else:
            part[last] = value
    return made
