"""Long lists of texts, documents and pictures as requests that the fleet takes: in parts, a few at once."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from starlette.concurrency import run_in_threadpool as in_thread

from api.asking import Asking
from api.dialects import InvalidParameter
from api.files import picture_type
from api.uploads import PICTURE_EXTENSIONS, Uploads
from shared import routing
from shared.contracts import (
    MAX_PICTURE_BYTES,
    EmbedImages,
    EmbedTexts,
    EncodeTexts,
    ImageVectors,
    RerankDocuments,
    RerankScores,
    TextVectors,
)
from shared.nodes import HeldModel

T = TypeVar("T")

#: Texts, documents or pictures of one request of a caller.
MAX_ITEMS = 1000
#: Of one request to the fleet.
MAX_TEXTS, MAX_PICTURES, MAX_PART_BYTES = 64, 16, 64 * 1024
#: Requests to the fleet that one of a caller has waiting, so that others' come in between.
AT_ONCE = 4
#: Of a payload, for what is not the texts.
_ENVELOPE_BYTES = 1024


@dataclass(frozen=True)
class Picture:
    """A picture of a request."""

    data: bytes
    #: image/jpeg, image/png or image/webp
    kind: str


@dataclass(frozen=True)
class Embedded:
    """The vectors of a request's items, in their order."""

    vectors: list[Sequence[float]]
    #: Tokens that the model has read, as far as it tells.
    tokens: int


class Batches:
    """Sends the parts of one caller's request to the fleet."""

    def __init__(self, asking: Asking, uploads: Uploads, user_id: str) -> None:
        self._asking, self._uploads, self._user_id = asking, uploads, user_id

    async def embed(self, model: HeldModel, items: Sequence[str | Picture], param: str) -> Embedded:
        """Embed texts and pictures; ``param`` names them in errors.

        Raises:
            InvalidParameter: a text is too long, or the model embeds no pictures.
        """
        texts = [index for index, item in enumerate(items) if isinstance(item, str)]
        pictures = [index for index, item in enumerate(items) if not isinstance(item, str)]
        if pictures and model.kind != "vision":
            raise InvalidParameter(
                f"{param}.{pictures[0]} is a picture, and {model.name} embeds texts only: name a model for pictures",
                param,
            )
        vectors: list[Sequence[float]] = [()] * len(items)
        tokens = 0

        async def embed_part(chosen: list[int]) -> None:
            nonlocal tokens
            part = [items[index] for index in chosen]
            found = await (
                self._embed_texts(asking, model, [item for item in part if isinstance(item, str)])
                if isinstance(part[0], str)
                else self._embed_pictures(asking, model, [item for item in part if isinstance(item, Picture)])
            )
            tokens += sum(count or 0 for count in found.tokens or ())
            for index, vector in zip(chosen, found.vectors, strict=True):
                vectors[index] = vector or ()

        sizes = {index: _json_bytes(str(items[index])) for index in texts}
        parts = list(pack(texts, sizes, MAX_PART_BYTES, param))
        parts += [pictures[at : at + MAX_PICTURES] for at in range(0, len(pictures), MAX_PICTURES)]
        # Pictures and texts of one request go to one queue. A picture is one token, whatever its size.
        task = routing.VISION_EMBED_TEXTS if model.kind == "vision" else routing.TEXT_EMBED
        counted = {"items": [item if isinstance(item, str) else None for item in items]}
        async with self._asking.admitted(task, counted, self._user_id) as asking:
            await few_at_once(embed_part, parts)
        return Embedded(vectors, tokens)

    async def rerank(self, model: HeldModel, query: str, documents: Sequence[str], param: str) -> list[float]:
        """Score how well each document answers the query, 0..1.

        Raises:
            InvalidParameter: a document is too long.
        """
        scores = [0.0] * len(documents)

        async def rerank_part(chosen: list[int]) -> None:
            kwargs = {"query": query, "documents": [documents[index] for index in chosen]}
            found = await asking.ask(routing.TEXT_RERANK, RerankDocuments, kwargs, RerankScores)
            for index, score in zip(chosen, found.scores, strict=True):
                scores[index] = score or 0.0

        sizes = {index: _json_bytes(document) for index, document in enumerate(documents)}
        room_bytes = MAX_PART_BYTES - _json_bytes(query)
        parts = list(pack(range(len(documents)), sizes, room_bytes, param))
        counted = {"documents": documents}
        async with self._asking.admitted(routing.TEXT_RERANK, counted, self._user_id) as asking:
            await few_at_once(rerank_part, parts)
        return scores

    async def _embed_texts(self, asking: Asking, model: HeldModel, texts: list[str]) -> TextVectors:
        kwargs = {"texts": texts, "model": model.name, "encoding": "base64"}
        if model.kind == "vision":
            return await asking.embed(routing.VISION_EMBED_TEXTS, EmbedTexts, kwargs)
        return await asking.embed(routing.TEXT_EMBED, EncodeTexts, kwargs)

    async def _embed_pictures(self, asking: Asking, model: HeldModel, pictures: list[Picture]) -> TextVectors:
        async with AsyncExitStack() as stored:
            keys = []
            for picture in pictures:
                key = await self._uploads.keep_picture(
                    self._user_id, picture.data, PICTURE_EXTENSIONS[picture.kind], picture.kind
                )
                stored.push_async_callback(self._uploads.forget_query, key)
                keys.append(key)
            kwargs = {"user_id": self._user_id, "storage_keys": keys, "model": model.name}
            return await asking.ask(routing.VISION_EMBED_IMAGES, EmbedImages, kwargs, ImageVectors)


