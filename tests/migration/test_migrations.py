"""Migrations as a user runs them: `alembic` in a checkout, with POSTGRES_URL and nothing else."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from db import schema
from db.tables import Base
from db.vectors import SEARCHED
from tests.support.fleet import ROOT
from tests.support.services import PostgresServer
from worker.models.catalog import load_catalog

_names = itertools.count(1)


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """An empty database."""
    name = f"migration_{os.getpid()}_{next(_names)}"
    postgres.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def alembic(url: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("alembic")), *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "POSTGRES_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def rows(url: str, query: str, *values: Any) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query, values).fetchall()


def things(url: str) -> set[str]:
    """Everything a migration could have made in the database, by kind and name."""
    found = rows(
        url,
        """
        SELECT 'relation ' || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'type ' || typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
        UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'extension ' || extname FROM pg_extension
        UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_'
        """,
    )
    return {row[0] for row in found}


def definitions(url: str) -> set[tuple[str, str]]:
    """Columns, indexes, constraints, views and what shows users their own rows only, as the server describes them."""
    columns = rows(
        url,
        "SELECT table_name || '.' || column_name, data_type || udt_name || is_nullable || coalesce(column_default, '')"
        " FROM information_schema.columns WHERE table_schema = 'public'",
    )
    indexes = rows(url, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    constraints = rows(
        url,
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
    )
    views = rows(url, "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'")
    policies = rows(url, "SELECT tablename || '.' || policyname, cmd || roles::text || qual FROM pg_policies")
    walled = rows(
        url,
        "SELECT relname, 'walled ' || relrowsecurity || array_to_string(relacl, ' ') FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')",
    )
    return {(name, how) for name, how in [*columns, *indexes, *constraints, *views, *policies, *walled]}


def of_ours(found: set[str]) -> set[str]:
    tables = {name for table in Base.metadata.tables.values() for name in (table.name, f"_{table.name}")}
    return {thing for thing in found if any(name in thing for name in tables)}


def test_up_down_and_up_again(url: str) -> None:
    before = things(url)
    alembic(url, "upgrade", "head")
    first = definitions(url)
    assert {f"relation {name}" for name in Base.metadata.tables} <= things(url)
    alembic(url, "downgrade", "base")
    # Alembic's own (empty) table stays; an extension may be used by others and stays.
    left = things(url) - before
    assert not of_ours(left), left
    assert {thing for thing in left if thing.startswith(("relation ", "schema "))} <= {
        "relation alembic_version",
        "relation alembic_version_pkc",
    }
    assert rows(url, "SELECT * FROM alembic_version") == []
    alembic(url, "upgrade", "head")
    assert definitions(url) == first


def test_each_revision_goes_up_down_and_up(url: str) -> None:
    revisions = [line.split()[0] for line in alembic(url, "history").splitlines() if "->" in line]
    for _ in revisions:
        alembic(url, "upgrade", "+1")
        up = definitions(url)
        alembic(url, "downgrade", "-1")
        alembic(url, "upgrade", "+1")
        assert definitions(url) == up
    assert "(head)" in alembic(url, "current")


def test_the_schema_is_that_of_the_tables(url: str) -> None:
    alembic(url, "upgrade", "head")
    assert "No new upgrade operations detected" in alembic(url, "check")


def test_the_comparison_would_notice_a_difference(url: str) -> None:
    alembic(url, "upgrade", "head")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE scenes ADD COLUMN colour text")
    with pytest.raises(AssertionError, match="New upgrade operations detected"):
        alembic(url, "check")


def test_search_has_its_indexes_from_the_first_migration_on(url: str) -> None:
    first = alembic(url, "history").splitlines()[-1].split("->")[1].split(",")[0].split()[0]
    alembic(url, "upgrade", first)
    indexes = dict(rows(url, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"))
    assert "USING gin (tsv) WHERE live" in indexes["ix_scenes_tsv"]
    shipped = [spec for spec in load_catalog(None).specs if spec.kind in SEARCHED and "lite" in spec.profiles]
    assert shipped
    for spec in shipped:
        ((model_id, dim),) = rows(
            url,
            "SELECT model_id, dim FROM models WHERE name = %s AND revision = %s",
            spec.name,
            spec.revision,
        )
        assert dim == spec.dim
        definition = indexes[f"ix_embeddings_hnsw_m{model_id}"]
        assert "USING hnsw" in definition
        assert f"((vec)::halfvec({dim})) halfvec_cosine_ops" in definition
        assert f"WHERE (model_id = {model_id})" in definition
    invalid = rows(url, "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid")
    assert invalid == []


def test_vector_indexes_of_before_are_built_with_more_care(url: str) -> None:
    alembic(url, "upgrade", "0006")
    (before,) = rows(url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_embeddings_hnsw_m1'")
    alembic(url, "upgrade", "head")
    (after,) = rows(url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_embeddings_hnsw_m1'")
    assert "ef_construction" not in before[0]
    assert after[0] == before[0].replace(" WHERE ", " WITH (ef_construction='128') WHERE ")


def test_rows_of_before_keep_their_ids_and_others_may_choose_the_same(url: str) -> None:
    alembic(url, "upgrade", "0007")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO videos (video_id, user_id, storage_key, state, run) VALUES ('v', 'u', 'k', 'indexed', 1),"
            " ('refused', 'u', '../x', 'failed', 0)"
        )
        connection.execute("INSERT INTO people (person_id, user_id, name) VALUES ('p', 'u', 'Ann')")
        connection.execute("INSERT INTO runs (video_id, run, stages, made) VALUES ('v', 1, '[]', '{}')")
    alembic(url, "upgrade", "head")
    assert rows(url, "SELECT video_id, user_id, external_id, state FROM videos") == [
        ("v", "u", "v", "indexed")
    ]
    assert rows(url, "SELECT person_id, user_id, external_id, name FROM people") == [("p", "u", "p", "Ann")]
    with psycopg.connect(url, autocommit=True) as connection:
        other = "INSERT INTO videos (video_id, user_id, external_id, storage_key) VALUES (%s, %s, 'v', 'k')"
        connection.execute(other, ("x", "u2"))
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(other, ("y", "u"))
        with pytest.raises(psycopg.errors.NotNullViolation):
            connection.execute("INSERT INTO people (person_id, user_id, name) VALUES ('q', 'u', 'Bea')")
    alembic(url, "downgrade", "0007")
    assert rows(url, "SELECT video_id FROM videos ORDER BY 1") == [("v",), ("x",)]


def test_a_database_with_work_in_it_goes_down_and_up(url: str) -> None:
    alembic(url, "upgrade", "head")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO videos (video_id, user_id, external_id, storage_key) VALUES ('v', 'u', 'v', 'uploads/u/v/a')"
        )
        connection.execute(
            "INSERT INTO scenes (scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes)"
            " VALUES (gen_random_uuid(), 'v', 'u', 1, 0, 0, 1, 'start', '[]')"
        )
    alembic(url, "downgrade", "base")
    alembic(url, "upgrade", "head")
    assert rows(url, "SELECT count(*) FROM scenes") == [(0,)]


def test_several_machines_may_upgrade_at_once(url: str) -> None:
    processes = [
        subprocess.Popen(
            [str(Path(sys.executable).with_name("alembic")), "upgrade", "head"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "POSTGRES_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert (
        schema.current_revision(url.replace("postgresql://", "postgresql+psycopg://"))
        == schema.head_revision()
    )


def test_a_missing_or_wrong_url_is_one_clear_error() -> None:
    for url, says in (
        ("", "POSTGRES_URL is not set"),
        ("mysql://somewhere/db", "POSTGRES_URL must begin with postgresql://, not 'mysql'"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "cli", "db", "upgrade"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "POSTGRES_URL": url, "SCENEFLEET_HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert says in done.stderr + done.stdout
        assert "Traceback" not in done.stderr + done.stdout
