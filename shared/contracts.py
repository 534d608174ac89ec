"""Payloads and results of every task: frozen, versioned, JSON only.

Everything here comes from outside and is hostile until it has passed these models. A broker message stays under
``MAX_MESSAGE_BYTES``; media travels by storage key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import InvalidRequest
from .graph import PIPELINE_NAMES

MAX_MESSAGE_BYTES = 4096
MAX_QUERY_CHARS = 1000
ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"

VideoState = Literal["uploaded", "processing", "indexed", "partial", "failed", "cancelled", "deleted"]
SearchMode = Literal["keyword", "semantic"]


def _check_id(value: str) -> str:
    if not re.fullmatch(ID_PATTERN, value):
        raise ValueError(f"must match {ID_PATTERN}")
    return value


def _check_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not hold a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode text") from error
    return value


Id = Annotated[str, AfterValidator(_check_id)]
Text = Annotated[str, AfterValidator(_check_text)]


class Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    #: The largest payload that is looked at, as JSON text.
    max_bytes: ClassVar[int] = MAX_MESSAGE_BYTES

    version: Literal[1] = 1


class VideoRef(Contract):
    """Names a video of a user."""

    video_id: Id
    user_id: Id


class ProcessVideo(VideoRef):
    """Accept a video whose file lies under ``storage_key`` in the uploads bucket."""

    storage_key: Text = Field(max_length=512)
    #: 0..9, higher first.
    priority: int = Field(0, ge=0, le=9)


class RerunVideo(VideoRef):
    """Process again: all stages, or the named ones and those downstream of them."""

    stages: tuple[Text, ...] = Field((), max_length=len(PIPELINE_NAMES))


class ListScenes(VideoRef):
    """A page of a video's published scenes, from ``after_idx`` (exclusive) on."""

    after_idx: int = Field(-1, ge=-1, le=2**31 - 1)
    limit: int = Field(200, ge=1, le=1000)


class EmbedTexts(Contract):
    """Some texts to embed; short ones: the batch lane takes whole videos."""

    max_bytes: ClassVar[int] = 16 * MAX_MESSAGE_BYTES

    texts: tuple[Text, ...] = Field(max_length=64)


class TextVectors(Contract):
    """The answer to ``EmbedTexts``: one unit vector [dim] per text."""

    max_bytes: ClassVar[int] = 4 * 2**20

    model: Text
    revision: Text
    dim: int = Field(ge=1)
    vectors: tuple[tuple[float, ...], ...] = Field(max_length=64)


class SearchScenes(Contract):
    """Search one user's published scenes."""

    #: ``MAX_QUERY_CHARS`` of any script fit.
    max_bytes: ClassVar[int] = 2 * MAX_MESSAGE_BYTES

    user_id: Id
    query: Text = Field(min_length=1, max_length=MAX_QUERY_CHARS)
    mode: SearchMode = "keyword"
    limit: int | None = Field(None, ge=1)
    video_id: Id | None = None


class Receipt(Contract):
    """The answer to a change: from here on nothing is lost."""

    video_id: str
    user_id: str
    state: VideoState
    run: int
    #: False when the same request had been accepted before.
    accepted: bool


class StageStatus(Contract):
    stage: str
    #: pending, queued, running, done, carried, failed, cancelled, skipped
    state: str
    parts: int
    parts_done: int
    #: 0..1 over all parts.
    progress: float
    error_class: str | None = None
    error: str | None = None
    attempts: int = 0


class VideoStatus(Contract):
    video_id: str
    user_id: str
    storage_key: str
    state: VideoState
    run: int
    published_run: int | None
    duration_s: float | None
    scenes: int
    error_class: str | None
    error: str | None
    created_at: datetime
    indexed_at: datetime | None
    stages: tuple[StageStatus, ...]


class SceneView(Contract):
    """One published scene as callers see it. Times in seconds from the video's start."""

    scene_id: str
    video_id: str
    idx: int
    start_s: float
    end_s: float
    kind: str
    transcript: str
    language: str | None
    keyframe_keys: tuple[str, ...]
    sidecar_key: str | None
    faces: int


class ScenePage(Contract):
    video_id: str
    scenes: tuple[SceneView, ...]
    #: Pass as ``after_idx`` for the next page; None at the end.
    next_after_idx: int | None


class SearchHit(Contract):
    scene_id: str
    video_id: str
    idx: int
    start_s: float
    end_s: float
    transcript: str
    score: float
    keyframe_keys: tuple[str, ...]


class Coverage(Contract):
    """How much of what was asked could be looked at: "nothing found" is not "not looked at yet"."""

    scenes: int
    #: Scenes with words spoken in them.
    with_words: int
    #: Scenes with a vector of the model that was searched; None in keyword mode.
    with_vectors: int | None
    #: Videos of this user still in work.
    videos_in_work: int


class SearchAnswer(Contract):
    query: str
    mode: SearchMode
    model: str | None
    hits: tuple[SearchHit, ...]
    coverage: Coverage


C = TypeVar("C", bound=Contract)


def parse(contract: type[C], payload: Mapping[str, Any]) -> C:
    """Check a payload from outside.

    Raises:
        InvalidRequest: over the contract's ``max_bytes``, or the first field that is wrong, by name and value.
    """
    if not isinstance(payload, Mapping):
        raise InvalidRequest(
            f"the payload of {contract.__name__} is a {type(payload).__name__}: send an object with named fields"
        )
    try:
        # As UTF-8: escaped, a word in another script would count six bytes a letter.
        data = json.dumps(payload, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"the payload of {contract.__name__} holds text that is not valid Unicode: send UTF-8"
        ) from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(
            f"the payload of {contract.__name__} is not plain JSON: send strings and numbers"
        ) from None
    if len(data) > contract.max_bytes:
        raise InvalidRequest(
            f"the payload of {contract.__name__} has {len(data)} bytes, more than {contract.max_bytes}:"
            " send storage keys, not data"
        )
    try:
        return contract.model_validate_json(data)
    except ValidationError as error:
        raise InvalidRequest(_say(error.errors()[0])) from None


def _say(fault: Any) -> str:
    """One sentence for one of pydantic's errors."""
    name = ".".join(str(part) for part in fault["loc"]) or "payload"
    if not name.isprintable() or len(name) > 60:
        # A field that is none of ours: whatever the caller called it.
        name = ascii(name)[:60]
    if fault["type"] == "missing":
        return f"{name} is missing: send it"
    value = repr(fault.get("input"))
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{name}={shown} is not acceptable: {fault['msg']}"
