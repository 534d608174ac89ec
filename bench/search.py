"""``python -m bench.search``: a hybrid search over many scenes, against its retrievers run bare and against a full scan.

The scenes are made up (``bench/vectors.py`` says how), the queries drawn as they are and none of them. One user has three
fifths of them, 20 others the rest; a scene has 3 keyframes, words, lexical weights and, one of five, text on screen. Both
sets are judged: ``clustered``, whose intrinsic dimension is estimated and printed, and ``near random``, a harder one.

What is measured is the search itself with all retrievers but people, read as requests are (one snapshot, row-level
security); embedding the query is no part of it. Retrievers and hybrid are timed three times per query, in an order of
chance, after a round to warm up; what is compared is the p95. A full scan scores the vectors of all scenes in one
statement, as the tables' owner, with the parallel workers Postgres takes by itself: words and weights would come on top.
recall@10 is the share of the ten best that the search gives, where each retriever has compared every scene. Postgres has the
settings of the embedded server.
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
import numpy.typing as npt
import psycopg
from pgvector import HalfVector, SparseVector
from pgvector.psycopg import register_vector
from sqlalchemy import text

from bench import OUT
from bench.vectors import DIMS, SCENES_PER_VIDEO, Family, Floats, Kind, Source, intrinsic_dimension, keyframes
from db import schema, search
from db.engine import get_engine, make_engine, reading, reading_as, set_engine, transact
from db.vectors import ModelRow, ensure_indexes, ensure_model
from shared.settings import Settings
from tests.support.services import PostgresServer

USER, OTHERS, SHARE = "u", 20, 0.6
KEYFRAMES = 3
#: As the settings have them by default.
WEIGHTS: dict[str, float] = {"text": 0.5, "vision": 0.35, "keyword": 0.2, "lexical": 0.2, "screen": 0.2}
_WORDS, _WORDS_OF_SCENE, _VOCABULARY = 20_000, 12, 250_002
_ROUNDS = 3
_CHUNK = 20 * SCENES_PER_VIDEO
_NEIGHBOURS = 20
Query = list[search.Retriever]


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


def owner(video: int) -> str:
    return USER if video % 5 < 5 * SHARE else f"o{video % OTHERS}"


def word(number: int) -> str:
    return f"w{number}"


def _zipf() -> npt.NDArray[np.float64]:
    shares = 1 / np.arange(10, 10 + _WORDS)
    return np.asarray(shares / shares.sum())


def fill(url: str, source: Source, models: dict[Family, ModelRow], scenes: int) -> None:
    """Write the videos, scenes, vectors, words and weights, and build the indexes."""
    rng, shares = np.random.default_rng(3), _zipf()
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        connection.cursor().executemany(
            "INSERT INTO videos (video_id, user_id, external_id, storage_key, state, run, published_run)"
            " VALUES (%s, %s, %s, 'k', 'indexed', 1, 1)",
            [(f"v{n}", owner(n), f"v{n}") for n in range(scenes // SCENES_PER_VIDEO + 1)],
        )
        for start in range(0, scenes, _CHUNK):
            ids = [uuid4() for _ in range(min(_CHUNK, scenes - start))]
            owners = [owner(place // SCENES_PER_VIDEO) for place in range(start, start + len(ids))]
            spoken = rng.choice(_WORDS, size=(len(ids), _WORDS_OF_SCENE), p=shares)
            _write_scenes(connection, start, ids, owners, spoken)
            with connection.cursor() as cursor, cursor.copy(
                "COPY lexical_weights (scene_id, model_id, run, user_id, tokens, weights) FROM STDIN"
            ) as copy:  # fmt: skip
                for scene, user, words in zip(ids, owners, spoken, strict=True):
                    heavy = rng.uniform(0.05, 0.4, len(words)).tolist()
                    weights = dict(zip(words.tolist(), heavy, strict=True))
                    vector = SparseVector(weights, _VOCABULARY).to_text()
                    copy.write_row((scene, models["text"].model_id, 1, user, sorted(weights), vector))
            drawn = source.draw(len(ids))
            several = {"text": drawn["text"][:, None], "vision": keyframes(drawn["vision"], KEYFRAMES, rng)}
            for family, model in models.items():
                with connection.cursor() as cursor, cursor.copy(
                    "COPY embeddings (scene_id, model_id, ordinal, run, user_id, vec) FROM STDIN (FORMAT BINARY)"
                ) as copy:  # fmt: skip
                    copy.set_types(["uuid", "int4", "int4", "int4", "text", "halfvec"])
                    for scene, user, of_scene in zip(ids, owners, several[family], strict=True):
                        for ordinal, vector in enumerate(of_scene):
                            copy.write_row((scene, model.model_id, ordinal, 1, user, HalfVector(vector)))
    for family, model in models.items():
        began = time.monotonic()
        ensure_indexes(get_engine(), model, defaults().exact_rows)
        print(f"{source.kind}: indexes of {family} built in {time.monotonic() - began:.0f} s", flush=True)
    settle(url)


def settle(url: str) -> None:
    """Let Postgres do now what it would do while the searches are timed."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def _write_scenes(
    connection: Any, start: int, ids: Sequence[UUID], owners: Sequence[str], spoken: npt.NDArray[np.int64]
) -> None:
    with connection.cursor() as cursor, cursor.copy(
        "COPY scenes (scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes, live,"
        " text_run, vision_run, transcript, tsv, screen_text, screen_tsv) FROM STDIN"
    ) as copy:  # fmt: skip
        for place, (scene, user, words) in enumerate(zip(ids, owners, spoken, strict=True), start):
            shown = [
                {"ordinal": one, "key": f"keyframes/{user}/{scene}.{one}.jpg"} for one in range(KEYFRAMES)
            ]
            said = [word(one) for one in words]
            tsv = " ".join(f"'{one}':{at}" for at, one in enumerate(said, 1))
            screen = (" ".join(said[:2]), f"'{said[0]}':1 '{said[1]}':2") if place % 5 == 0 else ("", None)
            copy.write_row(
                (scene, f"v{place // SCENES_PER_VIDEO}", user, 1, place, place * 5.0, place * 5.0 + 5, "cut",
                 json.dumps(shown), True, 1, 1, " ".join(said), tsv, *screen)
            )  # fmt: skip


