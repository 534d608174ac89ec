"""``python -m bench.search``: a hybrid search over many scenes, against its retrievers run bare and against a full scan.

The scenes are made up (``bench/vectors.py`` says how), the queries drawn as they are and none of them. Judged is the
set ``clustered``, whose intrinsic dimension is estimated and printed; ``near random`` is a harder one, printed beside.

What is measured is the search itself, read as requests are (one snapshot, row-level security); embedding the query is
no part of it. Retrievers and hybrid are timed three times per query, in an order of chance, after a round to warm up; what is
compared is the p95. A full scan scores the same rows by the same rule in one statement, as the tables' owner, with the
parallel workers Postgres takes by itself; recall@10 is the share of its first ten that the search gives. Postgres has
its defaults but for ``shared_buffers``, 1 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from sqlalchemy import text

from bench import OUT
from bench.vectors import DIMS, SCENES_PER_VIDEO, Family, Floats, Kind, Source, intrinsic_dimension
from db import schema, search
from db.engine import get_engine, make_engine, reading, reading_as, set_engine, transact
from db.vectors import ModelRow, ensure_model, index_sql
from shared.settings import Settings
from tests.support.services import PostgresServer

USER = "u"
WEIGHTS: dict[str, float] = {"text": 0.5, "vision": 0.35}
_ROUNDS = 3
_CHUNK = 20 * SCENES_PER_VIDEO
_NEIGHBOURS = 20
Query = list[search.Vector]


# --- the data


@contextmanager
def database(folder: Path, kind: Kind) -> Iterator[str]:
    """A server on a folder, this process's engine set to the database of the kind. Yields its URL."""
    server = PostgresServer(folder)
    secret = folder / "password"
    if secret.exists():
        server.password = secret.read_text()
    secret.write_text(server.password)
    server.start()
    # What a server with this many vectors would have, and no more than both sides of a comparison need.
    server.execute("ALTER SYSTEM SET shared_buffers = '1GB'")
    server.stop()
    server.start()
    try:
        url = server.url(kind.replace(" ", "_"))
        driver_url = url.replace("postgresql://", "postgresql+psycopg://")
        set_engine(make_engine(driver_url))
        if not (folder / kind).exists():
            server.execute(f'CREATE DATABASE "{kind.replace(" ", "_")}"')
            schema.upgrade(url=driver_url)
        yield url
    finally:
        get_engine().dispose()
        set_engine(None)
        server.stop()


def make_models() -> dict[Family, ModelRow]:
    return transact(
        lambda session: {
            family: ensure_model(
                session, name=f"bench-{family}", revision="1", family=family, dim=dim, metric="cosine"
            )
            for family, dim in DIMS.items()
        }
    )


