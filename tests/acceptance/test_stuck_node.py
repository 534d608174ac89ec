"""A node whose main process makes no progress ends itself, says so, and works again after its restart; without one it goes on."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import redis

from shared.exit_status import ExitStatus
from tests.support import stuck
from tests.support.fleet import Fleet, eventually
from tests.support.services import RedisServer
from worker.telemetry.watchdog import LOOKS

NAME = "housekeeping"
#: The watchdog's looks, shortened by tests.support.stuck, and time for a busy machine.
SOON_S = 40.0


def ended(fleet: Fleet) -> int | None:
    return fleet.nodes[NAME].process.poll()


def await_stuck(fleet: Fleet, file: Path, reason: str) -> None:
    """The node ends with its status, and takes its children along; then it works again."""
    children = fleet.nodes[NAME].children
    fleet.nodes[NAME].process.wait(timeout=SOON_S)
    assert ended(fleet) == ExitStatus.STUCK
    assert reason in fleet.log(NAME) and "Current thread" in fleet.log(NAME)
    eventually(
        lambda: not any(child.is_running() for child in children), within_s=10, what="no child is left"
    )
    file.unlink()
    fleet.restart(NAME)
    fleet.wait_ready(NAME)


def test_a_stuck_node_is_restarted_and_a_stopped_one_is_not(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path
) -> None:
    folder = tmp_path / "stuck"
    fleet.start(NAME, RECONCILE_S="0.4", **stuck.environment(folder))
    fleet.wait_ready(NAME)

    # Stopped for longer than the watchdog waits, as a suspended machine is; then Redis is away, and Celery's loop does not
    # run. The first thing it does is to send a heartbeat, which is due.
    fleet.nodes[NAME].process.send_signal(signal.SIGSTOP)
    time.sleep(2 * LOOKS * stuck.LOOK_S)
    redis_server.stop()
    fleet.nodes[NAME].process.send_signal(signal.SIGCONT)
    try:
        fleet.nodes[NAME].process.wait(timeout=3 * LOOKS * stuck.LOOK_S)
        raise AssertionError(f"the node left with {ended(fleet)}")
    except subprocess.TimeoutExpired:
        pass
    finally:
        redis_server.start()
    fleet.wait_ready(NAME)

    loop = folder / "loop"
    loop.touch()
    await_stuck(fleet, loop, "the event loop does not run")

    consumer = folder / "consumer"
    consumer.touch()
    with redis.Redis.from_url(fleet.redis_url) as client:
        # Not until the reads that have begun have ended: they would take it.
        eventually(
            lambda: (client.lpush(NAME, "{}"), time.sleep(1.5), client.llen(NAME))[-1],
            within_s=20,
            what="the consumer leaves a message",
        )
    await_stuck(fleet, consumer, "the consumer takes no messages")


def test_a_second_node_of_one_name_leaves_and_the_first_works_on(fleet: Fleet) -> None:
    fleet.start(NAME)
    fleet.wait_ready(NAME)
    first = fleet.nodes[NAME]
    fleet.start(NAME)
    second = fleet.nodes[NAME].process
    try:
        assert second.wait(timeout=SOON_S) == ExitStatus.CONFIG
    finally:
        fleet.nodes[NAME] = first
    assert f"runs on this machine already (pid {first.process.pid})" in fleet.log(NAME)
    assert first.process.poll() is None
    fleet.wait_ready(NAME)
