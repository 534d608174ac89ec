"""Models and their vectors: one untyped halfvec column, one partial expression HNSW index per model, and one more for each
user who has many vectors beside other users'.

Model ids and dimensions are rendered as literals: with a parameter in its place a generic plan loses the index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector, SparseVector
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from db.engine import outages
from db.locks import AdvisoryLock
from db.rows import replace_rows
from db.tables import Embedding, LexicalWeights, Model
from shared.errors import DatabaseBusy, ModelFailure
from shared.settings import get_settings

_OPS = {"cosine": "halfvec_cosine_ops", "l2": "halfvec_l2_ops"}
#: Families whose vectors are searched by nearest neighbour.
SEARCHED = ("text", "vision")
_LOOK_S = 0.5
#: Twice pgvector's default, and twice the time to build: with 64 some clusters can't be reached from the others.
_EF_CONSTRUCTION = 128
#: Indexes of single users per model, at most: every statement that plans over the table or inserts into it opens them all.
_MOST_OWN = 100


@dataclass(frozen=True)
class ModelRow:
    """A model whose outputs are stored."""

    model_id: int
    name: str
    revision: str
    family: str
    dim: int | None
    metric: str | None


def model_row(model: Any) -> ModelRow:
    """The columns of a row of ``models``."""
    return ModelRow(*(getattr(model, column.name) for column in fields(ModelRow)))


def find_model(session: Session, name: str, revision: str) -> ModelRow | None:
    row = session.scalars(select(Model).where(Model.name == name, Model.revision == revision)).one_or_none()
    return None if row is None else model_row(row)


#: (database, name, revision) -> until when, and the row.
_found: dict[Any, tuple[float, ModelRow]] = {}
_FOUND_S = 60.0


def known_model(session: Session, name: str, revision: str) -> ModelRow | None:
    """``find_model`` for searches: a row that was found is not read again for a minute; it never changes."""
    key = (session.get_bind().engine.url, name, revision)
    until_s, found = _found.get(key, (0.0, None))
    if found is None or time.monotonic() > until_s:
        found = find_model(session, name, revision)
        if found is not None:
            _found[key] = (time.monotonic() + _FOUND_S, found)
    return found


def ensure_model(
    session: Session, *, name: str, revision: str, family: str, dim: int | None, metric: str | None
) -> ModelRow:
    """The model's row, created if it is new."""
    found = find_model(session, name, revision)
    if found is None:
        values = {"name": name, "revision": revision, "family": family, "dim": dim, "metric": metric}
        session.execute(insert(Model).values(values).on_conflict_do_nothing())
        found = find_model(session, name, revision)
        assert found is not None
    return found


def index_name(model_id: int, user_id: str | None = None) -> str:
    """The name of a model's HNSW index; with ``user_id`` of the one over that user's vectors alone."""
    of_model = f"ix_embeddings_hnsw_m{int(model_id)}"
    return of_model if user_id is None else f"{of_model}_{sha256(user_id.encode()).hexdigest()[:16]}"


def of_user(user_id: str) -> str:
    """The condition that vectors are of a user, as a literal: with a parameter a plan could not use the user's own index."""
    literal = user_id.replace("'", "''")
    return f"user_id = '{literal}'"


def index_sql(model_id: int, dim: int, metric: str, *, concurrently: bool, user_id: str | None = None) -> str:
    """The statement that makes a model's HNSW index, or with ``user_id`` the one over that user's vectors alone."""
    how = "CONCURRENTLY " if concurrently else ""
    whose = "" if user_id is None else f" AND {of_user(user_id)}"
    return (
        f"CREATE INDEX {how}IF NOT EXISTS {index_name(model_id, user_id)} ON embeddings"
        f" USING hnsw ((vec::halfvec({int(dim)})) {_OPS[metric]})"
        f" WITH (ef_construction = {_EF_CONSTRUCTION}) WHERE model_id = {int(model_id)}{whose}"
    )


