"""Search, by an address that can be shared or by a body."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from api import problems
from api.bodies import json_body
from api.parameters import WHOLE_ID, Ask, Who
from shared import routing
from shared.contracts import (
    MAX_QUERY_CHARS,
    Moment,
    SearchAnswer,
    SearchMode,
    SearchRetriever,
    SearchScenes,
)

router = APIRouter(tags=["search"], responses=problems.responses())
Search = json_body(SearchScenes, "user_id", name="Search")
Ids = list[Annotated[str, Field(pattern=WHOLE_ID)]]


class SearchQuery(BaseModel):
    """The fields of a search that an address can hold; `weight_text=1` stands for `weights: {text: 1}`."""

    model_config = ConfigDict(extra="forbid")

    q: str | None = Field(
        None, min_length=1, max_length=MAX_QUERY_CHARS, description="The words, `query` of a body"
    )
    mode: SearchMode = "hybrid"
    like_scene: UUID | None = None
    image_key: str | None = Field(None, max_length=512)
    min_score: float | None = Field(None, ge=0, allow_inf_nan=False)
    limit: int | None = Field(None, ge=1)
    cursor: str | None = Field(None, max_length=400)
    text_model: str | None = None
    vision_model: str | None = None
    rerank: int | None = Field(None, ge=1, le=50)
    video_ids: Ids = Field([], max_length=100)
    persons: Ids = Field([], max_length=20)
    persons_match: str = Field("any", pattern="^(any|all|prefer)$")
    from_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    to_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    languages: list[Annotated[str, Field(min_length=2, max_length=16)]] = Field([], max_length=20)
    indexed_from: Moment | None = None
    indexed_to: Moment | None = None
    weight_text: float | None = Field(None, ge=0, le=1000)
    weight_vision: float | None = Field(None, ge=0, le=1000)
    weight_lexical: float | None = Field(None, ge=0, le=1000)
    weight_keyword: float | None = Field(None, ge=0, le=1000)
    weight_screen: float | None = Field(None, ge=0, le=1000)
    weight_people: float | None = Field(None, ge=0, le=1000)

    def as_request(self) -> dict[str, Any]:
        """The fields of ``SearchScenes``."""
        given = self.model_dump(mode="json", exclude_none=True)
        weights = {name: given.pop(f"weight_{name}") for name in WEIGHTS if f"weight_{name}" in given}
        if "q" in given:
            given["query"] = given.pop("q")
        return {**given, "weights": weights}


WEIGHTS: tuple[SearchRetriever, ...] = ("text", "vision", "lexical", "keyword", "screen", "people")


@router.get("/search", responses=problems.responses(404, 409))
async def search(query: Annotated[SearchQuery, Query()], who: Who, ask: Ask) -> SearchAnswer:
    """Return the published scenes that match, best first. Lists are repeated: `persons=a&persons=b`."""
    kwargs = {**query.as_request(), "user_id": who.user_id}
    return await ask.ask(routing.SEARCH_SCENES, SearchScenes, kwargs, SearchAnswer)


@router.post("/search", responses=problems.responses(404, 409, 413, 415), openapi_extra=Search.extra)
async def search_by_body(
    who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(Search.read)]
) -> SearchAnswer:
    """Return the published scenes that match, best first."""
    return await ask.ask(routing.SEARCH_SCENES, SearchScenes, {**body, "user_id": who.user_id}, SearchAnswer)