def draw_queries(source: Source, models: dict[Family, ModelRow], count: int) -> list[Query]:
    """Scenes that are not stored, as queries, far apart, so that they are of many clusters; each with two words."""
    drawn = source.draw(count * SCENES_PER_VIDEO)
    rng, queries = np.random.default_rng(4), []
    for place in range(count):
        # The most frequent words of a language are no words to search for.
        numbers = [int(one) for one in rng.choice(np.arange(30, 1000), 2, replace=False)]
        words = (search.WordsQuery("english", " | ".join(f"'{word(one)}'" for one in numbers)),)
        query: Query = [
            search.Vector(family, models[family], drawn[family][place * SCENES_PER_VIDEO]) for family in DIMS
        ]
        query += [search.Words("keyword", words), search.Lexical(models["text"], dict.fromkeys(numbers, 0.3))]
        queries.append([*query, search.Words("screen", words)])
    return queries


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
        models = {one.name: one.model for one in query if isinstance(one, search.Vector | search.Lexical)}
        return hits, search.cover(session, scope, models)


def retriever_alone(retriever: search.Retriever, tuning: search.Tuning) -> Any:
    """The retriever's own candidates."""
    with reading_as(USER, snapshot=True) as session:
        return retriever.candidates(session, search.Scope(user_id=USER), tuning)


def find_best(query: Query, scenes: int) -> list[UUID]:
    """The ten best where each retriever compares every scene of the user."""
    everything = search.Tuning(exact_rows=2**40, candidates=scenes, depth=scenes)
    return hybrid(query, search.Scope(user_id=USER), everything)