@contextmanager
def _building(engine: Engine, wait_s: float | None) -> Iterator[Connection]:
    """A connection on which one index is built or dropped at a time, for as long as that takes (DATABASE_BUILD_S).

    ``wait_s``: how long other builds are waited for; None: as long as a build may take.

    No limit on locks: a concurrent build waits for older transactions, a backup's for example. The lock is polled: a
    statement that waits in ``pg_advisory_lock()`` holds a snapshot, for which the build of another process would wait.

    Raises:
        DatabaseBusy: other processes build for too long. DatabaseUnavailable: Postgres is unavailable.
    """
    limit_s = get_settings().database_build_s
    wait_s = limit_s if wait_s is None else wait_s
    deadline = time.monotonic() + wait_s
    with outages(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        take = text(f"SELECT pg_try_advisory_lock({AdvisoryLock.VECTOR_INDEX:d})")
        while not connection.scalar(take):
            if time.monotonic() >= deadline:
                raise DatabaseBusy(
                    f"another process builds vector indexes, waited for {wait_s:g} s: try again when it has ended"
                )
            time.sleep(_LOOK_S)
        try:
            connection.execute(text("SET lock_timeout = 0"))
            connection.execute(text(f"SET statement_timeout = {round(limit_s * 1000)}"))
            yield connection
        finally:
            # Its end would give up the lock, too, but not before the server gets to it.
            with suppress(SQLAlchemyError):
                connection.execute(text(f"SELECT pg_advisory_unlock({AdvisoryLock.VECTOR_INDEX:d})"))
            # Not back to the pool: its limits are no longer those of the engine.
            connection.invalidate()


def is_indexed(session: Session | Connection, model: ModelRow, user_id: str | None = None) -> bool:
    """Whether a model has its HNSW index, or needs none; with ``user_id``: whether it has that user's own."""
    name = index_name(model.model_id, user_id)
    return not _is_searched(model) or session.scalar(_VALID, {"name": name}) is True


def lacks_own_index(session: Session, model: ModelRow, user_id: str, exact_rows: int) -> bool:
    """Whether a user's vectors should have an index of their own and have none.

    In an index that many share, a search walks over the others' vectors, and misses some of its own if theirs are nearer
    to the query. Up to ``exact_rows`` vectors need no index; where all vectors are of one user, the model's is enough.
    """
    if not _is_searched(model) or is_indexed(session, model, user_id):
        return False
    rows = f"SELECT FROM embeddings WHERE model_id = {model.model_id} AND user_id"
    statement = text(
        f"SELECT EXISTS ({rows} = :user_id OFFSET :exact_rows)"
        f" AND (EXISTS ({rows} < :user_id) OR EXISTS ({rows} > :user_id))"
        f" AND (SELECT count(*) FROM pg_class WHERE starts_with(relname, :prefix)) < {_MOST_OWN}"
    )
    values = {"user_id": user_id, "exact_rows": exact_rows, "prefix": f"{index_name(model.model_id)}_"}
    return session.scalar(statement, values) is True


def _users_of_own_indexes(
    connection: Connection, model: ModelRow, exact_rows: int
) -> tuple[list[str], list[str]]:
    """The users whose vectors should have an index of their own, most vectors first; the names of indexes to drop.

    Reads the whole index of users and models once: for jobs in the background.
    """
    rows = connection.execute(
        text(
            f"SELECT user_id, count(*) AS vectors FROM embeddings WHERE model_id = {model.model_id} GROUP BY 1"
            " ORDER BY vectors DESC, user_id"
        )
    ).all()
    large = [row.user_id for row in rows if row.vectors > exact_rows][:_MOST_OWN] if len(rows) > 1 else []
    # Not as soon as a user has a few less: vectors are replaced when a video is indexed again.
    kept = {index_name(model.model_id, row.user_id) for row in rows if row.vectors > exact_rows // 2}
    return large, [name for name in _own_indexes(connection, model.model_id) if name not in kept]


def _own_indexes(connection: Connection, model_id: int) -> list[str]:
    found = connection.scalars(
        text("SELECT relname FROM pg_class WHERE relkind = 'i' AND starts_with(relname, :prefix) ORDER BY 1"),
        {"prefix": f"{index_name(model_id)}_"},
    )
    return list(found)


def _is_searched(model: ModelRow) -> bool:
    return model.family in SEARCHED and model.dim is not None and model.metric is not None


#: Null: there is no such index; false: a broken build has left it, or it is being built.
_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


def ensure_index(
    engine: Engine, model: ModelRow, *, user_id: str | None = None, wait_s: float | None = None
) -> None:
    """Build a searched model's HNSW index beside running work; drops an invalid leftover of a broken build.

    ``user_id``: the index over this user's vectors alone. ``wait_s``: how long other builds are waited for; None: as long
    as a build may take.

    Raises:
        DatabaseBusy: another index is built or dropped. DatabaseUnavailable: Postgres is unavailable.
    """
    with outages(), engine.connect() as connection:
        if is_indexed(connection, model, user_id):
            return
    name = index_name(model.model_id, user_id)
    assert model.dim is not None and model.metric is not None
    with _building(engine, wait_s) as connection:
        state = connection.execute(_VALID, {"name": name}).scalar()
        if state is False:
            connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
        if not state:
            made = index_sql(model.model_id, model.dim, model.metric, concurrently=True, user_id=user_id)
            connection.exec_driver_sql(made)


def ensure_indexes(
    engine: Engine,
    model: ModelRow,
    exact_rows: int,
    *,
    wait_s: float | None = None,
    report: Callable[[float], None] = lambda done: None,
) -> None:
    """Build a model's HNSW index and those of users with many vectors; drop those of users who have few by now.

    ``exact_rows``: vectors of a user that need no index. ``report`` takes the fraction done (0..1). Waits and raises as
    ``ensure_index``.
    """
    ensure_index(engine, model, wait_s=wait_s)
    with outages(), engine.connect() as connection:
        large, needless = _users_of_own_indexes(connection, model, exact_rows)
    if needless:
        drop_index(engine, model.model_id, own=needless, wait_s=wait_s)
    for place, user_id in enumerate(large):
        report(place / len(large))
        ensure_index(engine, model, user_id=user_id, wait_s=wait_s)


def drop_index(
    engine: Engine, model_id: int, *, own: Sequence[str] | None = None, wait_s: float | None = None
) -> None:
    """Remove a model's HNSW indexes beside running work, or only the ``own`` ones of these names; waits and raises as
    ``ensure_index``."""
    with _building(engine, wait_s) as connection:
        names = [index_name(model_id), *_own_indexes(connection, model_id)] if own is None else own
        for name in names:
            connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))


