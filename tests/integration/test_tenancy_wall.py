"""The second wall by itself: what the role that requests are read as sees, on a real Postgres, in every table."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import numpy as np
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db import row_security, search
from db.engine import get_engine, reading, reading_as, transact
from db.tables import Base
from db.vectors import index_name
from shared.errors import InvalidRequest
from tests.integration.test_dead_peers import limited
from tests.support.plans import plans
from tests.support.tenants import DIM, OF_USERS, USERS, World, make_models, populate, unit
from tests.support.threads import at_once

pytestmark = pytest.mark.usefixtures("database")

#: Tables without users: which models there are is no secret.
GLOBAL = {"models", "model_switches", "active_models"}
#: Tables whose users stand in the column `account`; requests do not read them, a policy of their own shuts them.
OF_ACCOUNTS = {"queue_usage", "api_keys"}
VIEWS = ("searched_scenes", "searched_weights")
NAMES = [table.name for table in OF_USERS]
READ = [name for name in (*NAMES, *VIEWS) if name in row_security.READ]
WHOSE = {"runs": "(SELECT user_id FROM videos v WHERE v.video_id = t.video_id)"}


@pytest.fixture
def world(database: str) -> World:
    return populate(1, make_models({family: (family, "1") for family in ("text", "vision", "face", "ocr")}))


def owners(session: Session, table: str) -> set[str]:
    """Whose rows of a table an unscoped query finds."""
    return set(session.scalars(text(f"SELECT {WHOSE.get(table, 'user_id')} FROM {table} t")))


def who(session: Session) -> tuple[str, str | None]:
    row = session.execute(text("SELECT current_user, nullif(current_setting('app.user_id', true), '')")).one()
    return row[0], row[1]


def test_every_table_of_users_has_the_wall_and_no_other_table_is_forgotten() -> None:
    """A new table with a user's rows needs its policy (as in migration 0006); one without users is named in GLOBAL."""
    with get_engine().connect() as connection:
        gaps = row_security.find_gaps(connection)
        assert not (gaps.role or gaps.open or gaps.shut or gaps.hidden) and gaps.tables == len(OF_USERS)
        with_policy = (
            "SELECT relname FROM pg_class JOIN pg_policy ON polrelid = pg_class.oid WHERE relrowsecurity"
        )
        walled = set(connection.exec_driver_sql(with_policy).scalars())
    of_users = set(NAMES)
    assert walled == of_users | OF_ACCOUNTS
    assert set(Base.metadata.tables) - of_users <= GLOBAL | OF_ACCOUNTS
    assert not OF_ACCOUNTS & set(row_security.READ)
    assert {name for name in row_security.READ if name not in VIEWS} <= of_users | GLOBAL


def test_an_unscoped_query_finds_the_readers_own_rows_only(world: World) -> None:
    with reading() as session:
        for table in (*NAMES, *VIEWS):
            assert owners(session, table) == set(USERS), (
                "the owner sees everybody, who has a row in every table"
            )
    # Jobs of no user have an empty user, and a setting that has ended is empty, too.
    with get_engine().begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO jobs (subject_id, user_id, queue, run, stage) VALUES ('1', '', 'media', 1, 'sweep')"
        )
    for reader in (*USERS, "", "u2", "%", "u_1", "null"):
        with reading_as(reader) as session:
            for table in READ:
                assert owners(session, table) == {reader} & set(USERS), table
    with reading() as session:
        session.execute(text(f"SELECT set_config('role', '{row_security.ROLE}', true)"))
        assert who(session) == (row_security.ROLE, None)
        for table in READ:
            assert owners(session, table) == set(), table


def test_what_no_request_reads_is_shut(world: World) -> None:
    for table in set(NAMES) - set(row_security.READ):
        with pytest.raises(DBAPIError, match=f"permission denied for .*{table}"), reading_as("u") as session:
            owners(session, table)


def test_the_reader_writes_nothing(world: World) -> None:
    forms = (
        "UPDATE {0} SET {1} = {1}",
        "DELETE FROM {0}",
        "TRUNCATE {0} CASCADE",
        "INSERT INTO {0} DEFAULT VALUES",
    )
    columns = {**dict.fromkeys(NAMES, "user_id"), "runs": "video_id"}
    for statement in [form.format(*target) for target in columns.items() for form in forms]:
        with (
            pytest.raises(DBAPIError, match=r"read-only transaction|permission denied|must be owner"),
            reading_as("u") as session,
        ):
            session.execute(text(statement))
        # Not only because the transaction is read only.
        with pytest.raises(DBAPIError, match="permission denied"), Session(get_engine()) as session:
            session.execute(row_security.BECOME_READER, {"user_id": "u"})
            session.execute(text(statement))