def _vector(query: Query, place: int) -> search.Vector:
    found = query[place]
    assert isinstance(found, search.Vector)
    return found


def exact_retriever(retriever: search.Vector, scope: search.Scope, count: int) -> Any:
    """The retriever's own statement that compares everything, with no choice of plan before and nothing after."""
    with reading_as(USER, snapshot=True) as session:
        return retriever.nearest_exactly(session, scope, count)


def full_scan(query: Query, explain: str = "") -> list[Any]:
    """The naive way: score the vectors of every scene of the user, sort."""
    vectors = [one for one in query if isinstance(one, search.Vector)]
    score = " + ".join(f"{WEIGHTS[one.name]} * greatest(0, 1 - {one.name}.distance)" for one in vectors)
    # The best of a scene's keyframes.
    joins = " ".join(
        f"JOIN (SELECT e.scene_id, min(e.vec::halfvec({one.model.dim}) <=> CAST(:{one.name} AS halfvec({one.model.dim})))"
        f" AS distance FROM embeddings e WHERE e.user_id = '{USER}' AND e.model_id = {one.model.model_id} AND e.run = 1"
        f" GROUP BY e.scene_id) {one.name} USING (scene_id)"
        for one in vectors
    )
    values: dict[str, Any] = {one.name: HalfVector(one.vector).to_text() for one in vectors}
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
    own = [n for n in range(scenes // SCENES_PER_VIDEO) if owner(n) == USER]
    videos = tuple(f"v{n}" for n in own[: max(1, len(own) // 100)])
    narrow = search.Scope(user_id=USER, video_ids=videos)
    in_narrow = len(videos) * SCENES_PER_VIDEO
    everybody = defaults(candidates=max(defaults().candidates, in_narrow))

    took, answers = timed(
        {
            **{
                name: [partial(retriever_alone, query[place], tuning) for query in queries]
                for place, name in enumerate(WEIGHTS)
            },
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
            "filtered, bare": [
                partial(exact_retriever, _vector(query, 0), narrow, in_narrow) for query in queries
            ],
            "filtered, answer": [partial(answer, query, narrow, tuning) for query in queries],
        },
        _ROUNDS,
        rng,
    )
    few = queries[:30]
    scanned, _ = timed({"full scan": [partial(full_scan, query) for query in few]}, 1, rng)
    right = [find_best(query, scenes) for query in few]
    took |= filtered | scanned
    p95 = {name: float(np.percentile(times, 95)) for name, times in took.items()}
    return {
        "intrinsic_dimension": {
            family: round(
                intrinsic_dimension(
                    [
                        [
                            match.similarity
                            for match in exact_retriever(
                                _vector(query, place), everything, _NEIGHBOURS
                            ).values()
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
        "hybrid_to_retrievers": round(p95["hybrid"] / sum(p95[name] for name in WEIGHTS), 2),
        "full_scan_to_hybrid": round(p95["full scan"] / p95["hybrid"], 1),
        "recall_at_10": overlap(answers["hybrid"][: len(few)], right),
        "filtered_rows": {"found": min(len(rows) for rows in kept["filtered"]), "exist": in_narrow},
        "filtered_to_bare": round(p95["filtered"] / p95["filtered, bare"], 2),
        "full_scan_plan": [line.strip() for line in full_scan(queries[0], "EXPLAIN") if "Parallel" in line],
        "tunings": measure_tunings(few, right) if curve else [],
    }


def measure_tunings(queries: list[Query], best: list[Any]) -> list[dict[str, Any]]:
    """Recall and time of the hybrid search over how hard it looks; all of them asked in one order of chance."""
    everything = search.Scope(user_id=USER)
    tunings = [
        search.Tuning(exact_rows=0, ef_search=ef, candidates=candidates)
        for candidates in (50, 100, 150, 200, 400)
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
    judged = [] if options.quick else kinds
    wrong = [
        f"{kind}: {name}" for kind in judged for name, good in verdicts(result[kind]).items() if not good
    ]
    for name in wrong:
        print(f"not as wanted: {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
