"""A campaign: the same videos through an undisturbed fleet and through one that is being broken, then compared."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import redis

from db.tables import Base
from shared.storage import Bucket
from tests.faults.chaos import Chaos, FullDisk
from tests.faults.material import Source
from tests.faults.results import Results, collect
from tests.support.fleet import ENDED, Fleet, eventually, fleet_over
from tests.support.injection import Injection
from tests.support.services import PostgresServer, RedisServer

_AT_WORK = (
    "SELECT 1 FROM jobs JOIN videos USING (video_id) WHERE jobs.state IN ('queued', 'running')"
    " AND external_id = ANY(%s) LIMIT 1"
)
_OPEN = "SELECT 1 FROM videos WHERE state IN ('uploaded', 'processing') AND external_id = ANY(%s) LIMIT 1"
#: One line of a node's log per wake-up message it received.
_WAKE_UP = re.compile(r"Task (tasks\.\w+\.work)\[[0-9a-f-]+\] received")


@dataclass(frozen=True)
class Stand:
    """A fleet with servers and a disk of its own, all of which may be broken."""

    fleet: Fleet
    postgres: PostgresServer
    redis_server: RedisServer
    disk: FullDisk
    injection: Injection

    def new_chaos(self, seed: int) -> Chaos:
        return Chaos(self.fleet, self.postgres, self.redis_server, self.disk, seed)

    def start_over(self) -> None:
        """Empty the database, Redis and the storage under the running nodes: like new."""
        tables = ", ".join(table for table in Base.metadata.tables if table != "models")
        self.postgres.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE", self.fleet.database)
        with redis.Redis.from_url(self.fleet.redis_url) as client:
            client.flushall()
        for bucket in get_args(Bucket):
            for key in self.fleet.objects(bucket):
                self.fleet.storage.delete(bucket, key)


@contextmanager
def stand(folder: Path, **environment: str) -> Iterator[Stand]:
    """Servers, a disk and a fleet whose nodes the caller starts."""
    postgres, redis_server = PostgresServer(folder / "postgres"), RedisServer(folder / "redis")
    disk = FullDisk(folder / "disk")
    try:
        postgres.start()
        redis_server.start()
        postgres.create_template()
        home, injection = folder / "home", Injection(folder / "injection")
        rules = {**disk.environment(home), **injection.environment(), "RECONCILE_S": "1"}
        with fleet_over(postgres, redis_server, home, **{**rules, **environment}) as fleet:
            fleet.pipe_logs = not disk.mounted
            yield Stand(fleet, postgres, redis_server, disk, injection)
    finally:
        disk.unmount()
        redis_server.stop()
        postgres.stop()


def run_undisturbed(fleet: Fleet, sources: Sequence[Source], *, within_s: float) -> Results:
    for source in sources:
        fleet.process(source.path, source.video_id, source.user_id, priority=source.priority)
    wait_indexed(fleet, sources, within_s=within_s)
    return collect(fleet)


def run_disturbed(
    chaos: Chaos, sources: Sequence[Source], kinds: Sequence[str], *, within_s: float
) -> Results:
    """Send the videos while ``kinds`` of faults happen one after the other, the next videos after each fault."""
    sent: list[Future[None]] = []
    with ThreadPoolExecutor(1, "sender") as sender:

        def send_more(due: int | None = None) -> bool:
            if due is None and sent and not sent[-1].done():
                return True  # the last one is still being sent
            more = sources[len(sent) : due or len(sent) + 1]
            sent.extend(sender.submit(chaos.send, source) for source in more)
            return bool(more)

        chaos.send_more = send_more
        at_first = max(1, len(sources) // 4)
        for number, kind in enumerate(kinds):
            send_more(at_first + (len(sources) - at_first) * number // len(kinds))
            chaos.pause()
            chaos.inject(kind)
            restart_dead(chaos.fleet)
        send_more(len(sources))
        for receipt in sent:
            receipt.result(timeout=within_s)
    wait_indexed(chaos.fleet, sources, within_s=within_s)
    return collect(chaos.fleet)


def run_killed(
    chaos: Chaos, sources: Sequence[Source], kinds: Sequence[str], most: int, *, within_s: float
) -> Results:
    """Send all videos, and do faults of random ``kinds`` until each video has ended, ``most`` at most."""
    wanted = [source.video_id for source in sources]
    with ThreadPoolExecutor(1, "sender") as sender:
        sent = [sender.submit(chaos.send, source, within_s=within_s) for source in sources]
        while len(chaos.faults) < most:
            chaos.pause()
            if sent[-1].done() and not chaos.fleet.rows(_OPEN, wanted):
                break
            chaos.inject(chaos.random.choice(kinds))
            restart_dead(chaos.fleet)
        for receipt in sent:
            receipt.result(timeout=within_s)
    wait_indexed(chaos.fleet, sources, within_s=within_s)
    return collect(chaos.fleet)


def restart_dead(fleet: Fleet) -> None:
    """As a supervisor does: a node that left, for whatever reason but a missing model, is started again."""
    for name, node in list(fleet.nodes.items()):
        status = node.process.poll()
        if status is not None:
            assert status != 78, f"node {name} left with 78:\n{fleet.log(name)[-3000:]}"
            fleet.restart(name)


def wait_indexed(fleet: Fleet, sources: Sequence[Source], *, within_s: float) -> None:
    """Wait until every video has ended, its sweep and its rendition; then each must be ``indexed``."""
    wanted = [source.video_id for source in sources]

    def found() -> list[dict[str, Any]]:
        return fleet.rows("SELECT external_id, state, error FROM videos WHERE external_id = ANY(%s)", wanted)

    def ended() -> bool:
        restart_dead(fleet)
        return sum(row["state"] in ENDED for row in found()) == len(wanted)

    with fleet.jobs_shown():
        eventually(ended, within_s=within_s, what=f"{len(wanted)} videos have ended")
        # A rendition whose process died again and again waits for minutes.
        eventually(
            lambda: not fleet.rows(_AT_WORK, wanted), within_s=within_s, what="all other jobs have ended"
        )
    assert {row["external_id"]: row["state"] for row in found()} == dict.fromkeys(wanted, "indexed"), found()


def wake_ups_received(fleet: Fleet) -> Counter[str]:
    """How many wake-up messages the nodes have received so far, by task, read from their logs."""
    counted: Counter[str] = Counter()
    for log in (fleet.home / "logs").iterdir():
        counted.update(_WAKE_UP.findall(log.read_text(errors="replace")))
    return counted


def seed_of(name: str) -> int:
    """The seed of a campaign: from the environment to repeat one, else a new one."""
    return int(os.environ.get(name, 0)) or int.from_bytes(os.urandom(3))