def write_embeddings(
    session: Session,
    model: ModelRow,
    run: int,
    user_id: str,
    scene_ids: Sequence[UUID],
    rows: Sequence[tuple[UUID, int, npt.NDArray[np.float32]]],
) -> None:
    """Replace a run's vectors of these scenes. ``rows``: (scene, ordinal, float32 [dim]).

    Raises:
        ModelFailure: a vector has another dimension than the model, or is not finite.
    """
    common = {"model_id": model.model_id, "run": run, "user_id": user_id}
    values: list[dict[str, Any]] = []
    for scene, ordinal, vector in rows:
        if vector.shape != (model.dim,) or not np.isfinite(vector).all():
            raise ModelFailure(
                f"{model.name} gave a vector of shape {vector.shape}, expected ({model.dim},) finite numbers"
            )
        values.append({**common, "scene_id": scene, "ordinal": ordinal, "vec": HalfVector(vector)})
    of_model = (Embedding.model_id == model.model_id, Embedding.run == run)
    replace_rows(session, Embedding, (Embedding.scene_id.in_(scene_ids), *of_model), values)


def write_lexical(
    session: Session,
    model: ModelRow,
    run: int,
    user_id: str,
    scene_ids: Sequence[UUID],
    rows: Sequence[tuple[UUID, Mapping[int, float]]],
    vocabulary_size: int,
) -> None:
    """Replace a run's lexical weights of these scenes. ``rows``: (scene, token id -> weight).

    Raises:
        ModelFailure: a token id is outside the vocabulary, or a weight is not a number above 0.
    """
    common = {"model_id": model.model_id, "run": run, "user_id": user_id}
    values: list[dict[str, Any]] = []
    for scene, weights in rows:
        if not all(
            0 <= token < vocabulary_size and weight > 0 and np.isfinite(weight)
            for token, weight in weights.items()
        ):
            raise ModelFailure(f"{model.name} gave lexical weights outside its vocabulary, or not above 0")
        vector = SparseVector(dict(weights), vocabulary_size)
        values.append({**common, "scene_id": scene, "tokens": sorted(weights), "weights": vector})
    of_model = (LexicalWeights.model_id == model.model_id, LexicalWeights.run == run)
    replace_rows(session, LexicalWeights, (LexicalWeights.scene_id.in_(scene_ids), *of_model), values)
