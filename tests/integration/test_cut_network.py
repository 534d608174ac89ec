"""A worker whose network is cut inside a transaction: with the limits that ship its rows are free within a minute.

The worker runs in a network namespace of its own, and the link between the two goes down without a word, as when a
switch dies: no packet says that anything ended. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from db import schema
from db.engine import set_engine
from shared import settings as settings_module
from tests.integration.test_dead_peers import abandoned, limited, ticks
from tests.integration.test_ledger import accept, job
from tests.support.assets import give_up
from tests.support.fleet import ROOT, eventually
from tests.support.services import PostgresServer

FREE_WITHIN_S = 60.0

#: What a worker is doing when its network goes: nothing (between two statements), reading a long answer (data in
#: flight, for which keepalives do nothing), or waiting for a statement that works.
WORKER = """
    import sys, time
    from sqlalchemy import text
    from db.engine import transact
    from db.ids import video_key
    from db.ledger import subjects

    def work(session):
        assert subjects.lock_video(session, video_key("u1", sys.argv[1])) is not None
        print("locked", flush=True)
        if sys.argv[1] == "idle":
            time.sleep(600)
        elif sys.argv[1] == "reading":
            session.execute(text("SELECT repeat('x', 100000), pg_sleep(0.02) FROM generate_series(1, 20000)"))
        else:
            session.execute(text("SELECT pg_sleep(600)"))

    transact(work)
"""


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


@pytest.fixture
def link() -> Iterator[SimpleNamespace]:
    """A network namespace, and a pair of devices between it and this one; after ``cut`` every packet is lost."""
    if os.geteuid() != 0:
        pytest.skip("cutting a network takes root: run this test as root")
    if shutil.which("ip") is None:
        give_up("no `ip` is installed: install iproute2")
    number = os.getpid() % 100_000
    name, outer, inner, network = f"sf{number}", f"sfo{number}", f"sfi{number}", f"10.213.{number % 250}"
    try:
        _ip(f"netns add {name}")
        _ip(f"link add {outer} type veth peer name {inner}")
        _ip(f"link set {inner} netns {name}")
        _ip(f"addr add {network}.1/24 dev {outer}")
        _ip(f"link set {outer} up")
        _ip(f"-n {name} addr add {network}.2/24 dev {inner}")
        _ip(f"-n {name} link set {inner} up")
        cut = partial(_ip, f"-n {name} link set {inner} down")
        yield SimpleNamespace(name=name, network=f"{network}.0/24", here=f"{network}.1", cut=cut)
    except subprocess.CalledProcessError as error:
        pytest.skip(
            f"no network namespace can be made here ({error.stderr.strip()}): run this with CAP_NET_ADMIN"
        )
    finally:
        subprocess.run(["ip", "link", "del", outer], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class ReachableServer(PostgresServer):
    """A Postgres as it ships that listens on one address more."""

    address = ""

    def _spawn(self, command: list[str], cwd: Path) -> None:
        super()._spawn([*command, "-c", f"listen_addresses=127.0.0.1,{self.address}"], cwd)


@pytest.fixture
def server(
    link: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ReachableServer]:
    made = ReachableServer(tmp_path_factory.mktemp("reachable"))
    made.address = link.here
    made.start()
    try:
        with (made.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {link.network} scram-sha-256\n")
        made.execute("SELECT pg_reload_conf()")
        url = made.url()
        schema.upgrade(url=url.replace("postgresql://", "postgresql+psycopg://"))
        monkeypatch.setenv("POSTGRES_URL", url)
        settings_module.get_settings.cache_clear()
        with limited(url):
            yield made
        set_engine(None)
        settings_module.get_settings.cache_clear()
    finally:
        made.stop()


def start_worker(link: SimpleNamespace, server: ReachableServer, video_id: str) -> subprocess.Popen[str]:
    """A process behind the link that has locked this video's row."""
    url = server.url().replace("127.0.0.1", link.here)
    environment = {**os.environ, "POSTGRES_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0"}
    code = ["ip", "netns", "exec", link.name, sys.executable, "-c", textwrap.dedent(WORKER), video_id]
    worker = subprocess.Popen(code, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None and worker.stdout.readline() == "locked\n"
    return worker


def is_free(server: ReachableServer, video_id: str) -> bool:
    free = "SELECT 1 FROM videos WHERE external_id = %s FOR UPDATE SKIP LOCKED"
    with psycopg.connect(server.url()) as connection:
        return connection.execute(free, [video_id]).fetchone() is not None


def test_rows_of_a_worker_whose_network_is_cut_are_free_within_a_minute(
    link: SimpleNamespace, server: ReachableServer
) -> None:
    kinds = ("idle", "reading", "working")
    other = abandoned("another")
    for video_id in kinds:
        accept(video_id)
    workers = [start_worker(link, server, video_id) for video_id in kinds]
    try:
        time.sleep(1.0)  # the long answer flows
        assert not any(is_free(server, video_id) for video_id in kinds)
        link.cut()
        began = time.monotonic()
        # The rest of the fleet does not notice.
        ticks(2, within_s=5.0)
        assert job(other.job_id).state == "queued"
        for video_id in kinds:
            left_s = began + FREE_WITHIN_S - time.monotonic()
            eventually(
                partial(is_free, server, video_id), within_s=left_s, what=f"{video_id}: its row is free"
            )
            print(f"{video_id}: its row is free {time.monotonic() - began:.1f} s after the cut or sooner")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
