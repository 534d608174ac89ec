"""A campaign: the same videos through an undisturbed fleet and through one that is being broken, then compared."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.faults.chaos import Chaos, FullDisk
from tests.faults.material import Source
from tests.faults.results import Results, collect, leftovers, wait_swept
from tests.fleet import ENDED, FAMILIES, Fleet, eventually
from tests.services import PostgresServer, RedisServer


@contextmanager
def fresh_fleet(
    name: str, postgres: PostgresServer, redis_server: RedisServer, home: Path, **environment: str
) -> Iterator[Fleet]:
    """A fleet over an empty database of ``postgres``, all nodes started and ready."""
    database = f"{name}_{os.getpid()}"
    postgres.execute(f"CREATE DATABASE {database} TEMPLATE template_scenefleet")
    fleet = Fleet(home, postgres.url(database), redis_server.url, **environment)
    try:
        fleet.start()
        fleet.wait_ready()
        yield fleet
    finally:
        fleet.close()
        postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")


def run_undisturbed(fleet: Fleet, sources: Sequence[Source], *, within_s: float) -> Results:
    for source in sources:
        fleet.process(source.path, source.video_id, source.user_id, priority=source.priority)
    wait_indexed(fleet, sources, within_s=within_s)
    assert leftovers(fleet) == []
    return collect(fleet)


def run_disturbed(
    chaos: Chaos, sources: Sequence[Source], kinds: Sequence[str], *, within_s: float
) -> Results:
    """Send the videos while ``kinds`` of faults happen one after the other, the next videos after each fault."""
    tickets = threading.Semaphore(0)
    failures: list[BaseException] = []

    def send_all() -> None:
        try:
            for source in sources:
                tickets.acquire()
                chaos.send(source)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            failures.append(error)

    sender = threading.Thread(target=send_all, name="sender", daemon=True)
    sender.start()
    at_first = max(1, len(sources) // 4)
    tickets.release(at_first)
    given = at_first
    for number, kind in enumerate(kinds, 1):
        chaos.pause()
        chaos.inject(kind)
        due = at_first + (len(sources) - at_first) * number // len(kinds)
        if due > given:
            tickets.release(due - given)
            given = due
        restart_dead(chaos.fleet)
    sender.join(timeout=within_s)
    if failures:
        raise failures[0]
    assert not sender.is_alive(), "the client still has not got all its receipts"
    wait_indexed(chaos.fleet, sources, within_s=within_s)
    return collect(chaos.fleet)


def restart_dead(fleet: Fleet) -> None:
    """As a supervisor does: a node that left, for whatever reason but a missing model, is started again."""
    for name, node in list(fleet.nodes.items()):
        status = node.process.poll()
        if status is not None:
            assert status != 78, f"node {name} left with 78:\n{fleet.log(name)[-3000:]}"
            fleet.nodes.pop(name)
            fleet.start(node.family, name=name)


def wait_indexed(fleet: Fleet, sources: Sequence[Source], *, within_s: float) -> None:
    """Wait until every video has ended, and its sweep; then each must be ``indexed``."""
    wanted = [source.video_id for source in sources]

    def ended() -> bool:
        restart_dead(fleet)
        rows = fleet.rows("SELECT state FROM videos WHERE video_id = ANY(%s)", wanted)
        return len(rows) == len(wanted) and all(row["state"] in ENDED for row in rows)

    try:
        eventually(ended, within_s=within_s, what=f"{len(wanted)} videos have ended")
        wait_swept(fleet, within_s=60)
    except AssertionError as error:
        jobs = fleet.rows(
            "SELECT video_id, stage, part, state, attempt, failures, outages, lease_owner, not_before, error"
            " FROM jobs WHERE state NOT IN ('done', 'skipped') ORDER BY job_id"
        )
        raise AssertionError(f"{error}\n" + "\n".join(map(str, jobs[:50]))) from None
    states = {row["video_id"]: row for row in fleet.rows("SELECT video_id, state, error FROM videos")}
    assert {video_id: states[video_id]["state"] for video_id in wanted} == dict.fromkeys(
        wanted, "indexed"
    ), states


def new_disk(folder: Path) -> FullDisk:
    return FullDisk(folder)


__all__ = ["FAMILIES", "fresh_fleet", "new_disk", "restart_dead", "run_disturbed", "run_undisturbed"]
