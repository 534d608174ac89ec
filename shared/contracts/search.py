"""A search, and its answer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field, JsonValue

from .base import MAX_MESSAGE_BYTES, MAX_QUERY_CHARS, Box, Contract, Id, ModelName, Moment, Part, Text

SearchMode = Literal["keyword", "semantic", "hybrid"]

#: What a search compares: meaning, pictures, lexical weights, spoken words, on-screen text, people.
SearchRetriever = Literal["text", "vision", "lexical", "keyword", "screen", "people"]


class SearchWeights(Part):
    """Weights of the retrievers in this search; the default is the setting's weight."""

    text: float | None = Field(None, ge=0, le=1000)
    vision: float | None = Field(None, ge=0, le=1000)
    lexical: float | None = Field(None, ge=0, le=1000)
    keyword: float | None = Field(None, ge=0, le=1000)
    screen: float | None = Field(None, ge=0, le=1000)
    people: float | None = Field(None, ge=0, le=1000)


class SearchScenes(Contract):
    """Search a user's published scenes by words, another scene, a picture or people."""

    #: Enough for ``MAX_QUERY_CHARS`` of any script.
    max_bytes: ClassVar[int] = 2 * MAX_MESSAGE_BYTES

    user_id: Id
    query: Text | None = Field(None, min_length=1, max_length=MAX_QUERY_CHARS)
    mode: SearchMode = "hybrid"
    #: Id of a scene of the user: find similar scenes.
    like_scene: UUID | None = None
    #: Key of a stored picture of the user, as in ``EmbedImages``.
    image_key: Text | None = Field(None, max_length=512)
    weights: SearchWeights = SearchWeights()
    #: Leave out hits with a lower score, and no other; None: leave out what no retriever finds similar (``left_out``).
    min_score: float | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    #: ``next_cursor`` of the previous answer to the same search.
    cursor: Text | None = Field(None, max_length=400)
    #: Search the vectors of this model; None: of the active one.
    text_model: ModelName | None = None
    vision_model: ModelName | None = None
    #: Number of best hits to rerank.
    rerank: int | None = Field(None, ge=1, le=50)

    video_id: Id | None = None
    video_ids: tuple[Id, ...] = Field((), max_length=100)
    persons: tuple[Id, ...] = Field((), max_length=20)
    #: ``prefer``: they raise the score and filter nothing.
    persons_match: Literal["any", "all", "prefer"] = "any"
    #: Scenes that overlap this span of their video, seconds.
    from_s: float | None = Field(None, ge=0)
    to_s: float | None = Field(None, ge=0)
    #: ISO 639-1 codes of the spoken languages.
    languages: tuple[Annotated[Text, Field(min_length=2, max_length=16)], ...] = Field((), max_length=20)
    #: When their video was indexed: from (inclusive) and to (exclusive); without an offset it is UTC.
    indexed_from: Moment | None = None
    indexed_to: Moment | None = None
    #: Filters of plug-ins: name -> the value that the filter takes.
    filters: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], JsonValue] = Field(
        {}, max_length=20
    )


class WordSpan(Part):
    """A searched word in a transcript: characters from ``start`` (inclusive) to ``end`` (exclusive)."""

    start: int
    end: int


class KeyframeMatch(Part):
    """The best matching keyframe."""

    ordinal: int
    key: str
    url: str | None
    #: 0..1
    similarity: float


class ScreenMatch(Part):
    """A line of on-screen text with a searched word, and its place in a keyframe."""

    text: str
    ordinal: int
    #: x, y, width, height in the keyframe's pixels.
    box: Box


class PersonMatch(Part):
    """A requested person, with the best face."""

    person_id: str
    name: str
    #: 0..1
    confidence: float
    frame_count: int
    #: The keyframe, and x, y, width, height in its pixels; None: no face is stored.
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
    #: Retriever -> similarity 0..1, before weights; retrievers that were not used are absent.
    similarities: dict[SearchRetriever, float] = Field(default_factory=dict)
    #: The reranker's score, 0..1; None: not reranked.
    rerank_score: float | None = None
    highlights: Highlights = Highlights()
    #: Presigned URLs of ``keyframe_keys``; None: the storage has none.
    keyframe_urls: tuple[str, ...] | None = None


class RetrieverCoverage(Part):
    """The coverage of one retriever."""

    retriever: SearchRetriever
    used: bool
    #: Why it was not used.
    reason: str | None
    model: str | None
    #: Scenes of the scope that it can compare; None: unknown.
    scenes: int | None
    weight: float


class Coverage(Part):
    """How many scenes were searched: distinguishes "nothing found" from "not processed yet"."""

    #: Scenes in the scope: the user's published scenes that pass the filters.
    scenes: int
    #: Scenes with speech.
    with_words: int
    #: Scenes with a vector of the text model; None: the text model was not used.
    with_vectors: int | None
    #: Videos of this user in progress.
    videos_in_work: int
    #: Scenes of which a stage has left something out, as the process died each time it worked on it.
    not_looked_at: int = 0
    retrievers: tuple[RetrieverCoverage, ...] = ()


class SearchAnswer(Contract):
    query: str | None
    mode: SearchMode
    #: The text model; None: it was not used.
    model: str | None
    hits: tuple[SearchHit, ...]
    coverage: Coverage
    #: Retriever (or ``rerank``) that this fleet has but this answer could not use -> the reason.
    degraded: dict[str, str] = Field(default_factory=dict)
    #: Pass as ``cursor`` for the next page; None at the end.
    next_cursor: str | None = None
    #: Scenes that were compared for this page and left out, because no retriever finds them similar to the query.
    left_out: int = 0
    #: The setting that ends the pages here, NAME=VALUE, although there may be more; None: they end with the last hit.
    truncated: str | None = None
