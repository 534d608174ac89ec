"""Everything a fleet keeps, as bytes: for tests that look for something without asking the fleet where it would be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
import redis
from psycopg import sql

from tests.support.fleet import Fleet


@dataclass(frozen=True)
class Stores:
    """One look at all three stores."""

    #: Table -> its rows as COPY writes them.
    rows: dict[str, list[str]]
    #: Path under the folder of objects -> content.
    files: dict[str, bytes]
    #: Key -> value, and what else Redis shows for it.
    values: dict[bytes, bytes]

    def traces(self, needles: Iterable[str]) -> dict[str, list[str]]:
        """Where any of these texts stands: table, path or key -> the rows, or the needles found there."""
        wanted = list(needles)
        assert all(wanted), "nothing is found everywhere"
        found = {
            table: hits
            for table, rows in self.rows.items()
            if (hits := [row for row in rows if any(needle in row for needle in wanted)])
        }
        texts = {path: path.encode() + b"\n" + data for path, data in self.files.items()}
        texts |= {key.decode(errors="replace"): key + b"\n" + value for key, value in self.values.items()}
        for name, data in texts.items():
            if hits := [needle for needle in wanted if needle.encode() in data]:
                found[name] = hits
        return found


def look(fleet: Fleet) -> Stores:
    """Read every row, every object and every value there is."""
    return Stores(
        _rows(fleet.postgres_url),
        {
            str(path.relative_to(fleet.storage_root)): path.read_bytes()
            for path in sorted(fleet.storage_root.rglob("*"))
            if path.is_file()
        },
        _values(fleet.redis_url),
    )


def _rows(url: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'"
        ).fetchall()
        for schema, table in tables:
            query = sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(schema, table))
            with connection.cursor().copy(query) as copy:
                text = b"".join(bytes(part) for part in copy).decode()
            found[table] = sorted(text.splitlines())
    return found


def _values(url: str) -> dict[bytes, bytes]:
    found = {}
    with redis.Redis.from_url(url) as client:
        read = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"list": lambda key: client.lrange(key, 0, -1),
            b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"none": lambda key: b"",
        }
        for key in client.scan_iter(count=1000):
            value = read[client.type(key)](key)
            found[key] = value if isinstance(value, bytes) else repr(value).encode()
    return found
