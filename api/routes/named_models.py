"""Lists the models that callers may name, as OpenAI's clients ask for them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from api import dialects
from api.parameters import Who
from api.served_models import ServedModels, served_models
from shared.nodes import HeldModel

router = APIRouter(tags=["drop-in"], responses=dialects.responses("openai"))
Served = Annotated[ServedModels, Depends(served_models)]
#: Kinds that a request of this API can name.
KINDS = ("text", "vision", "rerank", "asr")


class NamedModel(BaseModel):
    """A model that callers may name."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Always 0: it is not known")
    owned_by: str = "scenefleet"
    kind: str = Field(description="What it is for: `text`, `vision`, `rerank` or `asr`")
    dimensions: int | None = Field(description="Length of its vectors; null: it makes none")


class NamedModels(BaseModel):
    """The models that callers may name."""

    object: Literal["list"] = "list"
    data: list[NamedModel]


@router.get("/v1/models")
async def list_named_models(who: Who, served: Served) -> NamedModels:
    """List the models that callers may name."""
    return NamedModels(data=[_named(model) for model in await served.list() if model.kind in KINDS])


# Described here: FastAPI would describe its own form of error with a parameter.
_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}


@router.get("/v1/models/{model}", openapi_extra={"parameters": [_MODEL]})
async def get_named_model(request: Request, who: Who, served: Served) -> NamedModel:
    """Return one model that callers may name."""
    return _named(await served.find(request.path_params["model"], *KINDS))


def _named(model: HeldModel) -> NamedModel:
    return NamedModel(id=model.name, kind=model.kind, dimensions=model.dim)
