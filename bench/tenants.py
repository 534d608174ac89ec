"""``python -m bench.tenants``: searches of many users whose vectors stand in one table, each against the same user alone.

300 users have from 100 to 200,000 vectors, a million in all (``--vectors``), written in an order of chance. Each keeps to ten
of 300 clusters that all share; half of the queries are of a cluster of the user, half of any. For the latter nearly always the
vectors of others are nearer, and the user's own are all about equally far. Printed for users of each class of size: recall@10
of the search by vectors with the model's index alone, and with the indexes that ``build_index`` makes for users with many
vectors (judged), for both kinds of queries; and the p95 of a hybrid search (vectors and words), as the user has it and alone
in a database on the same server. Settings and server as shipped but for ``maintenance_work_mem``, 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from bench import OUT
from bench.ledger.costs import sessions_on
from bench.search import defaults, settle, word
from bench.servers import DATABASE, servers
from bench.vectors import Source
from db import search
from db.engine import get_engine, reading_as, set_engine, transact
from db.vectors import ModelRow, ensure_index, ensure_indexes, ensure_model

#: Dimension of the text model of the profile ``lite``.
DIM = 384
LEAST, MOST, CLUSTERS_OF_USER, SCENES_OF_VIDEO = 100, 200_000, 10, 100
#: Upper ends of the classes of size; users up to SEARCH_EXACT_ROWS are compared one by one.
CLASSES = (1_000, 5_000, 20_000, 50_000, MOST)
RECALL, TIMES_ALONE = 0.99, 2.0
_WORDS, _WORDS_OF_SCENE, _ROUNDS = 5_000, 6, 3
_BUILD = "?options=-c%20maintenance_work_mem%3D2GB"
_WEIGHTS = {"text": 0.5, "keyword": 0.2}
_SCENES = "scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes, live, text_run, transcript, tsv"
_EMBEDDINGS = "scene_id, model_id, ordinal, run, user_id, vec"


@dataclass(frozen=True)
class User:
    user_id: str
    vectors: int
    clusters: Any


@dataclass(frozen=True)
class Query:
    vector: search.Vector
    words: search.Words


def sizes(users: int, vectors: int, most: int) -> list[int]:
    """From ``LEAST`` to ``most``, each a little more than the one before, ``vectors`` in all."""
    places = np.arange(users) / (users - 1)
    low, high = 0.01, 100.0
    for _ in range(60):
        bend = (low + high) / 2
        of_users = LEAST * (most / LEAST) ** (places**bend)
        low, high = (bend, high) if of_users.sum() > vectors else (low, bend)
    return [round(size) for size in of_users]


def fill(url: str, users: Sequence[User], source: Source, model: ModelRow) -> None:
    """Write the scenes and vectors of all users, video by video in an order of chance."""
    rng = np.random.default_rng(2)
    shares = 1 / np.arange(10, 10 + _WORDS)
    shares /= shares.sum()
    videos = [
        (user, start, min(SCENES_OF_VIDEO, user.vectors - start))
        for user in users
        for start in range(0, user.vectors, SCENES_OF_VIDEO)
    ]
    rng.shuffle(videos)  # type: ignore[arg-type]
    with psycopg.connect(url) as scenes, psycopg.connect(url) as vectors:
        register_vector(vectors)
        for connection in (scenes, vectors):
            # Neither triggers nor checks of foreign keys: the vectors are written beside their scenes.
            connection.execute("SET session_replication_role = replica")
        with (
            scenes.cursor() as cursor,
            vectors.cursor() as other,
            cursor.copy(f"COPY scenes ({_SCENES}) FROM STDIN") as copy,
            other.copy(f"COPY embeddings ({_EMBEDDINGS}) FROM STDIN (FORMAT BINARY)") as beside,
        ):
            beside.set_types(["uuid", "int4", "int4", "int4", "text", "halfvec"])
            for number, (user, start, count) in enumerate(videos):
                spoken = rng.choice(_WORDS, size=(count, _WORDS_OF_SCENE), p=shares)
                drawn = source.draw(count, user.clusters)["text"]
                for place in range(count):
                    scene, said = uuid4(), [word(one) for one in spoken[place]]
                    tsv = " ".join(f"'{one}':{at}" for at, one in enumerate(said, 1))
                    copy.write_row(
                        (scene, f"v{number}", user.user_id, 1, start + place, place * 5.0, place * 5.0 + 5, "cut",
                         "[]", True, 1, " ".join(said), tsv)
                    )  # fmt: skip
                    beside.write_row((scene, model.model_id, 0, 1, user.user_id, HalfVector(drawn[place])))
        with scenes.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO videos (video_id, user_id, external_id, storage_key, state, run, published_run)"
                " VALUES (%s, %s, %s, 'k', 'indexed', 1, 1)",
                [(f"v{number}", user.user_id, f"v{number}") for number, (user, _, _) in enumerate(videos)],
            )


def copy_user(url: str, alone: str, user_id: str) -> None:
    """Copy a user's rows into a database where nobody else is."""
    with psycopg.connect(url) as source, psycopg.connect(alone) as target:
        target.execute("SET session_replication_role = replica")
        videos = "video_id, user_id, external_id, storage_key, state, run, published_run"
        for table, columns in (("videos", videos), ("scenes", _SCENES), ("embeddings", _EMBEDDINGS)):
            rows = f"COPY (SELECT {columns} FROM {table} WHERE user_id = '{user_id}') TO STDOUT"
            with (
                source.cursor() as cursor,
                target.cursor() as other,
                cursor.copy(rows) as taken,
                other.copy(f"COPY {table} ({columns}) FROM STDIN") as written,
            ):
                for block in taken:
                    written.write(block)


