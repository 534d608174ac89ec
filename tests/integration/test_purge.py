"""What was deleted leaves the servers' files: read from the disk, as somebody who stole it would."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import text
from typer.testing import CliRunner

from cli.main import app
from db import purge
from db.engine import transact
from db.tables import Person
from shared.errors import Conflict
from tests.integration.conftest import Configure
from tests.support.ledger import execute
from tests.support.services import PostgresServer, RedisServer

CANARY = "Zyxwanda-Canary-Quillfeather"


def files_with(folder: Path, word: str) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes()
    ]


def test_what_was_deleted_leaves_the_files(
    database: str, postgres: PostgresServer, redis_server: RedisServer, configure: Configure
) -> None:
    configure(REDIS_URL=redis_server.url)
    tables = postgres.folder / "data" / "base"
    transact(lambda s: s.add(Person(person_id="p", user_id="u", name=CANARY)))
    postgres.execute("CHECKPOINT")
    assert files_with(tables, CANARY)
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("celery-task-meta-x", CANARY)
        client.delete("celery-task-meta-x")
    execute(text("DELETE FROM people WHERE person_id = 'p'"))
    postgres.execute("CHECKPOINT")
    assert files_with(tables, CANARY), "Postgres keeps deleted rows in its files"
    assert files_with(redis_server.folder, CANARY), "Redis keeps deleted values in its append-only file"

    result = CliRunner().invoke(app, ["db", "purge", "--yes"])
    assert result.exit_code == 0, result.output
    assert "append-only file of Redis rewritten" in result.output
    assert not files_with(tables, CANARY)
    assert not files_with(redis_server.folder, CANARY)


def test_a_table_in_use_is_one_clear_error(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "_LOCK_S", 1)
    with psycopg.connect(database) as busy:
        busy.execute("SELECT * FROM people")
        with pytest.raises(Conflict, match=r"in use for 1 s.*people"):
            purge.rewrite("people")
