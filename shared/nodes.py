"""The registry of nodes: a Redis hash per node, which expires ``TTL_S`` after its last update, and one hash that lists them.

The list names nodes that may have expired since; readers skip these, and remove those that are long gone. So no reader looks
through all keys of Redis, of which there are as many as kept answers and vectors.
Nodes publish; the command, ``doctor`` and searches read. No other module reads or writes it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .contracts.fleet import Resources
from .errors import BrokerUnavailable
from .settings import hide_password

#: Lifetime of a node's hash after an update, seconds.
TTL_S = 30
_KEY = "scenefleet:node:"
#: Node name -> when it last published, by its own clock.
_LIST = "scenefleet:nodes"
#: A node that published nothing for this long is removed from the list, seconds: more than clocks differ.
_FORGET_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class HeldModel:
    """A model that a node serves, loaded or not."""

    name: str
    kind: str
    #: Length of its vectors; None: it makes none.
    dim: int | None
    #: Whether it is the one of its kind that is used where a request names none.
    active: bool = True


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """The last published state of a node."""

    name: str
    family: str
    #: loading, ready or failed
    state: str
    error: str
    pid: int
    models: tuple[str, ...]
    held: tuple[HeldModel, ...] = ()
    #: Model of its family -> why it can't be loaded there.
    lacks: Mapping[str, str] = field(default_factory=dict)
    #: When it started, where its metrics are, its load and resources (worker/telemetry/node.py).
    telemetry: Mapping[str, Any] = field(default_factory=dict)


def resources_of(record: NodeRecord) -> Resources | None:
    """The machine of a node; None: not known yet."""
    found = record.telemetry.get("resources")
    return Resources.model_validate(found) if found else None


def _failed_loads(models: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Model -> its error, of those that a process has tried to load, and none has loaded."""
    loaded = {model.get("name") for model in models if model.get("loaded")}
    return {
        model["name"]: model["error"]
        for model in models
        if model.get("error") and "name" in model and model["name"] not in loaded
    }


def node_name(instance: str) -> str:
    """The Celery node name of an instance on this host, e.g. ``asr@box``."""
    return f"{instance}@{socket.gethostname()}"


def publish(client: Any, described: Mapping[str, Any]) -> None:
    """Store the state of a node, as ``worker.node.Node.describe`` gives it, with a redis.Redis and its errors."""
    values = {
        **{name: described[name] for name in ("state", "family", "error", "pid", "evictions")},
        **{name: json.dumps(described[name]) for name in ("loads", "slots")},
        "models": json.dumps([model for slot in described["slots"] for model in slot["models"]]),
        "lacks": json.dumps(described.get("lacks", {})),
        "telemetry": json.dumps(described.get("telemetry", {})),
        "updated": time.time(),
    }
    key = state_key(described["node"])
    pipeline = client.pipeline(transaction=False)
    pipeline.hset(key, mapping=values)
    pipeline.expire(key, TTL_S)
    pipeline.hset(_LIST, described["node"], values["updated"])
    pipeline.execute()


def withdraw(client: Any, node: str) -> None:
    """Remove a node that stops."""
    pipeline = client.pipeline(transaction=False)
    pipeline.hdel(_LIST, node)
    pipeline.delete(state_key(node))
    pipeline.execute()


def state_key(node: str) -> str:
    """The key of a node's hash."""
    return f"{_KEY}{node}"


def ready_families(client: Any) -> set[str]:
    """Families with a ready node, with a redis.Redis that decodes responses, and its errors."""
    pipeline = client.pipeline(transaction=False)
    for name in client.hkeys(_LIST):
        pipeline.hmget(state_key(name), "state", "family")
    return {family for state, family in pipeline.execute() if state == "ready" and family}


def _read_all(client: Any) -> dict[str, dict[str, str]]:
    """Node name -> its hash, of the nodes that have not expired."""
    listed: dict[str, str] = client.hgetall(_LIST)
    pipeline = client.pipeline(transaction=False)
    for name in listed:
        pipeline.hgetall(state_key(name))
    found = dict(zip(listed, pipeline.execute(), strict=True))
    gone = [name for name, fields in found.items() if not fields and _is_old(listed[name])]
    if gone:
        client.hdel(_LIST, *gone)
    return {name: fields for name, fields in found.items() if fields}


def _is_old(updated: str) -> bool:
    return time.time() - float(updated) > _FORGET_S


def open_redis(redis_url: str) -> Any:
    """A Redis client with timeouts of a few seconds."""
    import redis

    return redis.Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=3, decode_responses=True)


def read_nodes(redis_url: str) -> dict[str, NodeRecord]:
    """All nodes that published in the last 30 s, by node name.

    Raises:
        BrokerUnavailable: Redis does not answer.
    """
    import redis

    records: dict[str, NodeRecord] = {}
    try:
        with open_redis(redis_url) as client:
            for name, fields in _read_all(client).items():
                models = json.loads(fields.get("models") or "[]")
                records[name] = NodeRecord(
                    name=name,
                    family=fields.get("family", name.partition("@")[0]),
                    state=fields.get("state", "loading"),
                    error=fields.get("error", ""),
                    pid=int(fields.get("pid") or 0),
                    # One entry per process; a kind without a model in the profile has no name.
                    models=tuple(dict.fromkeys(model["name"] for model in models if "name" in model)),
                    held=tuple(
                        HeldModel(
                            name=model["name"],
                            kind=model["kind"],
                            dim=model.get("dim"),
                            active=model.get("active", True),
                        )
                        for model in models
                        if "name" in model and "kind" in model
                    ),
                    lacks={**json.loads(fields.get("lacks") or "{}"), **_failed_loads(models)},
                    telemetry=json.loads(fields.get("telemetry") or "{}"),
                )
    except redis.RedisError as error:
        raise BrokerUnavailable(
            f"Redis at {hide_password(redis_url)} does not answer ({error}): is it running?"
        ) from error
    return records