def pack(
    indices: Sequence[int], sizes_bytes: dict[int, int], max_bytes: int, param: str
) -> Iterator[list[int]]:
    """Divide items into payloads.

    Raises:
        InvalidParameter: one is too large for any.
    """
    part: list[int] = []
    left_bytes = room_bytes = max_bytes - _ENVELOPE_BYTES
    for index in indices:
        size_bytes = sizes_bytes[index]
        if size_bytes > room_bytes:
            raise InvalidParameter(
                f"{param}.{index} has {size_bytes} bytes, at most {room_bytes} are read: send a shorter text",
                param,
            )
        if part and (len(part) == MAX_TEXTS or size_bytes > left_bytes):
            yield part
            part, left_bytes = [], room_bytes
        part.append(index)
        left_bytes -= size_bytes
    if part:
        yield part


async def few_at_once(work: Callable[[T], Awaitable[None]], parts: Sequence[T]) -> None:
    """Do ``work`` for each part, ``AT_ONCE`` at a time; the first error ends all."""
    free = asyncio.Semaphore(AT_ONCE)

    async def run(part: T) -> None:
        async with free:
            await work(part)

    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(run(part))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def read_picture(given: str, param: str) -> Picture:
    """A picture in Base64, with or without ``data:...;base64,`` before it.

    Raises:
        InvalidParameter: it is none, or an address.
    """
    if given.startswith(("http://", "https://")):
        raise InvalidParameter(
            f"{param} is an address, and none is fetched: send the picture in Base64", param
        )
    text = given.partition(",")[2] if given.startswith("data:") else given
    try:
        data = await in_thread(base64.b64decode, text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidParameter(f"{param} is not Base64: send a JPEG, PNG or WebP in Base64", param) from None
    kind = picture_type(data)
    if kind is None or len(data) > MAX_PICTURE_BYTES:
        raise InvalidParameter(
            f"{param} is no JPEG, PNG or WebP of at most {MAX_PICTURE_BYTES} bytes: send one", param
        )
    return Picture(data, kind)


def _json_bytes(text: str) -> int:
    """What a text takes of a payload, with the comma after it."""
    return len(json.dumps(text, ensure_ascii=False).encode()) + 2
