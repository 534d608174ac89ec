"""The job that builds a model's vector index: whoever needs the index goes on, and the build waits for none of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from sqlalchemy import delete, select

from db.engine import get_engine, reading, transact
from db.locks import AdvisoryLock
from db.scenes import scene_id, write_scenes
from db.tables import Embedding, Job, Model
from db.vectors import ModelRow, drop_index, ensure_model, is_indexed, write_embeddings
from tests.integration.conftest import Configure
from tests.support.ledger import KEY, accept, execute, job, read, scene_rows, set_job
from tests.support.threads import at_once
from worker import runner
from worker.models.catalog import load_catalog
from worker.models.spec import ModelSpec
from worker.runtime import Runtime
from worker.stages import vectors

SCENES = 50


@pytest.fixture
def runtime(database: str, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    for module in (vectors, runner):
        monkeypatch.setattr(module, "notify", list)
    monkeypatch.setattr(vectors, "_indexed", set())
    yield configure(SCENEFLEET_FAMILY="housekeeping")


@pytest.fixture
def spec() -> ModelSpec:
    return load_catalog().get("bge-m3")


def archive(spec: ModelSpec) -> ModelRow:
    """The model's row, after its vectors of some scenes were written; it has no index."""
    accept()
    execute(delete(Job))

    def write(session: object) -> ModelRow:
        values = {"family": spec.family, "dim": spec.dim, "metric": spec.metric}
        row = ensure_model(session, name=spec.name, revision=spec.revision, **values)
        write_scenes(session, KEY, "u1", 1, scene_rows(SCENES))
        ids = [scene_id(KEY, 1, idx) for idx in range(SCENES)]
        made = np.random.default_rng(1).normal(size=(SCENES, spec.dim)).astype(np.float32)
        write_embeddings(session, row, 1, "u1", ids, [(one, 0, made[place]) for place, one in enumerate(ids)])
        return row

    return transact(write)


def indexed(row: ModelRow) -> bool:
    with reading() as session:
        return is_indexed(session, row)


def states() -> list[tuple[str, str, int]]:
    return [(found.stage, found.state, found.failures + found.outages) for found in read(select(Job))]


def test_workers_that_need_an_index_at_once_make_one_job_and_wait_for_nothing(
    runtime: Runtime, spec: ModelSpec, database: str
) -> None:
    row = archive(spec)
    with psycopg.connect(database) as other:
        # Another index is being built, and a transaction of another program is open.
        other.execute(f"SELECT pg_advisory_lock({AdvisoryLock.VECTOR_INDEX:d})")
        asked = at_once([lambda: vectors.indexed_row(runtime, spec, again=True)] * 8)
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
    vectors.indexed_row(runtime, spec, again=True)
    assert states() == [("build_index", "done", 0)], "nothing more is asked for"


def test_workers_that_write_vectors_meanwhile_do_not_stop_a_build(runtime: Runtime, spec: ModelSpec) -> None:
    """Each asks for the index before its transaction, and none holds a snapshot while it waits for anything."""
    row = archive(spec)
    vectors.indexed_row(runtime, spec)
    ended = threading.Event()

    def write_on(idx: int) -> None:
        ids = [scene_id(KEY, 1, idx)]
        made = [(ids[0], 0, np.ones(spec.dim or 0, np.float32))]
        while not ended.is_set():
            vectors.indexed_row(runtime, spec, again=True)
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
        vectors.indexed_row(runtime, spec, again=True)
        assert read(select(Model.run).where(Model.model_id == row.model_id)) == [run]
        assert runner.work("housekeeping", runtime)["outcome"] == "done" and indexed(row)
        drop_index(get_engine(), row.model_id)
    assert states() == [("build_index", "done", 0)], "a job of an earlier build is not kept"
