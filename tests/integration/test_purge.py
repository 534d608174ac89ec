"""What was deleted leaves the servers' files: read from the disk, as somebody who stole it would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from typer.testing import CliRunner

from cli.main import app
from db.engine import transact
from db.tables import Person
from shared import settings as settings_module
from tests.support.services import PostgresServer, RedisServer

CANARY = "Zyxwanda-Canary-Quillfeather"


@pytest.fixture
def environment(database: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    settings_module.get_settings.cache_clear()
    yield database
    settings_module.get_settings.cache_clear()


def files_with(folder: Path, word: str) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    ]


def table_files(server: PostgresServer) -> Path:
    return server.folder / "data" / "base"


def test_what_was_deleted_leaves_the_files(
    environment: str, postgres: PostgresServer, redis_server: RedisServer
) -> None:
    transact(lambda s: s.add(Person(person_id="p", user_id="u", name=CANARY)))
    postgres.execute("CHECKPOINT")
    assert files_with(table_files(postgres), CANARY)
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("celery-task-meta-x", CANARY)
        client.delete("celery-task-meta-x")
    with psycopg.connect(environment, autocommit=True) as connection:
        connection.execute("DELETE FROM people WHERE person_id = 'p'")
    postgres.execute("CHECKPOINT")
    assert files_with(table_files(postgres), CANARY), "Postgres keeps deleted rows in its files"
    assert files_with(redis_server.folder, CANARY), "Redis keeps deleted values in its append-only file"

    result = CliRunner().invoke(app, ["db", "purge", "--yes"])
    assert result.exit_code == 0, result.output
    assert "append-only file of Redis rewritten" in result.output
    assert not files_with(table_files(postgres), CANARY)
    assert not files_with(redis_server.folder, CANARY)


def test_a_table_in_use_is_one_clear_error(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from db import purge
    from shared.errors import Conflict

    monkeypatch.setattr(purge, "_LOCK_S", 1)
    with psycopg.connect(environment) as busy:
        busy.execute("SELECT * FROM people")
        with pytest.raises(Conflict, match=r"in use for 1 s.*people"):
            purge.rewrite("people")