def fill(url: str, source: Source, models: dict[Family, ModelRow], scenes: int) -> None:
    """Write the videos, scenes, vectors and indexes."""
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        connection.execute(
            "INSERT INTO videos (video_id, user_id, external_id, storage_key, state, run, published_run)"
            " SELECT 'v' || n, %s, 'v' || n, 'k', 'indexed', 1, 1 FROM generate_series(0, %s) n",
            (USER, scenes // SCENES_PER_VIDEO),
        )
        for start in range(0, scenes, _CHUNK):
            ids = [uuid4() for _ in range(min(_CHUNK, scenes - start))]
            with connection.cursor() as cursor, cursor.copy(
                "COPY scenes (scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes, live,"
                " text_run, vision_run) FROM STDIN"
            ) as copy:  # fmt: skip
                for place, scene in enumerate(ids, start):
                    keyframe = json.dumps([{"ordinal": 0, "key": f"keyframes/{USER}/{scene}.jpg"}])
                    copy.write_row(
                        (scene, f"v{place // SCENES_PER_VIDEO}", USER, 1, place, place * 5.0, place * 5.0 + 5, "cut",
                         keyframe, True, 1, 1)
                    )  # fmt: skip
            for family, vectors in source.draw(len(ids)).items():
                with connection.cursor() as cursor, cursor.copy(
                    "COPY embeddings (scene_id, model_id, ordinal, run, user_id, vec) FROM STDIN (FORMAT BINARY)"
                ) as copy:  # fmt: skip
                    copy.set_types(["uuid", "int4", "int4", "int4", "text", "halfvec"])
                    for scene, vector in zip(ids, vectors, strict=True):
                        copy.write_row((scene, models[family].model_id, 0, 1, USER, HalfVector(vector)))
        connection.execute("SET maintenance_work_mem = '2GB'")
        for family, dim in DIMS.items():
            began = time.monotonic()
            connection.execute(index_sql(models[family].model_id, dim, "cosine", concurrently=False))
            print(f"{source.kind}: index of {family} built in {time.monotonic() - began:.0f} s", flush=True)
        connection.execute("VACUUM ANALYZE")
        # Else it is written out while the searches are timed.
        connection.execute("CHECKPOINT")


def draw_queries(source: Source, models: dict[Family, ModelRow], count: int) -> list[Query]:
    """Scenes that are not stored, as queries; far apart, so that they are of many clusters."""
    drawn = source.draw(count * SCENES_PER_VIDEO)
    return [
        [search.Vector(family, models[family], drawn[family][place * SCENES_PER_VIDEO]) for family in DIMS]
        for place in range(count)
    ]


# --- what is compared


def hybrid(query: Query, scope: search.Scope, tuning: search.Tuning, limit: int = 10) -> list[UUID]:
    with reading_as(USER, snapshot=True) as session:
        found = search.find(session, scope, query, WEIGHTS, tuning, limit=limit)
    return [hit.scene_id for hit in found.hits]


def answer(query: Query, scope: search.Scope, tuning: search.Tuning) -> Any:
    """As a request is answered: the search, what its hits show, and how much could be looked at."""
    with reading_as(USER, snapshot=True) as session:
        found = search.find(session, scope, query, WEIGHTS, tuning, limit=20)
        hits = search.describe(session, scope, found.hits, (), lambda key: key)
        return hits, search.cover(session, scope, {retriever.name: retriever.model for retriever in query})


def retriever_alone(retriever: search.Vector, tuning: search.Tuning) -> Any:
    """The retriever's own statement on the index."""
    with reading_as(USER, snapshot=True) as session:
        return retriever.nearest(session, search.Scope(user_id=USER), tuning.candidates, tuning.ef_search)


def exact_retriever(retriever: search.Vector, scope: search.Scope, count: int) -> Any:
    """The retriever's own statement that compares everything, with no choice of plan before and nothing after."""
    with reading_as(USER, snapshot=True) as session:
        return retriever.nearest_exactly(session, scope, count)


def full_scan(query: Query, explain: str = "") -> list[Any]:
    """The naive way: score every scene of the user, sort."""
    similarity = {
        retriever.name: f"greatest(0, 1 - ({retriever.name}.vec::halfvec({retriever.model.dim})"
        f" <=> CAST(:{retriever.name} AS halfvec({retriever.model.dim}))))"
        for retriever in query
    }
    score = " + ".join(f"{WEIGHTS[name]} * {like}" for name, like in similarity.items())
    joins = " ".join(
        f"JOIN embeddings {retriever.name} ON {retriever.name}.scene_id = s.scene_id AND {retriever.name}.model_id = {retriever.model.model_id}"
        f" AND {retriever.name}.run = s.{retriever.name}_run"
        for retriever in query
    )
    values: dict[str, Any] = {retriever.name: HalfVector(retriever.vector).to_text() for retriever in query}
    with reading() as session:
        statement = (
            f"{explain} SELECT s.scene_id FROM scenes s {joins} WHERE s.user_id = '{USER}' AND s.live"
            f" ORDER BY {score} DESC, s.video_id, s.idx LIMIT 10"
        )
        return list(session.execute(text(statement), values).scalars())


Asks = dict[str, list[Callable[[], Any]]]


def timed(
    asks: Asks, rounds: int, rng: np.random.Generator
) -> tuple[dict[str, Floats], dict[str, list[Any]]]:
    """By name the milliseconds taken, over all queries and rounds, and what was answered. The first round warms up."""
    order = [(name, place) for name, several in asks.items() for place in range(len(several))]
    answers: dict[str, list[Any]] = {name: [None] * len(several) for name, several in asks.items()}
    took: dict[str, list[float]] = {name: [] for name in asks}
    for turn in range(rounds + 1):
        # Else Python's collector walks the bench's own heap, for 70 ms, within whatever is being timed then.
        gc.collect()
        gc.freeze()
        rng.shuffle(order)
        for name, place in order:
            began = time.perf_counter()
            answers[name][place] = asks[name][place]()
            if turn:
                took[name].append((time.perf_counter() - began) * 1000)
    return {name: np.asarray(times, np.float32) for name, times in took.items()}, answers


def overlap(found: Sequence[Sequence[UUID]], right: Sequence[Sequence[UUID]]) -> float:
    """The share of the right ones that were found."""
    hits = sum(len(set(one) & set(other)) for one, other in zip(found, right, strict=True))
    return round(hits / sum(map(len, right)), 4)


def measure(models: dict[Family, ModelRow], scenes: int, queries: list[Query], curve: bool) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    everything = search.Scope(user_id=USER)
    # Few scenes are few vectors, which would be compared one by one.
    tuning = defaults(exact_rows=min(defaults().exact_rows, scenes // 2))
    videos = tuple(f"v{n}" for n in range(max(1, scenes // SCENES_PER_VIDEO // 100)))
    narrow = search.Scope(user_id=USER, video_ids=videos)
    in_narrow = min(scenes, len(videos) * SCENES_PER_VIDEO)
    everybody = defaults(candidates=max(defaults().candidates, in_narrow))

    took, answers = timed(
        {
            "text": [partial(retriever_alone, query[0], tuning) for query in queries],
            "vision": [partial(retriever_alone, query[1], tuning) for query in queries],
            "hybrid": [partial(hybrid, query, everything, tuning) for query in queries],
            "answer": [partial(answer, query, everything, tuning) for query in queries],
        },
        _ROUNDS,
        rng,
    )
    # One retriever through a filter that 1% passes, against comparing that 1%.
    filtered, kept = timed(
        {
            "filtered": [partial(hybrid, query[:1], narrow, everybody, in_narrow) for query in queries],
            "filtered, bare": [partial(exact_retriever, query[0], narrow, in_narrow) for query in queries],
            "filtered, answer": [partial(answer, query, narrow, tuning) for query in queries],
        },
        _ROUNDS,
        rng,
    )
    scanned, best = timed({"full scan": [partial(full_scan, query) for query in queries]}, 1, rng)
    took |= filtered | scanned
    p95 = {name: float(np.percentile(times, 95)) for name, times in took.items()}
    few = queries[:30]
    return {
        "intrinsic_dimension": {
            family: round(
                intrinsic_dimension(
                    [
                        [
                            match.similarity
                            for match in exact_retriever(query[place], everything, _NEIGHBOURS).values()
                        ]
                        for query in few
                    ]
                ),
                1,
            )
            for place, family in enumerate(DIMS)
        },
        "p50_ms": {name: round(float(np.median(times)), 2) for name, times in took.items()},
        "p95_ms": {name: round(value, 2) for name, value in p95.items()},
        "hybrid_to_retrievers": round(p95["hybrid"] / (p95["text"] + p95["vision"]), 2),
        "full_scan_to_hybrid": round(p95["full scan"] / p95["hybrid"], 1),
        "recall_at_10": overlap(answers["hybrid"], best["full scan"]),
        "filtered_rows": {"found": min(len(rows) for rows in kept["filtered"]), "exist": in_narrow},
        "filtered_to_bare": round(p95["filtered"] / p95["filtered, bare"], 2),
        "full_scan_plan": [line.strip() for line in full_scan(queries[0], "EXPLAIN") if "Parallel" in line],
        "tunings": measure_tunings(queries, best["full scan"]) if curve else [],
    }


def measure_tunings(queries: list[Query], best: list[Any]) -> list[dict[str, Any]]:
    """Recall and time of the hybrid search over how hard it looks; all of them asked in one order of chance."""
    everything = search.Scope(user_id=USER)
    tunings = [
        search.Tuning(exact_rows=0, ef_search=ef, candidates=candidates)
        for candidates in (50, 100, 200, 400)
        for ef in (100, 200, 400)
        if ef >= candidates
    ]
    asks: Asks = {
        str(place): [partial(hybrid, query, everything, tuning) for query in queries]
        for place, tuning in enumerate(tunings)
    }
    took, answers = timed(asks, 1, np.random.default_rng(1))
    return [
        {
            "candidates": tuning.candidates,
            "ef": tuning.ef_search,
            "recall": overlap(answers[name], best),
            "p50_ms": round(float(np.median(took[name])), 1),
            "p95_ms": round(float(np.percentile(took[name], 95)), 1),
        }
        for name, tuning in zip(asks, tunings, strict=True)
    ]


def defaults(**other: Any) -> search.Tuning:
    """As the settings have it by default."""
    fields = Settings.model_fields
    values = {
        "exact_rows": fields["search_exact_rows"].default,
        "ef_search": fields["search_ef"].default,
        "candidates": fields["search_candidates"].default,
    }
    return search.Tuning(**{**values, **other})


def verdicts(result: dict[str, Any]) -> dict[str, bool]:
    """What is wanted, and whether it is so."""
    rows = result["filtered_rows"]
    return {
        "hybrid at most 2 times its retrievers": result["hybrid_to_retrievers"] <= 2,
        "a full scan takes at least 20 times as long": result["full_scan_to_hybrid"] >= 20,
        "recall@10 at least 0.99": result["recall_at_10"] >= 0.99,
        "a filter leaves every row that fits": rows["found"] == rows["exist"],
        "filtered at most 1.5 times the bare exact scan": result["filtered_to_bare"] <= 1.5,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument(
        "--quick", action="store_true", help="5,000 scenes and 30 queries: only that it works"
    )
    parser.add_argument("--clustered", action="store_true", help="leave the harder set out")
    parser.add_argument("--curve", action="store_true", help="recall and time over candidates and ef, too")
    parser.add_argument("--keep", type=Path, help="a folder for the data, used again if it holds them")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    scenes, count = (5_000, 30) if options.quick else (options.scenes, options.queries)
    result: dict[str, Any] = {"scenes": scenes, "queries": count, "tuning": vars(defaults())}
    kinds: list[Kind] = ["clustered"] if options.clustered else ["clustered", "near random"]
    with tempfile.TemporaryDirectory() as passing:
        folder = options.keep or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            with database(folder, kind) as url:
                models = make_models()
                filled = folder / kind
                if not filled.exists():
                    fill(url, Source(kind, seed=1), models, scenes)
                    filled.touch()
                queries = draw_queries(Source(kind, seed=2), models, count)
                result[kind] = measure(models, scenes, queries, options.curve)
                print(kind, json.dumps(result[kind], indent=2), f"load {os.getloadavg()}", flush=True)
    result["load_average"] = os.getloadavg()
    print(json.dumps(result, indent=2))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "search.json").write_text(json.dumps(result, indent=2))
    # What a few scenes give says nothing.
    wrong = (
        [] if options.quick else [name for name, good in verdicts(result["clustered"]).items() if not good]
    )
    for name in wrong:
        print(f"not as wanted: {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
