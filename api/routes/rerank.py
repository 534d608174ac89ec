"""Scores documents for a query, as the clients of Cohere, Jina and Text Embeddings Inference (TEI) ask for it."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from api import dialects
from api.asking import Asking
from api.batches import MAX_ITEMS, Batches
from api.bodies import PartBody
from api.dialects import InvalidParameter
from api.parameters import Ask, Who
from api.routes.embeddings import MAX_BYTES, ModelField, Served
from shared.contracts import MAX_QUERY_CHARS
from shared.contracts.base import Part

router = APIRouter(tags=["drop-in"])
Query = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]


class DocumentText(Part):
    """A document as an object."""

    text: str


class RankRequest(Part):
    """A query and the documents to sort by how well they answer it."""

    model: ModelField
    query: Query
    documents: list[str | DocumentText] = Field(min_length=1, max_length=MAX_ITEMS)
    top_n: int | None = Field(None, ge=1, description="How many results to return; null: all")
    return_documents: bool | None = Field(
        None, description="Whether results contain their document; default: with `/v1/rerank` only"
    )
    max_tokens_per_doc: int | None = Field(None, description="Without effect: long documents are cut")
    max_chunks_per_doc: int | None = Field(None, description="Without effect: long documents are cut")
    priority: int | None = Field(None, description="Without effect")
    truncation: bool | None = Field(None, description="Without effect: long documents are cut")


class RankResult(BaseModel):
    """A document of the request and its score."""

    index: int
    relevance_score: float = Field(description="0..1, higher is better")
    document: DocumentText | None = None


class RankUsage(BaseModel):
    """Always 0: it is not counted."""

    total_tokens: int = 0


class Ranking(BaseModel):
    """The documents, the best first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RankResult]
    usage: RankUsage = RankUsage()
    meta: dict[str, Any]


_Rank = PartBody(RankRequest, MAX_BYTES)
#: Of both addresses.
_RERANK: dict[str, Any] = {
    "response_model_exclude_none": True,
    "responses": dialects.responses("cohere"),
    "openapi_extra": _Rank.extra,
}


@router.post("/v2/rerank", **_RERANK)
@router.post("/v1/rerank", name="rerank_v1", **_RERANK)
async def rerank(
    request: Request, who: Who, ask: Ask, served: Served, body: Annotated[RankRequest, Depends(_Rank.read)]
) -> Ranking:
    """Sort documents by how well they answer a query."""
    documents = [given if isinstance(given, str) else given.text for given in body.documents]
    model, ranked = await _rank(
        request, who.user_id, ask, served, body.model, body.query, documents, "documents"
    )
    version = request.url.path[2:3]
    shown = version == "1" if body.return_documents is None else body.return_documents
    return Ranking(
        id=str(uuid.uuid4()),
        model=model,
        results=[
            RankResult(
                index=index,
                relevance_score=score,
                document=DocumentText(text=documents[index]) if shown else None,
            )
            for score, index in ranked[: body.top_n]
        ],
        meta={"api_version": {"version": version}},
    )


class TEIRankRequest(Part):
    """A query and the texts to sort by how well they answer it."""

    query: Query
    texts: list[str] = Field(min_length=1, max_length=MAX_ITEMS)
    raw_scores: bool = Field(False, description="Only false: scores are 0..1")
    return_text: bool = False
    truncate: bool | None = Field(None, description="Without effect: long texts are cut at the end")
    truncation_direction: Literal["Right", "right"] = "Right"


class TEIRank(BaseModel):
    """A text of the request and its score."""

    index: int
    score: float = Field(description="0..1, higher is better")
    text: str | None = None


_TEIRank = PartBody(TEIRankRequest, MAX_BYTES)


@router.post(
    "/rerank",
    response_model_exclude_none=True,
    responses=dialects.responses("tei"),
    openapi_extra=_TEIRank.extra,
)
async def rerank_as_tei(
    request: Request,
    who: Who,
    ask: Ask,
    served: Served,
    body: Annotated[TEIRankRequest, Depends(_TEIRank.read)],
) -> list[TEIRank]:
    """Sort texts by how well they answer a query, with the active model."""
    if body.raw_scores:
        raise InvalidParameter(
            "raw_scores=true is not supported: leave it out, scores are 0..1", "raw_scores"
        )
    _, ranked = await _rank(request, who.user_id, ask, served, None, body.query, body.texts, "texts")
    return [
        TEIRank(index=index, score=score, text=body.texts[index] if body.return_text else None)
        for score, index in ranked
    ]


async def _rank(
    request: Request,
    user_id: str,
    ask: Asking,
    served: Served,
    model: str | None,
    query: str,
    documents: list[str],
    param: str,
) -> tuple[str, list[tuple[float, int]]]:
    """The model, and score and index of each document, the best first; equal ones in their order."""
    found = await served.find(model, "rerank")
    scores = await Batches(ask, request.app.state.uploads, user_id).rerank(found, query, documents, param)
    return found.name, sorted(
        zip(scores, range(len(scores)), strict=True), key=lambda pair: (-pair[0], pair[1])
    )
