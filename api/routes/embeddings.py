"""Embeds texts and pictures, as the clients of OpenAI, Jina, Cohere and Text Embeddings Inference (TEI) ask for it."""

from __future__ import annotations

import base64
import json
import math
import struct
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, WithJsonSchema
from starlette.concurrency import run_in_threadpool as in_thread

from api import dialects
from api.batches import MAX_ITEMS, Batches, Picture, read_picture
from api.bodies import PartBody
from api.dialects import InvalidParameter
from api.parameters import Ask, Who
from api.served_models import ServedModels, served_models
from shared.contracts.base import Part
from shared.nodes import HeldModel

router = APIRouter(tags=["drop-in"])
Served = Annotated[ServedModels, Depends(served_models)]

#: Above 1,000 long texts; several pictures.
MAX_BYTES = 16 * 2**20
Encoding = Literal["float", "base64"]
GivenText = Annotated[str, Field(min_length=1)]
ModelField = Annotated[str, Field(min_length=1, max_length=200)]
_ITEM = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}},
        {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "minLength": 1}},
        },
    ]
}
Input = Annotated[
    Any,
    WithJsonSchema({"anyOf": [*_ITEM["anyOf"], {"type": "array", "items": _ITEM, "minItems": 1, "maxItems": MAX_ITEMS}]}),
]  # fmt: skip
_TEXTS = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_ITEMS}
TextInput = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _TEXTS]})]


class EmbeddingRequest(Part):
    """What to embed: a text, or a list of texts, `{"text": ...}` and `{"image": Base64}`."""

    model: ModelField
    input: Input
    encoding_format: Encoding = "float"
    dimensions: int | None = Field(None, description="Only the length that the model has")
    user: str | None = Field(None, description="Without effect")
    embedding_type: Encoding | None = Field(None, description="Jina's name of `encoding_format`")
    normalized: Literal[True] = True
    task: str | None = Field(None, description="Without effect")
    truncate: bool | None = Field(None, description="Without effect: long texts are cut")


class Embedding(BaseModel):
    """The vector of an input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or Base64 of little-endian float32")


class EmbeddingUsage(BaseModel):
    """Tokens that the model has read; 0: it does not tell."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


_OpenAI = PartBody(EmbeddingRequest, MAX_BYTES)


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingList,
    responses=dialects.responses("openai"),
    openapi_extra=_OpenAI.extra,
)
async def create_embeddings(
    request: Request,
    who: Who,
    ask: Ask,
    served: Served,
    body: Annotated[EmbeddingRequest, Depends(_OpenAI.read)],
) -> Response:
    """Embed texts, or pictures with a model for pictures."""
    model = await served.find(body.model, "text", "vision")
    items = await read_items(body.input, "input")
    require_length(model, body.dimensions, "dimensions")
    found = await Batches(ask, request.app.state.uploads, who.user_id).embed(model, items, "input")
    encoding = body.embedding_type or body.encoding_format

    def told() -> dict[str, Any]:
        encoded = encode(found.vectors, encoding)
        return {
            "object": "list",
            "model": model.name,
            "data": [
                {"object": "embedding", "index": index, "embedding": vector}
                for index, vector in enumerate(encoded)
            ],
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        }

    return await in_thread(lambda: json_response(told()))


class CohereEmbedRequest(Part):
    """Texts or pictures to embed."""

    model: ModelField
    texts: list[GivenText] | None = None
    images: list[GivenText] | None = Field(None, description="Data URIs in Base64")
    input_type: str | None = Field(None, description="Without effect")
    embedding_types: list[Encoding] | None = Field(None, min_length=1)
    output_dimension: int | None = Field(None, description="Only the length that the model has")
    truncate: Literal["NONE", "END"] | None = Field(
        None, description="Without effect: long texts are cut at the end"
    )
    priority: int | None = Field(None, description="Without effect")


class CohereEmbeddings(BaseModel):
    """The vectors, in the order of the inputs; of `/v1/embed` without `embedding_types` a plain list."""

    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"]
    embeddings: dict[str, list[Any]] | list[list[float]]
    texts: list[str]
    meta: dict[str, Any]


_Cohere = PartBody(CohereEmbedRequest, MAX_BYTES)
#: Of both addresses.
_EMBED: dict[str, Any] = {
    "response_model": CohereEmbeddings,
    "responses": dialects.responses("cohere"),
    "openapi_extra": _Cohere.extra,
}


