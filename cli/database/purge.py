"""``scenefleet db purge``: remove what was erased from the servers' files, too."""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import RedisError, ResponseError

from cli import screen
from db import purge
from shared.errors import BrokerUnavailable
from shared.nodes import open_redis
from shared.settings import get_settings, hide_password

_AOF_PATIENCE_S = 600.0


def run(*, every_table: bool, sure: bool, as_json: bool) -> int:
    """Rewrite tables and Redis' append-only file, after asking; list what is left to do."""
    tables = purge.every_table() if every_table else purge.PERSONAL
    if not sure:
        locked = "Each table is locked while it is written."
        screen.ask(f"Rewrite {len(tables)} tables and Redis' append-only file? {locked}")
    console = screen.make_console(stderr=True)
    done: dict[str, float] = {}
    for table in tables:
        with console.status(f"rewriting {table} ({len(done) + 1} of {len(tables)})"):
            started = time.monotonic()
            purge.rewrite(table)
            done[table] = round(time.monotonic() - started, 3)
    flushed = purge.checkpoint()
    with console.status("rewriting Redis' append-only file"):
        rewritten = _rewrite_aof()
    if as_json:
        screen.write_json({"tables_s": done, "checkpoint": flushed, "append_only_file": rewritten})
        return 0
    print(f"{len(done)} tables rewritten in {sum(done.values()):.1f} s")
    refused = (
        "no checkpoint: the database's user may not; Postgres makes one itself within checkpoint_timeout"
    )
    print("checkpoint done" if flushed else refused)
    print("append-only file of Redis rewritten" if rewritten else "Redis keeps no append-only file")
    rest = "archived write-ahead log, backups, older versions in a bucket that keeps them (docs/erasure.md)"
    print(f"left to you: {rest}")
    return 0


def _rewrite_aof() -> bool:
    """Whether there was an append-only file to rewrite."""
    settings = get_settings()
    url = settings.require("redis_url")
    try:
        with open_redis(url) as client:
            state: dict[str, Any] = client.info("persistence")
            if not int(state.get("aof_enabled", 0)):
                return False
            try:
                client.bgrewriteaof()
            except ResponseError as error:
                # One is under way: it may have begun before what was deleted last, so another has to follow.
                if "progress" not in str(error).lower():
                    raise
                _wait(client)
                client.bgrewriteaof()
            _wait(client)
    except RedisError as error:
        raise BrokerUnavailable(
            f"Redis at {hide_password(url)} does not answer ({error}): is it running?"
        ) from error
    return True


def _wait(client: Any) -> None:
    deadline = time.monotonic() + _AOF_PATIENCE_S
    while time.monotonic() < deadline:
        state = client.info("persistence")
        if not int(state["aof_rewrite_in_progress"]) and not int(state.get("aof_rewrite_scheduled", 0)):
            return
        time.sleep(0.1)
    raise BrokerUnavailable(
        f"Redis has not rewritten its append-only file within {_AOF_PATIENCE_S:.0f} s: look at its log"
    )
