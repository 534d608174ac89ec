"""Requests of the text family by bare task name, answered by a node of profile `full` on tiny checkpoints."""

from __future__ import annotations

import re
from typing import Any, cast

import numpy as np
import pytest
from celery import Celery

from shared import errors
from tests.checkpoints import siglip
from tests.support.fleet import Fleet
from worker.models.cache import build
from worker.models.spec import ModelSpec
from worker.models.text import Reranker, TextEmbedder

TEXTS = ["a cup of coffee", "", "the red bus is on the road", "the old man drinks coffee and coffee"]
QUERY = "a hot drink in the morning"


@pytest.fixture(scope="module")
def outside(fleet: Fleet) -> Celery:
    """A program that has Celery and nothing of ours."""
    return Celery("outside", broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False)


def ask(outside: Celery, name: str, **payload: Any) -> Any:
    return outside.send_task(name, kwargs=payload, queue="text.online").get(timeout=60)


#: What every computed answer has.
COMPUTED = {"device", "node", "timings", "cached"}


def refusal(outside: Celery, name: str, **payload: Any) -> tuple[str, str]:
    """Class and sentence of the error a request is answered with."""
    result = outside.send_task(name, kwargs=payload, queue="text.online")
    answer = result.get(timeout=60, propagate=False)
    assert result.state == "FAILURE", answer
    return type(answer).__name__, str(answer)


def test_texts_become_vectors_as_before(outside: Celery, specs: dict[str, ModelSpec]) -> None:
    answer = ask(outside, "tasks.text.embed", texts=TEXTS)
    assert answer.keys() == {"model", "revision", "dim", "vectors", "tokens", *COMPUTED}
    told = (answer["model"], answer["revision"], answer["dim"])
    assert told == ("tiny-bge-m3", "made-for-tests", siglip.DIM)
    model = cast(TextEmbedder, build(specs["text"]))
    np.testing.assert_allclose(answer["vectors"], model.embed(TEXTS), atol=1e-5)


def test_words_are_weighed_when_asked_for(outside: Celery, fleet: Fleet, specs: dict[str, ModelSpec]) -> None:
    answer = ask(outside, "tasks.text.embed", texts=TEXTS, lexical=True)
    expected = cast(TextEmbedder, build(specs["text"])).encode(TEXTS).lexical
    assert expected is not None and len(answer["lexical"]) == len(TEXTS)
    for found, weights in zip(answer["lexical"], expected, strict=True):
        assert found == {str(token): pytest.approx(weight, abs=1e-5) for token, weight in weights.items()}
    assert answer["lexical"][0] and answer["lexical"][1] == {}
    typed = fleet.client.embed_texts(TEXTS, lexical=True)
    assert [dict(weights) for weights in typed.lexical or ()] == answer["lexical"]
    assert typed.vectors == tuple(tuple(vector) for vector in answer["vectors"])
    assert fleet.client.embed_texts(TEXTS).lexical is None


def test_documents_are_scored_and_the_model_is_loaded_by_the_first_request(
    outside: Celery, fleet: Fleet, specs: dict[str, ModelSpec]
) -> None:
    log = fleet.log("text")
    assert "tiny-bge-m3" in log and "tiny-bge-reranker" not in log
    answer = ask(outside, "tasks.text.rerank", query=QUERY, documents=TEXTS)
    assert answer.keys() == {"model", "revision", "scores", *COMPUTED}
    assert (answer["model"], answer["revision"]) == ("tiny-bge-reranker", "made-for-tests")
    model = cast(Reranker, build(specs["rerank"]))
    np.testing.assert_allclose(answer["scores"], model.rerank(QUERY, TEXTS), atol=1e-5)
    assert "tiny-bge-reranker" in fleet.log("text")
    assert list(fleet.client.rerank(QUERY, TEXTS).scores) == answer["scores"]
    assert fleet.client.rerank(QUERY, []).scores == ()
    # Both fit: the first stays.
    assert ask(outside, "tasks.text.embed", texts=["a"])["model"] == "tiny-bge-m3"
    assert "model evicted" not in fleet.log("text")


def test_wrong_requests_are_refused_by_name(outside: Celery, fleet: Fleet) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("rerank", {"query": QUERY}, "documents is missing: send it$"),
        ("rerank", {"query": QUERY, "documents": ["a"] * 1001}, ".*at most 1000"),
        ("rerank", {"query": "", "documents": []}, "query=''"),
        ("embed", {"texts": ["a"], "lexical": "yes"}, "lexical='yes'"),
    ]
    for task, payload, expected in wrong:
        kind, said = refusal(outside, f"tasks.text.{task}", **payload)
        assert kind == "InvalidRequest" and re.match(expected, said), said
    with pytest.raises(errors.InvalidRequest, match="at most 1000"):
        fleet.client.rerank(QUERY, ["a"] * 1001)


def test_the_longest_request_is_answered(fleet: Fleet) -> None:
    documents = ["word " * 150] * 64
    scores = fleet.client.rerank("q" * 1000, documents).scores
    assert len(scores) == 64 and all(0 <= score <= 1 for score in scores)
    answer = fleet.client.embed_texts(["a long text " * 80] * 64, lexical=True)
    assert len(answer.vectors) == len(answer.lexical or ()) == 64
