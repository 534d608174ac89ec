"""What a search decides without a server: which requests make sense, cursors, the reranker's order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from db.search import Found
from shared.contracts import Coverage, SearchAnswer, SearchHit, SearchScenes, parse
from shared.errors import Conflict, InvalidRequest
from shared.settings import Settings
from worker.models.catalog import Catalog
from worker.runtime import Runtime
from worker.search import cursor, plan, rerank

SETTINGS = Settings()


def request(**fields: Any) -> SearchScenes:
    return parse(SearchScenes, {"user_id": "u", "query": "a cup", **fields})


def draft(*transcripts: str) -> SearchAnswer:
    coverage = Coverage(scenes=9, with_words=9, with_vectors=9, videos_in_work=0)
    place: Any = {"video_id": "v", "start_s": 0.0, "end_s": 1.0, "keyframe_keys": ()}
    hits = tuple(
        SearchHit(scene_id=str(uuid4()), idx=idx, transcript=transcript, score=1.0 - idx / 10, **place)
        for idx, transcript in enumerate(transcripts)
    )
    return SearchAnswer(query="a cup", mode="hybrid", model="m", hits=hits, coverage=coverage)


def test_persons_are_refused_when_faces_are_off() -> None:
    with pytest.raises(Conflict, match="FEATURE_FACE is off"):
        plan.check(request(persons=["p"]), Settings(FEATURE_FACE=False))


def test_the_weights_of_a_search_stand_before_the_settings() -> None:
    weights = plan.weigh(request(weights={"vision": 0.9, "text": 0.0}), SETTINGS)
    words = dict.fromkeys(("lexical", "keyword", "screen"), 0.2)
    assert weights == {"text": 0.0, "vision": 0.9, "people": 0.3, **words}
    assert plan.weigh(request(mode="keyword"), SETTINGS)["keyword"] == 1.0


def test_a_search_keeps_its_retrievers_when_another_model_becomes_active() -> None:
    runtime = Runtime(Settings(_env_file=None, profile="lite"))
    lite = runtime.catalog.for_profile("lite")
    weighing = lite["text"].model_copy(update={"name": "weighing", "provider": "bge-m3", "profiles": ()})
    runtime.catalog = Catalog([*lite.values(), weighing])
    active = {"text": weighing}
    runtime.active = SimpleNamespace(models=lambda: active)  # type: ignore[assignment]
    asked = request(mode="hybrid")
    before = plan.plan(asked, runtime)
    assert "lexical" in before.retrievers and before.calls["text"].payload["model"] == "weighing"
    active["text"] = lite["text"]
    assert "lexical" not in plan.plan(asked, runtime).retrievers
    page = plan.plan(asked, runtime, kept={"text": {"ok": {"model": "weighing"}}})
    assert page.retrievers == before.retrievers and not page.calls
    silent = {"text": {"error": "no answer in 5 s"}}
    assert "lexical" not in plan.plan(asked, runtime, kept=silent).retrievers


@pytest.mark.parametrize("place", [("v", 7, 0.1 + 0.2), ("v" * 64, 2**31 - 1, -0.12345678901234567e-300)])
def test_a_cursor_is_exact_and_good_for_its_search_only(place: tuple[str, int, float]) -> None:
    last = Found(uuid4(), *place, {})
    text = cursor.write_cursor(request(), last)
    assert cursor.read_cursor(request(cursor=text, limit=3)) == last.place
    with pytest.raises(InvalidRequest, match="belongs to another search"):
        cursor.read_cursor(request(cursor=text, video_ids=["v"]))


@pytest.mark.parametrize(
    "text", ["", "=", "W10", "bnVsbA", "eyJhIjoxfQ", "WzEsMiwzXQ", "WzEsIngiLDMsNF0", "\u0661", "{}"]
)
def test_a_forged_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is none of ours"):
        cursor.read_cursor(request(cursor=text))


def test_the_reranker_moves_what_it_can_read() -> None:
    found = draft("bad", "", "good", "fair")
    asked = request(rerank=3, limit=3)
    call = rerank.rerank_call(asked, found)
    assert call is not None and call.payload["documents"] == ["bad", "good"]
    scores = {"model": "r", "revision": "1", "scores": [0.1, 0.9]}
    answer = rerank.reranked(asked, SETTINGS, found, {"ok": scores})
    assert [(one.idx, one.rerank_score) for one in answer.hits] == [(2, 0.9), (1, None), (0, 0.1)]


def test_without_the_reranker_the_order_stays_and_the_answer_says_so() -> None:
    found = draft("bad", "good", "fair")
    answer = rerank.reranked(request(rerank=3, limit=2), SETTINGS, found, {"error": "it broke"})
    assert [one.idx for one in answer.hits] == [0, 1] and answer.degraded == {"rerank": "it broke"}


def test_fifty_long_transcripts_fit_the_rerankers_message() -> None:
    call = rerank.rerank_call(request(rerank=50), draft(*["語" * 5000] * 50))
    assert call is not None and len(call.payload["documents"]) == 50
    assert sum(len(document.encode()) for document in call.payload["documents"]) < 52_000
