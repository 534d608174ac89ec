"""The retrievers of a search on a real Postgres, with vectors and weights chosen so that the right order is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest.mock import create_autospec
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest
from sqlalchemy import func
from sqlalchemy.orm import Session

from db import search
from db.engine import reading, transact
from db.scenes import scene_id, write_screen_texts
from db.search import recall
from db.tables import Model, Person, Scene, ScenePerson, Video
from db.vectors import ModelRow, write_embeddings, write_lexical
from tests.support.figures import RecordFigure
from tests.support.tenants import DIM, make_models

pytestmark = pytest.mark.usefixtures("database")

VOCABULARY = 100
WEIGHTS = {"text": 0.5, "vision": 0.35, "lexical": 0.2, "keyword": 0.2, "screen": 0.2, "people": 0.3}
Unit = npt.NDArray[np.float32]


def unit(*values: float) -> Unit:
    vector = np.zeros(DIM, np.float32)
    vector[: len(values)] = values
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


@dataclass(kw_only=True)
class Shot:
    """A scene to be written."""

    video: str = "v"
    idx: int = 0
    user: str = "u"
    words: str = ""
    screen: str = ""
    language: str | None = "en"
    text: Unit | None = None
    #: A vector per keyframe.
    vision: list[Unit] = field(default_factory=list)
    lexical: dict[int, float] = field(default_factory=dict)
    people: dict[str, float] = field(default_factory=dict)
    live: bool = True
    #: The run whose outputs are published; rows are always written by run 1.
    run: int = 1
    indexed: str = "2026-01-01T00:00:00Z"

    @property
    def id(self) -> UUID:
        return scene_id(self.video, 1, self.idx)


def lexemes(source: str) -> Any:
    return func.to_tsvector("english", source).op("||")(func.to_tsvector("simple", source))


def write(*shots: Shot) -> dict[str, ModelRow]:
    """Write the scenes; returns the models of their vectors, by family."""
    models = make_models({family: (f"tiny-{family}", "1") for family in ("text", "vision")})

    def work(session: Session) -> None:
        for shot in shots:
            user, scene = shot.user, shot.id
            if session.get(Video, shot.video) is None:
                published = {"run": 1, "published_run": 1, "state": "indexed", "indexed_at": shot.indexed}
                session.add(Video(video_id=shot.video, user_id=user, storage_key="k", **published))
                session.flush()
            keyframes = [
                {"ordinal": ordinal, "key": f"keyframes/{user}/{shot.idx}.{ordinal}.jpg", "ts_s": 0.0, "width": 8, "height": 8}
                for ordinal in range(len(shot.vision))
            ]  # fmt: skip
            session.add(
                Scene(
                    scene_id=scene, video_id=shot.video, user_id=user, split_version=1, idx=shot.idx,
                    start_s=10.0 * shot.idx, end_s=10.0 * shot.idx + 10, kind="cut", keyframes=keyframes, live=shot.live,
                    transcript=shot.words, language=shot.language, screen_text=shot.screen,
                    tsv=lexemes(shot.words), screen_tsv=lexemes(shot.screen),
                    text_run=shot.run, vision_run=shot.run, face_run=shot.run, ocr_run=shot.run,
                )
            )  # fmt: skip
            session.flush()
            of_text = [] if shot.text is None else [(scene, 0, shot.text)]
            write_embeddings(session, models["text"], 1, user, [scene], of_text)
            of_vision = [(scene, ordinal, vector) for ordinal, vector in enumerate(shot.vision)]
            write_embeddings(session, models["vision"], 1, user, [scene], of_vision)
            if shot.lexical:
                write_lexical(session, models["text"], 1, user, [scene], [(scene, shot.lexical)], VOCABULARY)
            for person, confidence in shot.people.items():
                session.merge(Person(person_id=person, user_id=user, external_id=person, name=person))
                session.flush()
                seen = {"scene_id": scene, "person_id": person, "user_id": user, "frame_count": 3}
                session.add(ScenePerson(**seen, confidence=confidence))

    transact(work)
    return models


def find(retrievers: list[Any], *, user: str = "u", limit: int = 50, exact_rows: int = 1000, min_score: float | None = None,
         after: search.Place | None = None, weights: dict[str, float] = WEIGHTS, **scope: Any) -> list[search.Found]:  # fmt: skip
    with reading() as session:
        found = search.find(
            session, search.Scope(user_id=user, **scope), retrievers, weights, search.Tuning(exact_rows=exact_rows, ef_search=40),
            limit=limit, min_score=min_score, after=after,
        )  # fmt: skip
    return list(found.hits)


def words(query: str, name: Any = "keyword") -> search.Words:
    with reading() as session:
        return search.Words(name, search.read_words(session, query))


def near(models: dict[str, ModelRow], family: Any = "text") -> search.Vector:
    return search.Vector(family, models[family], unit(1))


def ids(found: list[search.Found]) -> list[int]:
    return [hit.idx for hit in found]


EXACT_AND_INDEXED = pytest.mark.parametrize("exact_rows", [1000, 0], ids=["exact", "index"])


@EXACT_AND_INDEXED
def test_the_score_is_the_weighted_sum_of_every_retriever(exact_rows: int) -> None:
    models = write(
        Shot(idx=0, text=unit(1), vision=[unit(0, 1)], words="a cat"),
        Shot(idx=1, text=unit(1, 1), vision=[unit(1, 1), unit(1)], people={"anna": 0.8}),
        Shot(idx=2, text=unit(-1), vision=[unit(1, 0.5)], screen="CAT SHOW"),
        Shot(idx=3, vision=[unit(-1)]),
    )
    people = search.People(("anna",), proposes=True)
    retrievers = [near(models), near(models, "vision"), words("cat"), words("cat", "screen"), people]
    found = find(retrievers, exact_rows=exact_rows)
    assert ids(found) == [1, 0, 2, 3]
    scores = {hit.idx: hit.score for hit in found}
    assert scores[0] == pytest.approx(0.5 * 1 + 0.2 * 0.5, abs=2e-3)
    assert scores[1] == pytest.approx(0.5 * 0.7071 + 0.35 * 1 + 0.3 * 0.8, abs=2e-3)
    assert scores[2] == pytest.approx(0.35 * 0.8944 + 0.2 * 0.5, abs=2e-3)
    assert scores[3] == 0, "opposites and nothing to compare count as nothing alike"
    assert found[0].matches["vision"].ordinal == 1, "the best of its keyframes"
    assert ids(find(retrievers, exact_rows=exact_rows, min_score=0.5)) == [1, 0]
    assert find(retrievers, exact_rows=exact_rows, min_score=1.0) == []


@EXACT_AND_INDEXED
def test_a_scene_that_only_one_retriever_knows_is_compared_on_all(exact_rows: int) -> None:
    """What a retriever does not put forward itself still counts: candidates of the other are compared exactly."""
    similar = [Shot(idx=idx, text=unit(1, 0.01 * idx)) for idx in range(12)]
    models = write(*similar, Shot(idx=20, words="zebra", text=unit(1, 3)))
    retrievers: list[Any] = [near(models), words("zebra")]
    tuning = search.Tuning(exact_rows=exact_rows, candidates=10, depth=10)
    with reading() as session:
        found = search.find(session, search.Scope(user_id="u"), retrievers, WEIGHTS, tuning, limit=50)
    (zebra,) = [hit for hit in found.hits if hit.idx == 20]
    assert zebra.matches["text"].similarity == pytest.approx(0.3162, abs=2e-3)
    assert len(found.hits) == 11 and found.more is False and found.truncated


@EXACT_AND_INDEXED
def test_many_keyframes_of_one_scene_leave_room_for_others(exact_rows: int) -> None:
    models = write(
        Shot(idx=0, vision=[unit(1, 0.001 * n) for n in range(40)]),
        *(Shot(idx=idx, vision=[unit(1, 0.1 * idx)]) for idx in range(1, 10)),
    )
    retriever = near(models, "vision")
    assert ids(find([retriever], exact_rows=exact_rows)) == list(range(10))
    with reading() as session:
        scope = search.Scope(user_id="u")
        found = retriever.nearest(session, scope, 5, 40)
        assert list(found) == list(retriever.nearest_exactly(session, scope, 5)) and len(found) == 5
        assert len(retriever.nearest(session, scope, 50, 40)) == 10


def test_lexical_similarity_is_a_share_of_the_querys_own_weight() -> None:
    models = write(
        Shot(idx=0, lexical={5: 0.4, 7: 0.3}),
        Shot(idx=1, lexical={5: 0.2, 9: 0.9}),
        Shot(idx=2, lexical={9: 0.9}),
        Shot(idx=3, lexical={0: 5.0, 5: 4.0}),
    )
    found = find([search.Lexical(models["text"], {5: 0.4, 7: 0.3})], weights={"lexical": 1.0})
    assert {hit.idx: round(hit.score, 3) for hit in found} == {0: 1.0, 1: 0.32, 3: 1.0}
    assert find([search.Lexical(models["text"], {VOCABULARY + 5: 1.0})]) == [], "of another vocabulary"


SCENES = (
    Shot(video="a", idx=0, text=unit(1), language="en", people={"anna": 0.9}),
    Shot(video="a", idx=1, text=unit(1), language="de", people={"anna": 0.6, "bert": 0.7}),
    Shot(video="b", idx=2, text=unit(1), language="en", people={"bert": 0.8}, indexed="2026-06-01T00:00:00Z"),
    Shot(video="b", idx=3, text=unit(1), language=None, indexed="2026-06-01T00:00:00Z"),
    Shot(video="c", idx=4, user="other", text=unit(1), language="en", people={"carl": 0.9}),
    Shot(video="b", idx=5, text=unit(1), live=False, people={"anna": 0.9}),
    Shot(video="b", idx=6, text=unit(1), run=2),
)


#: Filters, and the scenes that they leave.
FILTERS: list[tuple[dict[str, Any], set[int]]] = [
    ({}, {0, 1, 2, 3}),
    ({"video_ids": ("a",)}, {0, 1}),
    ({"video_ids": ("c", "none")}, set()),
    ({"languages": ("en",)}, {0, 2}),
    ({"languages": ("en", "de")}, {0, 1, 2}),
    ({"from_s": 10.0}, {1, 2, 3}),
    ({"from_s": 9.9, "to_s": 20.0}, {0, 1}),
    ({"to_s": 0.0}, set()),
    ({"indexed_from": "2026-06-01T00:00:00Z"}, {2, 3}),
    ({"indexed_to": "2026-06-01T00:00:00Z"}, {0, 1}),
    ({"persons": ("anna",)}, {0, 1}),
    ({"persons": ("anna", "bert")}, {0, 1, 2}),
    ({"persons": ("anna", "bert"), "persons_match": "all"}, {1}),
    ({"persons": ("anna", "bert", "anna"), "persons_match": "all"}, {1}),
    ({"persons": ("anna",), "persons_match": "prefer"}, {0, 1, 2, 3}),
    ({"persons": ("carl",)}, set()),
    ({"persons": ("nobody",)}, set()),
    ({"persons": ("bert",), "video_ids": ("a",)}, {1}),
    ({"without": scene_id("a", 1, 0)}, {1, 2, 3}),
]


@EXACT_AND_INDEXED
def test_a_filter_leaves_exactly_what_fits(exact_rows: int) -> None:
    models = write(*SCENES)
    for scope, expected in FILTERS:
        found = find([near(models)], exact_rows=exact_rows, **scope)
        assert sorted(ids(found)) == sorted(expected), scope
        if scope.get("persons_match") != "prefer":
            with reading() as session:
                covered = search.cover(session, search.Scope(user_id="u", **scope), {"text": models["text"]})
            # Scene 6 is in scope, with vectors of a run that is not the published one.
            assert covered.retrievers["text"] == len(expected)
            assert covered.scenes - covered.retrievers["text"] in (0, 1)


def test_a_person_raises_the_score_by_how_sure_the_match_is() -> None:
    models = write(*SCENES)
    retrievers = [near(models), search.People(("anna", "bert"), proposes=True)]
    found = find(retrievers, persons=("anna", "bert"), persons_match="prefer")
    boosts = {hit.idx: hit.score - 0.5 * hit.matches["text"].similarity for hit in found}
    assert {idx: round(boost, 3) for idx, boost in boosts.items()} == {0: 0.135, 1: 0.195, 2: 0.12, 3: 0.0}
    alone = find([search.People(("anna",), proposes=True)], persons=("anna",))
    assert [(hit.idx, round(hit.score, 3)) for hit in alone] == [(0, 0.27), (1, 0.18)]


def test_equal_scores_keep_one_order_over_pages() -> None:
    models = write(*(Shot(video=f"v{idx % 3}", idx=idx, text=unit(1)) for idx in range(20)))
    retrievers = [near(models)]
    whole = find(retrievers)
    assert [(hit.video_id, hit.idx) for hit in whole] == sorted((hit.video_id, hit.idx) for hit in whole)
    pages: list[search.Found] = []
    while part := find(retrievers, limit=7, after=pages[-1].place if pages else None):
        pages += part
    assert pages == whole


def test_what_was_found_is_marked() -> None:
    said = {
        "words": "The rockets fly. ROCKET <b>rocket</b> science; sprocket",
        "screen": "Rocket launch\nno entry",
    }
    write(Shot(**said, vision=[unit(1)], people={"anna": 0.9}))

    def more(session: Session) -> None:
        session.add(Model(model_id=99, name="ocr", revision="1", family="ocr"))
        session.flush()
        seen = [{"ordinal": 0, "ts_s": 0, "box": [1, 2, 3, 4]}]
        lines = [{"text": line, "score": 0.9, "sightings": seen} for line in ("no entry", "Rocket launch")]
        scene = scene_id("v", 1, 0)
        write_screen_texts(session, 99, 1, "u", [scene], {scene: lines})

    transact(more)
    retriever = words("rocket")
    scope = search.Scope(user_id="u", persons=("anna",))
    with reading() as session:
        found = search.find(session, scope, [retriever], WEIGHTS, search.Tuning(), limit=5)
        (hit,) = search.describe(session, scope, found.hits, retriever.queries, "https://store/{}".format)
    marked = [hit.transcript[span.start : span.end] for span in hit.highlights.words]
    assert marked == ["rockets", "ROCKET", "rocket"]
    (line,) = hit.highlights.screen
    assert (line.text, line.ordinal, line.box) == ("Rocket launch", 0, (1, 2, 3, 4))
    (person,) = hit.highlights.people
    assert (person.person_id, person.confidence, person.frame_count, person.box) == ("anna", 0.9, 3, None)
    assert hit.keyframe_urls == ("https://store/keyframes/u/0.0.jpg",)


@EXACT_AND_INDEXED
def test_a_scene_as_the_query(exact_rows: int) -> None:
    models = write(
        Shot(idx=0, text=unit(1), vision=[unit(1), unit(0, 1)]),
        Shot(idx=1, vision=[unit(1, 1)]),
        Shot(video="w", idx=2, user="other", text=unit(1)),
    )
    with reading() as session:
        found = search.exemplar(session, "u", scene_id("v", 1, 0), models)
        assert found is not None
        assert found["vision"] == pytest.approx(unit(1, 1), abs=1e-3)
        silent = search.exemplar(session, "u", scene_id("v", 1, 1), models)
        assert silent is not None and set(silent) == {"vision"}
        assert search.exemplar(session, "u", scene_id("w", 1, 2), models) is None, "another user's"
    retrievers = [search.Vector("vision", models["vision"], found["vision"])]
    assert ids(find(retrievers, exact_rows=exact_rows, without=scene_id("v", 1, 0))) == [1]


def test_a_small_scope_is_compared_exactly_and_a_large_one_by_the_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = write(*SCENES, Shot(video="d", idx=7, vision=[unit(1), unit(1, 1)], people={"anna": 0.9}))
    watched = create_autospec(search.Vector.nearest, side_effect=search.Vector.nearest)
    monkeypatch.setattr(search.Vector, "nearest", watched)
    of_text, of_sight = near(models), near(models, "vision")
    with reading() as session:
        for retriever, videos, exact_rows, indexed in [
            (of_text, (), 6, False),
            (of_text, (), 5, True),
            (of_text, ("a",), 2, False),
            (of_text, ("a",), 1, True),
            # Counted by keyframes: one scene with two vectors.
            (of_sight, ("d",), 2, False),
            (of_sight, ("d",), 1, True),
            (of_sight, ("none",), 0, False),
        ]:
            watched.reset_mock()
            scope = search.Scope(user_id="u", video_ids=videos)
            found = retriever.candidates(session, scope, search.Tuning(exact_rows=exact_rows, candidates=10))
            assert watched.called is indexed, (retriever.name, videos, exact_rows)
            assert found == retriever.nearest_exactly(session, scope, 10)


def test_recall_is_measured_by_how_near_the_found_are(record_figure: RecordFigure) -> None:
    """Scenes that say the same are equally right: which ten of them come first is chance."""
    rng = np.random.default_rng(3)
    different = [
        Shot(idx=idx, text=unit(*rng.normal(size=DIM)), vision=[unit(*rng.normal(size=DIM))])
        for idx in range(30)
    ]
    write(*different, *(Shot(idx=idx, text=unit(1), vision=[unit(1)]) for idx in range(30, 50)))
    with reading() as session:
        measured = [
            recall.measure(session, "u", model, count, recall.sample(session, "u", model, 20), ef_search=100)
            for model, count in recall.stored_models(session, "u")
        ]
        assert recall.stored_models(session, "other") == []
    assert [one.family for one in measured] == ["text", "vision"]
    for one in measured:
        assert (one.vectors, one.queries, one.at) == (50, 20, 10)
        record_figure(f"recall@{one.at} of {one.family} by its index", f"{one.recall:.3f}")
    assert all(one.recall >= 0.99 and one.index_p95_ms > 0 for one in measured)