@router.post("/v2/embed", **_EMBED)
@router.post("/v1/embed", name="embed_as_cohere_v1", **_EMBED)
async def embed_as_cohere(
    request: Request,
    who: Who,
    ask: Ask,
    served: Served,
    body: Annotated[CohereEmbedRequest, Depends(_Cohere.read)],
) -> Response:
    """Embed texts or pictures."""
    model = await served.find(body.model, "text", "vision")
    require_length(model, body.output_dimension, "output_dimension")
    if (body.texts is None) == (body.images is None):
        raise InvalidParameter("send either texts or images", "texts")
    param, given = ("texts", body.texts) if body.images is None else ("images", body.images)
    items = await read_items(
        given if param == "texts" else [{"image": image} for image in given or ()], param
    )
    found = await Batches(ask, request.app.state.uploads, who.user_id).embed(model, items, param)
    is_plain = body.embedding_types is None and request.url.path == "/v1/embed"

    def told() -> dict[str, Any]:
        types = body.embedding_types or ["float"]
        return {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_floats" if is_plain else "embeddings_by_type",
            "embeddings": found.vectors
            if is_plain
            else {kind: encode(found.vectors, kind) for kind in types},
            "texts": body.texts or [],
            "meta": {
                "api_version": {"version": request.url.path[2:3]},
                "billed_units": {"input_tokens": found.tokens},
            },
        }

    return await in_thread(lambda: json_response(told()))


class TEIEmbedRequest(Part):
    """Texts to embed."""

    inputs: TextInput
    normalize: Literal[True] = True
    truncate: bool | None = Field(None, description="Without effect: long texts are cut at the end")
    truncation_direction: Literal["Right", "right"] = "Right"
    dimensions: int | None = Field(None, description="Only the length that the model has")


class Similar(Part):
    """A sentence and those that it is compared with."""

    source_sentence: str = Field(min_length=1)
    sentences: list[GivenText] = Field(min_length=1, max_length=MAX_ITEMS - 1)


class TEISimilarityRequest(Part):
    """Sentences to compare."""

    inputs: Similar
    parameters: dict[str, Any] = Field({}, max_length=0, description="Sent empty by `huggingface_hub`")


_TEIEmbed = PartBody(TEIEmbedRequest, MAX_BYTES)
_TEISimilarity = PartBody(TEISimilarityRequest, MAX_BYTES)


@router.post(
    "/embed",
    response_model=list[list[float]],
    responses=dialects.responses("tei"),
    openapi_extra=_TEIEmbed.extra,
)
async def embed_as_tei(
    request: Request,
    who: Who,
    ask: Ask,
    served: Served,
    body: Annotated[TEIEmbedRequest, Depends(_TEIEmbed.read)],
) -> Response:
    """Embed texts by the active model."""
    given = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    if any(isinstance(item, dict) for item in given):
        raise InvalidParameter("inputs has an object: send texts", "inputs")
    items = await read_items(given, "inputs")
    model = await served.find(None, "text")
    require_length(model, body.dimensions, "dimensions")
    found = await Batches(ask, request.app.state.uploads, who.user_id).embed(model, items, "inputs")
    return await in_thread(lambda: json_response(found.vectors))


@router.post(
    "/similarity",
    responses=dialects.responses("tei"),
    openapi_extra=_TEISimilarity.extra,
)
async def compare_as_tei(
    request: Request,
    who: Who,
    ask: Ask,
    served: Served,
    body: Annotated[TEISimilarityRequest, Depends(_TEISimilarity.read)],
) -> list[float]:
    """Return the similarity of each sentence with the first, -1..1."""
    given = [body.inputs.source_sentence, *body.inputs.sentences]
    items = await read_items(given, "inputs.sentences")
    model = await served.find(None, "text")
    found = await Batches(ask, request.app.state.uploads, who.user_id).embed(model, items, "inputs.sentences")
    first, *others = found.vectors
    # They have length 1.
    return [math.fsum(a * b for a, b in zip(first, other, strict=True)) for other in others]


async def read_items(given: Any, param: str) -> list[str | Picture]:
    """Texts and pictures of a request.

    Raises:
        InvalidParameter: there is none, there are too many, or one is empty or something else.
    """
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise InvalidParameter(f"{param} is empty: send at least one text", param)
    if len(listed) > MAX_ITEMS:
        raise InvalidParameter(
            f"{param} has {len(listed)} items, at most {MAX_ITEMS} are read: send fewer", param
        )
    return [await _item(item, f"{param}.{index}", param) for index, item in enumerate(listed)]


async def _item(given: Any, name: str, param: str) -> str | Picture:
    if isinstance(given, int | list):
        raise InvalidParameter(f"{param} has tokens, which differ from model to model: send texts", param)
    if isinstance(given, dict) and len(given) == 1:
        ((key, value),) = given.items()
        if key == "image" and isinstance(value, str):
            return await read_picture(value, name)
        given = value if key == "text" else None
    if not isinstance(given, str):
        raise InvalidParameter(f"{name} is no text: send a text, or {{'image': Base64}}", param)
    if not given:
        raise InvalidParameter(f"{name} is an empty text: leave it out", param)
    return given


def require_length(model: HeldModel, asked: int | None, param: str) -> None:
    """Refuse another length of vectors than the model's."""
    if asked is not None and asked != model.dim:
        raise InvalidParameter(
            f"{param}={asked}, but {model.name} has vectors of {model.dim}: leave {param} out", param
        )


def encode(vectors: Sequence[Sequence[float]], encoding: Encoding) -> list[Sequence[float] | str]:
    """Vectors as numbers, or as Base64 of little-endian float32."""
    if encoding == "float":
        return list(vectors)
    return [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]


def json_response(content: Any) -> Response:
    """An answer that may be large: made at once, without another check."""
    return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")
