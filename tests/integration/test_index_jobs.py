"""The job that builds a model's vector index: whoever needs the index goes on, and the build waits for none of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import delete, select, text

from db.engine import get_engine, reading, reading_as, transact
from db.ids import video_key
from db.locks import AdvisoryLock
from db.scenes import scene_id, write_scenes
from db.search import Scope, Tuning, Vector, nearest
from db.tables import Embedding, Job, Model
from db.vectors import (
    ModelRow,
    drop_index,
    ensure_index,
    ensure_model,
    index_name,
    is_indexed,
    write_embeddings,
)
from tests.integration.conftest import Configure
from tests.support.ledger import KEY, accept, execute, job, read, scene_rows, set_job
from tests.support.plans import plans
from tests.support.threads import at_once
from worker import runner
from worker.models.catalog import load_catalog
from worker.models.spec import ModelSpec
from worker.runtime import Runtime
from worker.stages import vectors

SCENES = 50
#: Vectors of a user that are compared one by one.
EXACT = 40


@pytest.fixture
def runtime(database: str, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    for module in (vectors, runner):
        monkeypatch.setattr(module, "notify", list)
    monkeypatch.setattr(vectors, "_looked", OrderedDict())
    monkeypatch.setattr(nearest, "_KEPT_S", 0.0)
    yield configure(SCENEFLEET_FAMILY="housekeeping", SEARCH_EXACT_ROWS=str(EXACT))


@pytest.fixture
def spec() -> ModelSpec:
    return load_catalog().get("bge-m3")


def archive(spec: ModelSpec, user: str = "u1", scenes: int = SCENES) -> ModelRow:
    """The model's row, after its vectors of a user's scenes were written; it has no index."""
    accept("v1", user)
    key = video_key(user, "v1")
    execute(delete(Job))

    def write(session: object) -> ModelRow:
        values = {"family": spec.family, "dim": spec.dim, "metric": spec.metric}
        row = ensure_model(session, name=spec.name, revision=spec.revision, **values)
        write_scenes(session, key, user, 1, scene_rows(scenes))
        ids = [scene_id(key, 1, idx) for idx in range(scenes)]
        made = np.random.default_rng(1).normal(size=(scenes, spec.dim)).astype(np.float32)
        write_embeddings(session, row, 1, user, ids, [(one, 0, made[place]) for place, one in enumerate(ids)])
        return row

    return transact(write)


def indexed(row: ModelRow, user: str | None = None) -> bool:
    with reading() as session:
        return is_indexed(session, row, user)


def states() -> list[tuple[str, str, int]]:
    return [(found.stage, found.state, found.failures + found.outages) for found in read(select(Job))]


def test_workers_that_need_an_index_at_once_make_one_job_and_wait_for_nothing(
    runtime: Runtime, spec: ModelSpec, database: str
) -> None:
    row = archive(spec)
    with psycopg.connect(database) as other:
        # Another index is being built, and a transaction of another program is open.
        other.execute(f"SELECT pg_advisory_lock({AdvisoryLock.VECTOR_INDEX:d})")
        asked = at_once([lambda: vectors.indexed_row(runtime, spec, "u1", again=True)] * 8)
        assert [found.model_id for found in asked] == [row.model_id] * 8
        assert states() == [("build_index", "queued", 0)] and not indexed(row)
        assert runner.work("housekeeping", runtime)["outcome"] == "deferred", "a slot is not held meanwhile"
        assert states() == [("build_index", "queued", 0)]
        # The server gets to a closed connection when it does.
        other.execute(f"SELECT pg_advisory_unlock({AdvisoryLock.VECTOR_INDEX:d})")
    (found,) = read(select(Job.job_id))
    set_job(found, not_before=job(found).created_at)
    assert runner.work("housekeeping", runtime)["outcome"] == "done"
    assert indexed(row) and states() == [("build_index", "done", 0)]
    vectors.indexed_row(runtime, spec, "u1", again=True)
    assert states() == [("build_index", "done", 0)], "nothing more is asked for"


def test_workers_that_write_vectors_meanwhile_do_not_stop_a_build(runtime: Runtime, spec: ModelSpec) -> None:
    """Each asks for the index before its transaction, and none holds a snapshot while it waits for anything."""
    row = archive(spec)
    vectors.indexed_row(runtime, spec, "u1")
    ended = threading.Event()

    def write_on(idx: int) -> None:
        ids = [scene_id(KEY, 1, idx)]
        made = [(ids[0], 0, np.ones(spec.dim or 0, np.float32))]
        while not ended.is_set():
            vectors.indexed_row(runtime, spec, "u1", again=True)
            transact(lambda session: write_embeddings(session, row, 1, "u1", ids, made))

    writers = [threading.Thread(target=write_on, args=(idx,), daemon=True) for idx in range(3)]
    for writer in writers:
        writer.start()
    try:
        assert runner.work("housekeeping", runtime)["outcome"] == "done"
    finally:
        ended.set()
    for writer in writers:
        writer.join(60)
    assert indexed(row)
    assert len(read(select(Embedding.scene_id))) == SCENES


def test_an_index_that_was_dropped_is_built_again(runtime: Runtime, spec: ModelSpec) -> None:
    row = archive(spec)
    for run in (1, 2):
        vectors.indexed_row(runtime, spec, "u1", again=True)
        assert read(select(Model.run).where(Model.model_id == row.model_id)) == [run]
        assert runner.work("housekeeping", runtime)["outcome"] == "done" and indexed(row)
        drop_index(get_engine(), row.model_id)
    assert states() == [("build_index", "done", 0)], "a job of an earlier build is not kept"


def test_a_user_with_many_vectors_beside_others_gets_an_index_of_their_own(
    runtime: Runtime, spec: ModelSpec
) -> None:
    row = archive(spec)
    vectors.indexed_row(runtime, spec, "u1", again=True)
    assert runner.work("housekeeping", runtime)["outcome"] == "done"
    assert indexed(row) and not indexed(row, "u1"), "the model's index is theirs alone"
    archive(spec, "u2", EXACT)
    for user in ("u1", "u2"):
        vectors.indexed_row(runtime, spec, user, again=True)
    assert runner.work("housekeeping", runtime)["outcome"] == "done"
    assert indexed(row, "u1") and not indexed(row, "u2"), "what is compared one by one needs none"
    for user in ("u1", "u2"):
        vectors.indexed_row(runtime, spec, user, again=True)
    assert states() == [("build_index", "done", 0)], "nothing more is asked for"


def test_a_search_goes_through_the_user_s_own_index(runtime: Runtime, spec: ModelSpec) -> None:
    """The others' vectors are the same and as near: in the model's index every second step would be theirs."""
    row = archive(spec)
    archive(spec, "u2")
    retriever = Vector("text", row, np.eye(spec.dim or 0, dtype=np.float32)[0])
    tuning = Tuning(exact_rows=EXACT, candidates=10)
    execute(text("UPDATE scenes SET live = true, text_run = 1"))
    execute(text("ANALYZE"))
    scope = Scope(user_id="u1")

    def search_through(index: str) -> None:
        found: list[Any] = []
        with reading_as("u1") as session:
            told = plans(session, lambda: found.append(retriever.candidates(session, scope, tuning)))
            assert f"using {index} " in told, told
            assert found == [retriever.nearest_exactly(session, scope, 10)] and len(found[0]) == 10

    ensure_index(get_engine(), row)
    search_through(index_name(row.model_id))
    for user in ("u1", "u2"):
        ensure_index(get_engine(), row, user_id=user)
    search_through(index_name(row.model_id, "u1"))


def test_own_indexes_go_with_their_vectors(runtime: Runtime, spec: ModelSpec) -> None:
    row = archive(spec)
    archive(spec, "u2")
    for user in ("u1", "u2"):
        vectors.indexed_row(runtime, spec, user, again=True)
    assert runner.work("housekeeping", runtime)["outcome"] == "done"
    assert indexed(row, "u1") and indexed(row, "u2")
    execute(delete(Embedding).where(Embedding.user_id == "u2"))
    archive(spec, "u3")
    vectors.indexed_row(runtime, spec, "u3", again=True)
    assert runner.work("housekeeping", runtime)["outcome"] == "done"
    assert indexed(row, "u1") and not indexed(row, "u2") and indexed(row, "u3")
    drop_index(get_engine(), row.model_id)
    assert not any(indexed(row, user) for user in (None, "u1", "u3"))
