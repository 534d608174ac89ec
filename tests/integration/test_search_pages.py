"""Pages of searches on a real Postgres: complete to the last hit, each scene once, and the last page at the cost of the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text

from db import search
from db.engine import get_engine, reading, reading_as, transact
from shared.contracts import SearchAnswer, SearchScenes, parse
from shared.errors import InvalidRequest
from shared.settings import Settings
from tests.integration.conftest import Configure
from tests.integration.test_search import EXACT_AND_INDEXED, WEIGHTS, Shot, ids, near, unit, words, write
from tests.support.figures import RecordFigure
from worker.runtime import Runtime
from worker.search import answer, plan

pytestmark = pytest.mark.usefixtures("database")

MANY = 400
Find = Callable[..., search.Ranking]


def fill() -> None:
    """Write videos with ``MANY`` scenes in all, each with Ann and the word rocket, by few statements."""

    def work(session: Any) -> None:
        for statement in (
            "INSERT INTO videos (video_id, user_id, external_id, storage_key, state, run, published_run)"
            " SELECT 'v' || n, 'u', 'v' || n, 'k', 'indexed', 1, 1 FROM generate_series(0, 9) n",
            "INSERT INTO people (person_id, user_id, external_id, name) VALUES ('ann', 'u', 'ann', 'Ann')",
            "INSERT INTO scenes (scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes, live,"
            " transcript, language, tsv, text_run, face_run)"
            " SELECT gen_random_uuid(), 'v' || n % 10, 'u', 1, n, n, n + 1, 'cut', '[]', true, said, 'en',"
            " to_tsvector('english', said) || to_tsvector('simple', said), 1, 1"
            " FROM (SELECT n, repeat('rocket ', 1 + n % 7) || n AS said"
            f" FROM generate_series(0, {MANY - 1}) n) scene",
            "INSERT INTO scene_people (scene_id, person_id, user_id, confidence, frame_count)"
            " SELECT scene_id, 'ann', 'u', (idx % 13) / 20.0 + 0.1, 1 FROM scenes",
        ):
            session.execute(text(statement))

    transact(work)
    with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def pages(find: Find, limit: int) -> list[search.Ranking]:
    found = [find(limit=limit)]
    while found[-1].more:
        found.append(find(limit=limit, after=found[-1].hits[-1].place))
        assert len(found) <= 2 * MANY, "the pages have an end"
    return found


def finder(
    retrievers: list[Any],
    tuning: search.Tuning | None = None,
    *,
    min_score: float | None = None,
    **scope: Any,
) -> Find:
    def find(**options: Any) -> search.Ranking:
        with reading_as("u", snapshot=True) as session:
            where = search.Scope(user_id="u", **scope)
            return search.find(
                session, where, retrievers, WEIGHTS, tuning or search.Tuning(), min_score=min_score, **options
            )

    return find


def hits_of(found: list[search.Ranking]) -> list[search.Found]:
    return [hit for page in found for hit in page.hits]


def ann(**options: Any) -> search.People:
    return search.People(("ann",), proposes=options.get("proposes", True))


#: What is listed by Postgres, page by page.
LISTED: dict[str, Callable[[], Find]] = {
    "people": lambda: finder([ann()], persons=("ann",)),
    "people preferred": lambda: finder([ann()], persons=("ann",), persons_match="prefer"),
    "keyword": lambda: finder([words("rocket")]),
    "keyword and people": lambda: finder([words("rocket"), ann(proposes=False)], persons=("ann",)),
    "a filter": lambda: finder([], languages=("en",)),
}


@pytest.mark.parametrize("kind", LISTED)
def test_a_list_is_complete_in_one_order_at_one_cost(
    kind: str, database: str, record_figure: RecordFigure
) -> None:
    fill()
    find = LISTED[kind]()
    found = pages(find, limit=30)
    hits = hits_of(found)
    assert len(hits) == MANY and len({hit.scene_id for hit in hits}) == MANY
    assert [hit.place[:3] for hit in hits] == sorted(hit.place[:3] for hit in hits)
    assert [len(page.hits) for page in found] == [30] * 13 + [10]
    assert not any(page.truncated or page.left_out for page in found)
    first, last = (
        buffers(find, database, limit=30, after=place) for place in (None, found[-2].hits[-1].place)
    )
    record_figure(f"buffers of the first and the last of 14 pages, {kind}", f"{first} and {last}")
    assert last <= 1.2 * first + 10


def buffers(find: Find, database: str, **options: Any) -> int:
    """The pages of tables and indexes that Postgres reads for the statement of a page."""
    statements: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    event.listen(get_engine(), "before_cursor_execute", note)
    try:
        find(**options)
    finally:
        event.remove(get_engine(), "before_cursor_execute", note)
    statement, parameters = statements[-1]
    with psycopg.connect(database) as connection:
        connection.execute("SET enable_seqscan = off")
        ((plans,),) = connection.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode(), parameters
        ).fetchall()
    top = (json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"]
    return int(top["Shared Hit Blocks"]) + int(top["Shared Read Blocks"])


def test_a_list_with_a_lowest_score_ends_there() -> None:
    fill()
    whole = hits_of(pages(finder([ann()], persons=("ann",)), limit=50))
    least = whole[100].score
    found = hits_of(pages(finder([ann()], persons=("ann",), min_score=least), limit=30))
    assert found == [hit for hit in whole if hit.score >= least] and len(found) < MANY


@EXACT_AND_INDEXED
def test_ranked_pages_go_to_the_last_scene_and_repeat_none(exact_rows: int) -> None:
    models = write(
        *(
            Shot(
                video=f"v{n % 3}",
                idx=n,
                text=unit(1, 0.02 * n),
                vision=[unit(1, 0.02 * (120 - n))],
                words="rocket",
            )
            for n in range(120)
        )
    )
    retrievers = [near(models), near(models, "vision"), words("rocket")]
    tuning = search.Tuning(exact_rows=exact_rows, candidates=10)
    found = pages(finder(retrievers, tuning), limit=7)
    hits = hits_of(found)
    assert sorted(ids(hits)) == list(range(120)), "each scene once"
    assert not any(page.truncated for page in found)
    one = hits_of(pages(finder(retrievers, search.Tuning(exact_rows=exact_rows, candidates=121)), limit=50))
    assert {hit.scene_id: hit.score for hit in hits} == {hit.scene_id: hit.score for hit in one}
    for block in {hit.block for hit in hits}:
        places = [hit.place[:3] for hit in hits if hit.block == block]
        assert places == sorted(places)


def test_a_search_that_ends_at_its_depth_says_so() -> None:
    models = write(*(Shot(idx=n, text=unit(1, 0.02 * n)) for n in range(40)))
    for depth, truncated in [(20, True), (39, True), (40, False), (41, False)]:
        found = pages(finder([near(models)], search.Tuning(candidates=10, depth=depth)), limit=7)
        assert [page.truncated for page in found] == [False] * (len(found) - 1) + [truncated]
        assert ids(hits_of(found)) == list(range(min(depth, 40)))


@EXACT_AND_INDEXED
def test_the_last_scene_is_known_without_looking_for_more(exact_rows: int) -> None:
    models = write(*(Shot(idx=n, text=unit(1, 0.02 * n)) for n in range(40)))
    retriever, looks = near(models), []

    def look(*args: Any) -> Any:
        looks.append(args)
        return search.Vector._found(retriever, *args)

    object.__setattr__(retriever, "_found", look)
    found = finder([retriever], search.Tuning(exact_rows=exact_rows, candidates=40), video_ids=("v",))(
        limit=60
    )
    assert ids(list(found.hits)) == list(range(40)) and not found.more and len(looks) == 1


def test_nothing_deeper_is_looked_for_than_can_have_the_lowest_score() -> None:
    models = write(*(Shot(idx=n, text=unit(1, 0.1 * n)) for n in range(60)))
    find = finder([near(models)], search.Tuning(candidates=10, depth=20), min_score=0.45)
    found = find(limit=50)
    assert ids(list(found.hits)) == [0, 1, 2, 3, 4] and not found.truncated


def test_what_no_retriever_finds_similar_is_left_out_and_counted() -> None:
    models = write(
        Shot(idx=0, text=unit(1), vision=[unit(0, 1)]),
        Shot(idx=1, text=unit(1, 4), vision=[unit(1)]),
        Shot(idx=2, text=unit(1, 4), vision=[unit(0, 1)], words="a rocket"),
        Shot(idx=3, text=unit(1, 4), vision=[unit(0, 1)]),
        Shot(idx=4, text=unit(1, 9)),
    )
    legs = [
        search.Vector("text", models["text"], unit(1), cutoff=0.5),
        search.Vector("vision", models["vision"], unit(1), cutoff=0.5),
        words("rocket"),
    ]
    found = finder(legs, search.Tuning(cut=True))(limit=10)
    assert sorted(ids(list(found.hits))) == [0, 1, 2] and found.left_out == 2
    assert found.hits[-1].matches["text"].similarity == pytest.approx(0.2425, abs=2e-3), (
        "still part of the score"
    )
    whole = finder(legs, search.Tuning())(limit=10)
    assert len(whole.hits) == 5 and whole.left_out == 0
    nothing = finder(legs[:1], search.Tuning(cut=True, candidates=2), video_ids=("v",), without=write_id(0))(
        limit=10
    )
    assert nothing.hits == () and not nothing.more and not nothing.truncated and nothing.left_out == 2


def write_id(idx: int) -> Any:
    return Shot(idx=idx).id


GERMAN = Shot(idx=0, words="die Kinder spielen", screen="Kinder", language="de")
ENGLISH = Shot(idx=1, words="the children are playing", language="en")
SILENT = Shot(idx=2, screen="NO PARKING", language=None)
JAPANESE = Shot(video="w", idx=3, words="ロケット kinder", language="ja")


def test_a_query_is_stemmed_in_the_languages_of_the_scenes() -> None:
    write_stemmed(GERMAN, ENGLISH, SILENT, JAPANESE)
    languages = ("", "de", "en", "ja")
    expected = [
        ("Kindern", "keyword", {0}, {"Kinder"}),
        ("Kindern", "screen", {0}, {"Kinder"}),
        ("play", "keyword", {1}, {"playing"}),
        ("parks", "screen", {2}, set()),
        ("ロケット", "keyword", {3}, {"ロケット"}),
        ("kinder", "keyword", {0, 3}, {"Kinder", "kinder"}),
        ("Kindern -spielen", "keyword", set(), set()),
    ]
    scope = search.Scope(user_id="u")
    for query, name, found, marked in expected:
        with reading() as session:
            queries = search.read_words(session, query, languages)
            retriever = search.Words(name, queries)  # type: ignore[arg-type]
            ranking = search.find(session, scope, [retriever], WEIGHTS, search.Tuning(), limit=9)
            hits = search.describe(session, scope, ranking.hits, queries, lambda key: None)
        assert {hit.idx for hit in hits} == found, query
        spans = {hit.transcript[span.start : span.end] for hit in hits for span in hit.highlights.words}
        assert spans == marked, query


def write_stemmed(*shots: Shot) -> None:
    """Write scenes whose words are stored as a publication stores them."""
    from db.lexicons import WITHOUT_LANGUAGE, lexicon_of

    write(*shots)

    def work(session: Any) -> None:
        for shot in shots:
            lexicon = lexicon_of(shot.language) if shot.language else WITHOUT_LANGUAGE
            session.execute(
                text(
                    "UPDATE scenes SET tsv = to_tsvector(CAST(:lexicon AS regconfig), :words) || to_tsvector('simple', :words),"
                    " screen_tsv = to_tsvector(CAST(:lexicon AS regconfig), :screen) || to_tsvector('simple', :screen)"
                    " WHERE scene_id = :scene"
                ),
                {"lexicon": lexicon, "words": shot.words, "screen": shot.screen, "scene": shot.id},
            )

    transact(work)


def ask(runtime: Runtime, **fields: Any) -> SearchAnswer:
    request: SearchScenes = parse(SearchScenes, {"user_id": "u", **fields})
    plan.check(request, runtime.settings)
    return answer.answer(request, runtime, plan.plan(request, runtime), {})


def test_answers_have_pages_to_the_last_hit_and_name_the_setting_that_ends_them(configure: Configure) -> None:
    fill()
    runtime = configure(SCENEFLEET_PROFILE="lite", FEATURE_SEMANTIC_SEARCH="false")
    for fields in (
        {"persons": ["ann"]},
        {"query": "rockets", "mode": "keyword"},
        {"languages": ["en"]},
        {"query": "rocket"},
    ):
        found, cursor = [], None
        while True:
            page = ask(runtime, limit=50, cursor=cursor, **fields)
            found += [hit.scene_id for hit in page.hits]
            assert page.truncated is None
            if (cursor := page.next_cursor) is None:
                break
        assert len(found) == len(set(found)) == MANY, fields
    with pytest.raises(InvalidRequest, match="query is missing"):
        ask(runtime)
    changed = runtime.settings.model_copy(update={"search_max_depth": 100, "search_candidates": 50})
    shallow = Runtime(Settings.model_validate(changed))
    first = ask(shallow, query="rocket", limit=50)
    second = ask(shallow, query="rocket", limit=50, cursor=first.next_cursor)
    third = (
        None
        if second.next_cursor is None
        else ask(shallow, query="rocket", limit=50, cursor=second.next_cursor)
    )
    assert (third or second).truncated == "SEARCH_MAX_DEPTH=100"
