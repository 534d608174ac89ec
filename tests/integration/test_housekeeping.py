"""The housekeeping thread of several nodes over one Redis."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from shared import nodes, routing
from shared.settings import Settings
from tests.support.services import RedisServer
from worker import housekeeping, reconcile
from worker.housekeeping import Housekeeping
from worker.telemetry.node import Telemetry
from worker.telemetry.watchdog import Watchdog


def make(name: str, settings: Settings) -> Housekeeping:
    """The housekeeping of a media node."""
    node: Any = SimpleNamespace(
        name=name,
        life="1",
        describe=dict,
        active_embedders=dict,
        state="ready",
        family=routing.NODES["media"],
    )
    watchdog = Watchdog(lambda: False)
    return Housekeeping(node, settings, Telemetry(settings, "media", dict, watchdog), watchdog)


def test_one_node_reconciles_per_interval_and_without_redis_each(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    looked: list[str] = []
    monkeypatch.setattr(nodes, "publish", lambda client, state: None)
    monkeypatch.setattr(reconcile, "own_children", lambda name, *_: looked.append(name))

    def tick(url: str, *names: str) -> list[str]:
        done.clear()
        for name in names:
            monkeypatch.setattr(reconcile, "fleet", lambda name=name: done.append(name))
            make(name, Settings(REDIS_URL=url, RECONCILE_S=1))._tick()
        return list(done)

    assert tick(redis_server.url, "a", "b", "c") == ["a"]
    assert tick(redis_server.url, "b", "a") == []
    time.sleep(1.0)
    assert tick(redis_server.url, "b", "a") == ["b"]
    assert tick("redis://127.0.0.1:1/0", "a", "b") == ["a", "b"]
    assert looked == ["a", "b", "c", "b", "a", "b", "a", "a", "b"]


def test_lost_jobs_are_looked_for_after_a_change_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[set[int]] = []
    monkeypatch.setattr(nodes, "publish", lambda client, state: None)
    monkeypatch.setattr(housekeeping, "_AFTER_CHANGE_S", 0.0)
    monkeypatch.setattr(reconcile, "own_children", lambda name, life, children: looks.append(children()))
    thread = make("a", Settings(REDIS_URL="redis://127.0.0.1:1/0"))
    monkeypatch.setattr(reconcile, "fleet", lambda: None)
    for children in ({1}, {1}, {2}, {2}):
        thread.children = lambda children=children: children
        thread._tick()
    assert looks == [{1}, {2}]
    monkeypatch.setattr(housekeeping, "_LOST_S", 0.0)
    thread._tick()
    assert looks == [{1}, {2}, {2}]
