"""Nodes as they describe themselves: each keeps a Redis hash of its own, gone 30 s after its last sign of life."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any, cast

from shared.errors import BrokerUnavailable, InvalidRequest
from shared.routing import NODES
from shared.settings import hide_password

KEY_PREFIX = "scenefleet:node:"


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """What a node said last."""

    name: str
    family: str
    #: loading, ready or failed
    state: str
    error: str
    pid: int
    models: tuple[str, ...]


def node_name(instance: str) -> str:
    """The Celery node name of an instance on this host, e.g. ``asr@box``."""
    return f"{instance}@{socket.gethostname()}"


def open_redis(redis_url: str) -> Any:
    """A client that gives up within seconds."""
    import redis

    return redis.Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=3, decode_responses=True)


def read_nodes(redis_url: str) -> dict[str, NodeRecord]:
    """Every node that gave a sign of life in the last 30 s, by node name.

    Raises:
        BrokerUnavailable: Redis does not answer.
    """
    import redis

    records: dict[str, NodeRecord] = {}
    try:
        with open_redis(redis_url) as client:
            for key in client.scan_iter(match=f"{KEY_PREFIX}*", count=500):
                name = key.removeprefix(KEY_PREFIX)
                fields = cast("dict[str, str]", client.hgetall(key))
                if fields:
                    records[name] = _parse(name, fields)
    except redis.RedisError as error:
        raise BrokerUnavailable(
            f"Redis at {hide_password(redis_url)} does not answer ({error}): is it running?"
        ) from error
    return records


def _parse(name: str, fields: dict[str, str]) -> NodeRecord:
    models = json.loads(fields.get("models") or "[]")
    names = [model["name"] if isinstance(model, dict) else str(model) for model in models]
    return NodeRecord(
        name=name,
        family=fields.get("family", name.partition("@")[0]),
        state=fields.get("state", "loading"),
        error=fields.get("error", ""),
        pid=int(fields.get("pid") or 0),
        models=tuple(names),
    )


def usable_families(models: set[str]) -> list[str]:
    """Families a fleet needs, given those that have a model: the others can't work and are left out."""
    return [name for name, family in NODES.items() if not family.has_model or name in models]


def parse_plan(text: str, models: set[str]) -> list[tuple[str, int]]:
    """Families to run here and how many processes each, from ``media,asr:2``; families without a model left out.

    Raises:
        InvalidRequest: an unknown family, one named twice, or a bad number.
    """
    plan: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        family, _, count = item.partition(":")
        if family not in NODES:
            raise InvalidRequest(
                f"SCENEFLEET_NODES names {family!r}, which is no family: use {', '.join(NODES)}"
            )
        if family in plan:
            raise InvalidRequest(f"SCENEFLEET_NODES names {family} twice: write {family}:2 for two processes")
        if count and (not count.isdigit() or not 1 <= int(count) <= 256):
            raise InvalidRequest(f"SCENEFLEET_NODES has {item!r}: write {family}:N with N from 1 to 256")
        if family not in usable_families(models):
            continue
        plan[family] = int(count or 1)
    if not plan:
        raise InvalidRequest(f"SCENEFLEET_NODES={text!r} leaves no node to run: name at least one family")
    return list(plan.items())