def test_nothing_of_the_reader_is_left_on_the_pools_connection(database: str, world: World) -> None:
    with limited(database):
        with reading() as session:
            owner = who(session)
            pid = session.scalar(text("SELECT pg_backend_pid()"))
        assert owner[1] is None

        def same_connection() -> None:
            with reading() as session:
                assert session.scalar(text("SELECT pg_backend_pid()")) == pid
                assert who(session) == owner
                assert owners(session, "videos") == set(USERS)
                assert session.scalar(text("SHOW transaction_read_only")) == "off"
                assert session.scalar(text("SHOW transaction_isolation")) == "read committed"

        with reading_as("u1", snapshot=True) as session:
            assert who(session) == (row_security.ROLE, "u1")
            assert session.scalar(text("SELECT pg_backend_pid()")) == pid
            assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        same_connection()
        with pytest.raises(DBAPIError, match="division by zero"), reading_as("u1") as session:
            session.execute(text("SELECT 1 / 0"))
        same_connection()
        with pytest.raises(InvalidRequest), reading_as("u1") as session:
            assert owners(session, "videos") == {"u1"}
            raise InvalidRequest("from within")
        same_connection()
        with reading_as("u10") as session:
            assert owners(session, "videos") == {"u10"}
        assert transact(who) == owner


def test_a_session_that_goes_on_after_an_error_is_still_the_readers(world: World) -> None:
    broken = text("SELECT 1 / 0")
    with reading_as("u1") as session:
        with pytest.raises(DBAPIError):
            session.execute(broken)
        for end in (session.rollback, session.commit):
            end()
            assert who(session) == (row_security.ROLE, "u1") and owners(session, "scenes") == {"u1"}
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(broken)
        assert who(session) == (row_security.ROLE, "u1") and owners(session, "scenes") == {"u1"}


def test_readers_within_one_another_and_beside_one_another_do_not_mix(world: World) -> None:
    with reading_as("u") as outer:
        assert owners(outer, "scenes") == {"u"}
        with reading_as("u1") as inner:
            assert owners(inner, "scenes") == {"u1"}
            assert owners(outer, "scenes") == {"u"}
            assert len(transact(lambda session: owners(session, "scenes"))) == len(USERS)
        assert owners(outer, "scenes") == {"u"}

    def read(user: str) -> None:
        for _ in range(20):
            with reading_as(user) as session:
                assert owners(session, "scenes") == {user}

    at_once([partial(read, user) for user in USERS[:4]])


def test_role_and_user_cost_one_statement_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    execute = psycopg.Cursor.execute

    def counted(self, query, *args, **kwargs):  # type: ignore[no-untyped-def]
        sent.append(str(query))
        return execute(self, query, *args, **kwargs)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    counts = []
    for use in (reading_as("u"), reading_as("u"), reading()):
        with use as session:
            sent.clear()
            owners(session, "videos")
            counts.append(len(sent))
    assert counts[1] == counts[2] + 1, "after the first time, which asks whether there is such a role"


def test_the_wall_costs_no_index(database: str) -> None:
    """Under row-level security a condition that is not leakproof can't use an index: the views are there for that."""
    models = make_models({family: (family, "1") for family in ("text", "vision", "face", "ocr")})
    model = models["text"]
    with get_engine().begin() as connection:
        for statement in (
            "INSERT INTO videos (video_id, user_id, external_id, storage_key, indexed_at) VALUES ('v', 'u', 'v', 'k', now())",
            "INSERT INTO scenes (scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes, live, text_run,"
            " tsv, screen_tsv) SELECT md5(n::text)::uuid, 'v', 'u', 1, n, 0, 1, 'cut', '[]', true, 1,"
            " to_tsvector('simple', 'word' || n), to_tsvector('simple', 'word' || n) FROM generate_series(1, 3000) n",
            "INSERT INTO lexical_weights (scene_id, model_id, run, user_id, tokens, weights)"
            f" SELECT scene_id, {model.model_id}, 1, 'u', ARRAY[idx], ('{{' || idx + 1 || ':1}}/4000')::sparsevec FROM scenes",
            "INSERT INTO embeddings (scene_id, model_id, ordinal, run, user_id, vec)"
            f" SELECT scene_id, {model.model_id}, 0, 1, 'u', array_fill(0, ARRAY[{DIM - 2}])::real[] || ARRAY[sin(idx), cos(idx)]::real[]"
            " FROM scenes",
            "ANALYZE",
        ):
            connection.exec_driver_sql(statement)
    dated = search.Scope(user_id="u", indexed_from=datetime(2020, 1, 1, tzinfo=UTC))
    word = (search.WordsQuery("english", "'word7'"),)
    vector, tuning = unit(np.random.default_rng(1)), search.Tuning(exact_rows=0, candidates=5)
    for retriever, index in (
        (search.Words("keyword", word), "Bitmap Index Scan on ix_scenes_tsv"),
        (search.Words("screen", word), "Bitmap Index Scan on ix_scenes_screen_tsv"),
        (search.Lexical(model, {7: 1.0}), "Bitmap Index Scan on ix_lexical_weights_tokens"),
        (search.Vector("text", model, vector), f"Index Scan using {index_name(model.model_id)}"),
    ):
        for scope in (search.Scope(user_id="u"), dated):
            with reading_as("u") as session:
                found: list[object] = []
                told = plans(session, lambda: found.extend(retriever.candidates(session, scope, tuning)))  # noqa: B023
                assert found and index in told, told
