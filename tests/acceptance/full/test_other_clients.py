"""Reranking and pictures at the drop-in addresses, by a fleet of profile `full` on tiny checkpoints."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, cast

import cohere
import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.checkpoints import siglip
from tests.contracts.candidates import sample_picture
from tests.support.api import Api
from tests.support.fleet import Fleet
from tests.support.pictures import encoded
from worker.models.cache import build
from worker.models.spec import ModelSpec
from worker.models.text import Reranker
from worker.models.vision import VisionEmbedder

DOCUMENTS = [f"the old man drinks coffee {number}" for number in range(70)]
QUERY = "a hot drink in the morning"


@pytest.fixture(scope="module")
def api(fleet: Fleet) -> Iterator[Api]:
    found = Api(fleet)
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def scores(specs: dict[str, ModelSpec]) -> list[float]:
    return cast(Reranker, build(specs["rerank"])).rerank(QUERY, DOCUMENTS).tolist()


def test_cohere_s_clients_rerank(api: Api, specs: dict[str, ModelSpec], scores: list[float]) -> None:
    best = sorted(range(len(scores)), key=lambda index: -scores[index])
    model = specs["rerank"].name
    second = cohere.ClientV2(api_key="none", base_url=api.url)
    found = second.rerank(model=model, query=QUERY, documents=DOCUMENTS)
    assert len(found.results) == 70
    by_index = {result.index: result.relevance_score for result in found.results}
    np.testing.assert_allclose([by_index[index] for index in range(70)], scores, atol=1e-5)
    listed = [result.relevance_score for result in found.results]
    assert listed == sorted(listed, reverse=True)
    first = cohere.Client(api_key="none", base_url=api.url)
    top: Any = first.rerank(model=model, query=QUERY, documents=DOCUMENTS, top_n=3, return_documents=True)
    assert [result.relevance_score for result in top.results] == pytest.approx(
        [scores[i] for i in best[:3]], abs=1e-5
    )
    assert all(result.document.text == DOCUMENTS[result.index] for result in top.results)
    with pytest.raises(cohere.NotFoundError, match=model):
        second.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.BadRequestError):
        second.rerank(model=model, query="", documents=DOCUMENTS)


def test_clients_of_jina_and_tei_rerank(api: Api, specs: dict[str, ModelSpec], scores: list[float]) -> None:
    key = {"Authorization": "Bearer none"}
    body = {"model": specs["rerank"].name, "query": QUERY, "documents": DOCUMENTS[:5], "top_n": 2}
    jina = httpx.post(f"{api.url}/v1/rerank", headers=key, json=body, timeout=60).json()
    assert len(jina["results"]) == 2 and jina["usage"] == {"total_tokens": 0}
    assert all(found["document"]["text"] == DOCUMENTS[found["index"]] for found in jina["results"])
    tei = httpx.post(f"{api.url}/rerank", json={"query": QUERY, "texts": DOCUMENTS[:5]}, timeout=60).json()
    assert {found["index"]: found["score"] for found in tei} == {
        index: pytest.approx(scores[index], abs=1e-5) for index in range(5)
    }


def test_openai_s_client_embeds_pictures_beside_texts(
    api: Api, fleet: Fleet, specs: dict[str, ModelSpec]
) -> None:
    pictures = [sample_picture(1.0), sample_picture(20.0)]
    files = [encoded(Image.fromarray(picture), "PNG") for picture in pictures]
    given: Any = [{"image": "data:image/png;base64," + base64.b64encode(file).decode()} for file in files]
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(
        model=specs["vision"].name, input=[given[0], "a cup of coffee", given[1]]
    )
    model = cast(VisionEmbedder, build(specs["vision"]))
    expected = [*model.embed_images(pictures), *model.embed_texts(["a cup of coffee"])]
    vectors = [item.embedding for item in found.data]
    assert np.shape(vectors) == (3, siglip.DIM)
    np.testing.assert_allclose([vectors[0], vectors[2], vectors[1]], expected, atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="embeds texts only"):
        client.embeddings.create(model=specs["text"].name, input=given)
    broken = base64.b64encode(files[0][:200]).decode()
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=specs["vision"].name, input=cast(Any, [{"image": broken}]))
    assert list(fleet.storage.list("tmp", "queries/local/")) == []
    assert list(fleet.storage.list("uploads", "uploads/local/queries/")) == []