def draw_queries(
    user: User, source: Source, model: ModelRow, count: int, rng: np.random.Generator
) -> list[Query]:
    queries = []
    for place in range(count):
        drawn = source.draw(1, user.clusters if place % 2 else None)["text"][0]
        # The most frequent words are in half of all scenes.
        words = search.WordsQuery("english", f"'{word(int(rng.integers(20, 500)))}'")
        queries.append(Query(search.Vector("text", model, drawn), search.Words("keyword", (words,))))
    return queries


def recall(users: Sequence[User], queries: Mapping[str, Sequence[Query]]) -> tuple[float, float]:
    """The share of the ten nearest that the search by vectors gives: queries of clusters of the user, of any."""
    of_users = [[_recall(user, queries[user.user_id][start::2]) for user in users] for start in (1, 0)]
    return float(np.mean(of_users[0])), float(np.mean(of_users[1]))


def _recall(user: User, queries: Sequence[Query]) -> float:
    scope, tuning = search.Scope(user_id=user.user_id), defaults()
    found = wanted = 0
    with reading_as(user.user_id, snapshot=True) as session:
        for query in queries:
            exact = query.vector.nearest_exactly(session, scope, 10)
            given = list(query.vector.candidates(session, scope, tuning).values())[:10]
            least = min(match.similarity for match in exact.values()) - 1e-6
            wanted += len(exact)
            found += sum(match.similarity >= least for match in given)
    return found / wanted


def hybrid_ms(user: User, query: Query) -> float:
    began = time.perf_counter()
    with reading_as(user.user_id, snapshot=True) as session:
        search.find(
            session,
            search.Scope(user_id=user.user_id),
            [query.vector, query.words],
            _WEIGHTS,
            defaults(),
            limit=20,
        )
    return (time.perf_counter() - began) * 1000


@dataclass
class Class:
    """Users of one class of size."""

    most: int
    users: list[User]
    #: Queries of the user's clusters, of any.
    recall_of_models_index: tuple[float, float] = (0.0, 0.0)
    recalls: tuple[float, float] = (0.0, 0.0)
    p95_ms: float = 0.0
    alone_p95_ms: float = 0.0

    @property
    def recall(self) -> float:
        return sum(self.recalls) / 2

    @property
    def ratio(self) -> float:
        return self.p95_ms / self.alone_p95_ms


def choose(users: Sequence[User], of_class: int) -> list[Class]:
    """Of each class some users, the largest first."""
    classes, least = [], 0
    for most in CLASSES:
        within = [user for user in users if least < user.vectors <= most]
        if within:
            places = np.linspace(len(within) - 1, 0, min(of_class, len(within))).round().astype(int)
            classes.append(Class(most, [within[place] for place in places]))
        least = most
    return classes


