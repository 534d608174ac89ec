"""The embedded servers' logs hold no values of rows, statements or commands."""

from __future__ import annotations

import psycopg
import pytest
import redis

from tests.support.services import PostgresServer, RedisServer

SECRET = "zanzibarquux"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT %s::text::int",
        "INSERT INTO persons VALUES (%s)",
        f"SELECT '{SECRET}' FROM nowhere WHERE %s IS NOT NULL",
        "DO $$ BEGIN RAISE WARNING 'name %%', 'zanzibarquux'; RAISE EXCEPTION '%%', 'zanzibarquux'; END $$",
    ],
    ids=["a value that is no number", "a row that is there", "a literal", "raised"],
)
def test_postgres_logs_no_values(postgres: PostgresServer, statement: str) -> None:
    before = postgres.log.stat().st_size
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE persons (name text UNIQUE)")
        connection.execute("INSERT INTO persons VALUES (%s)", [SECRET])
        connection.execute("SET client_min_messages = error")
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(statement.replace("%%", "%") if "DO" in statement else statement,
                               None if "DO" in statement else [SECRET])  # fmt: skip
    assert SECRET in str(caught.value) or "nowhere" in str(caught.value), "the caller is told"
    assert SECRET not in postgres.log.read_bytes()[before:].decode(errors="replace")


def test_redis_keeps_no_slow_commands(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        # One name a command before Redis 7.
        settings = client.config_get("slowlog-log-slower-than") | client.config_get("crash-log-enabled")
        assert settings == {"slowlog-log-slower-than": "-1", "crash-log-enabled": "no"}
        client.eval("local n = 0; for i = 1, 2000000 do n = n + i end; return ARGV[1]", 0, SECRET)
        assert client.slowlog_get(100) == []
