"""A search, and what it found."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from .base import MAX_MESSAGE_BYTES, MAX_QUERY_CHARS, Box, Contract, Id, ModelName, Part, Text

SearchMode = Literal["keyword", "semantic", "hybrid"]

#: What a search compares: words spoken, their weights, their meaning, what is seen, text on screen, who is there.
SearchRetriever = Literal["text", "vision", "lexical", "keyword", "screen", "people"]


class SearchWeights(Part):
    """How much each retriever counts in this search; one left out has its setting's weight."""

    text: float | None = Field(None, ge=0, le=1000)
    vision: float | None = Field(None, ge=0, le=1000)
    lexical: float | None = Field(None, ge=0, le=1000)
    keyword: float | None = Field(None, ge=0, le=1000)
    screen: float | None = Field(None, ge=0, le=1000)
    people: float | None = Field(None, ge=0, le=1000)


class SearchScenes(Contract):
    """Search one user's published scenes: by words, by another scene, by a picture, by who is there."""

    #: ``MAX_QUERY_CHARS`` of any script fit.
    max_bytes: ClassVar[int] = 2 * MAX_MESSAGE_BYTES

    user_id: Id
    query: Text | None = Field(None, min_length=1, max_length=MAX_QUERY_CHARS)
    mode: SearchMode = "hybrid"
    #: Id of a scene of the user's: more like this one.
    like_scene: UUID | None = None
    #: A stored picture of the user's, as in ``EmbedImages``.
    image_key: Text | None = Field(None, max_length=512)
    weights: SearchWeights = SearchWeights()
    #: Hits that score less are left out: no match is an answer.
    min_score: float | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    #: ``next_cursor`` of the answer before, for the same search.
    cursor: Text | None = Field(None, max_length=400)
    #: Search by this model's vectors; None: by the active one's.
    text_model: ModelName | None = None
    vision_model: ModelName | None = None
    #: The best hits, so many, are read again by the reranker and put in its order.
    rerank: int | None = Field(None, ge=1, le=50)

    video_id: Id | None = None
    video_ids: tuple[Id, ...] = Field((), max_length=100)
    persons: tuple[Id, ...] = Field((), max_length=20)
    #: ``prefer``: they raise the score, and nobody has to be there.
    persons_match: Literal["any", "all", "prefer"] = "any"
    #: Scenes that overlap this stretch of their video, seconds.
    from_s: float | None = Field(None, ge=0)
    to_s: float | None = Field(None, ge=0)
    #: ISO 639-1 codes of what is spoken.
    languages: tuple[Annotated[Text, Field(min_length=2, max_length=16)], ...] = Field((), max_length=20)
    #: When their video was indexed: from (inclusive) and to (exclusive); without an offset it is UTC.
    indexed_from: datetime | None = None
    indexed_to: datetime | None = None


class GatherSearch(Contract):
    """A step of a search that waited: a queue has answered, or time is up."""

    search: Id
    #: The queue that answered; None: time is up.
    queue: Literal["text", "vision", "rerank"] | None = None
    #: The queue's task failed; what comes with it is that task's id.
    failed: bool = False


class WordSpan(Part):
    """Where a searched word stands in a transcript: characters from ``start`` (inclusive) to ``end`` (exclusive)."""

    start: int
    end: int


class KeyframeMatch(Part):
    """The keyframe that fits best."""

    ordinal: int
    key: str
    url: str | None
    #: 0..1
    similarity: float


class ScreenMatch(Part):
    """A line on screen that holds a searched word, and where a keyframe shows it."""

    text: str
    ordinal: int
    #: x, y, width, height in the keyframe's pixels.
    box: Box


class PersonMatch(Part):
    """A person who was asked for, and the best face."""

    person_id: str
    name: str
    #: 0..1
    confidence: float
    frame_count: int
    #: The keyframe and x, y, width, height in its pixels; None: no face is kept.
    ordinal: int | None
    box: Box | None


class Highlights(Part):
    """Why a scene was found."""

    words: tuple[WordSpan, ...] = ()
    keyframe: KeyframeMatch | None = None
    screen: tuple[ScreenMatch, ...] = ()
    people: tuple[PersonMatch, ...] = ()


class SearchHit(Part):
    scene_id: str
    video_id: str
    idx: int
    start_s: float
    end_s: float
    transcript: str
    score: float
    keyframe_keys: tuple[str, ...]
    language: str | None = None
    #: Retriever -> similarity 0..1, before weights; a retriever that was not searched is absent.
    similarities: dict[SearchRetriever, float] = Field(default_factory=dict)
    #: The reranker's score, 0..1; None: it did not read this one.
    rerank_score: float | None = None
    highlights: Highlights = Highlights()
    #: Presigned, as many as ``keyframe_keys``; None: this storage has none.
    keyframe_urls: tuple[str, ...] | None = None


class RetrieverCoverage(Part):
    """What one retriever could look at."""

    retriever: SearchRetriever
    used: bool
    #: Why it was not used.
    reason: str | None
    model: str | None
    #: Scenes of the scope that it has something to compare of; None: it can't be told.
    scenes: int | None
    weight: float


class Coverage(Part):
    """How much of what was asked could be looked at: "nothing found" is not "not looked at yet"."""

    #: In the scope: the user's published scenes that the filters leave.
    scenes: int
    #: Scenes with words spoken in them.
    with_words: int
    #: Scenes with a vector of the text model; None where meaning was not asked for.
    with_vectors: int | None
    #: Videos of this user still in work.
    videos_in_work: int
    retrievers: tuple[RetrieverCoverage, ...] = ()


class SearchAnswer(Contract):
    query: str | None
    mode: SearchMode
    #: The text model; None where meaning was not asked for.
    model: str | None
    hits: tuple[SearchHit, ...]
    coverage: Coverage
    #: Retriever (or ``rerank``) that was asked for and that works in this fleet -> why it is missing from this answer.
    degraded: dict[str, str] = Field(default_factory=dict)
    #: Pass as ``cursor`` for the next page; None at the end.
    next_cursor: str | None = None