def measure(options: argparse.Namespace) -> list[Class]:
    users_count, vectors, most = (20, 30_000, 25_000) if options.quick else (300, options.vectors, MOST)
    source, rng = Source("clustered", seed=1, dims={"text": DIM}), np.random.default_rng(1)
    users = [
        User(f"u{number}", size, source.clusters(CLUSTERS_OF_USER))
        for number, size in enumerate(sizes(users_count, vectors, most))
    ]
    classes = choose(users, 1 if options.quick else 3)
    with servers() as (postgres, _, _):

        def database(name: str) -> str:
            postgres.execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE}")
            return postgres.url(name)

        shared = database("shared")
        values: dict[str, Any] = {
            "name": "bench-text",
            "revision": "1",
            "family": "text",
            "dim": DIM,
            "metric": "cosine",
        }
        with sessions_on(shared + _BUILD):
            model = transact(lambda session: ensure_model(session, **values))
            began = time.monotonic()
            fill(shared, users, source, model)
            print(
                f"{sum(user.vectors for user in users):,} vectors of {len(users)} users in {time.monotonic() - began:.0f} s"
            )
            began = time.monotonic()
            ensure_index(get_engine(), model)
            print(f"the model's index in {time.monotonic() - began:.0f} s", flush=True)
            settle(shared)
            queries = {
                user.user_id: draw_queries(user, source, model, options.queries, rng)
                for one in classes
                for user in one.users
            }
            for one in classes:
                one.recall_of_models_index = recall(one.users, queries)
            began = time.monotonic()
            ensure_indexes(get_engine(), model, defaults().exact_rows)
            print(f"users' own indexes in {time.monotonic() - began:.0f} s", flush=True)
        settle(shared)
        with sessions_on(shared + _BUILD):
            in_shared = get_engine()
            for one in classes:
                one.recalls = recall(one.users, queries)
                took: dict[bool, list[float]] = {True: [], False: []}
                for user in one.users:
                    alone = database(f"alone_{user.user_id}")
                    with sessions_on(alone + _BUILD):
                        in_alone = get_engine()
                        assert transact(partial(ensure_model, **values)).model_id == model.model_id
                        copy_user(shared, alone, user.user_id)
                        ensure_index(in_alone, model)
                        settle(alone)
                        for turn in range(_ROUNDS + 1):
                            for query in queries[user.user_id]:
                                # One after the other: whatever else the machine does, it does to both.
                                for is_alone in rng.permutation([True, False]):
                                    set_engine(in_alone if is_alone else in_shared)
                                    ms = hybrid_ms(user, query)
                                    if turn:
                                        took[bool(is_alone)].append(ms)
                    set_engine(in_shared)
                    postgres.execute(f"DROP DATABASE alone_{user.user_id} WITH (FORCE)")
                one.p95_ms, one.alone_p95_ms = (
                    float(np.percentile(took[alone], 95)) for alone in (False, True)
                )
                print(report(one), flush=True)
    return classes


def report(one: Class) -> str:
    missed = [
        name
        for name, good in (("recall", one.recall >= RECALL), ("time", one.ratio <= TIMES_ALONE))
        if not good
    ]
    own, every = (
        f"{before:.3f} -> {now:.3f}"
        for before, now in zip(one.recall_of_models_index, one.recalls, strict=True)
    )
    return (
        f"  up to {one.most:>7,} vectors: recall@10 {one.recall:.3f} (model's index -> as searched: own clusters {own}, any {every}),"
        f" hybrid p95 {one.p95_ms:.1f} ms, {one.ratio:.2f} times the {one.alone_p95_ms:.1f} ms alone"
        + (f"   MISSED: {', '.join(missed)}" if missed else "")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tenants", description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=20, help="of each user; 3 users of each class")
    parser.add_argument("--quick", action="store_true", help="30,000 vectors of 20 users: only that it works")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    classes = measure(options)
    result = [
        {**asdict(one), "users": [user.vectors for user in one.users], "ratio": round(one.ratio, 2)}
        for one in classes
    ]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "tenants.json").write_text(
        json.dumps({"classes": result, "load_average": os.getloadavg()}, indent=2)
    )
    missed = [one for one in classes if one.recall < RECALL or one.ratio > TIMES_ALONE]
    # What a few vectors give says nothing.
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
