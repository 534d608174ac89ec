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
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import InvalidRequest
from .graph import PIPELINE_NAMES
from .subtitles import SubtitleFormat

MAX_MESSAGE_BYTES = 4096
MAX_QUERY_CHARS = 1000
MAX_NAME_CHARS = 200
#: Of a picture a caller sends, as a query or as a photo: one of 48 megapixels has some 25 MB.
MAX_PICTURE_BYTES = 32 * 2**20
MAX_PICTURE_PIXELS = 50_000_000
ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"

VideoState = Literal["uploaded", "processing", "indexed", "partial", "failed", "cancelled", "deleted"]
ListedState = Literal["uploaded", "processing", "indexed", "partial", "failed", "cancelled"]
SearchMode = Literal["keyword", "semantic", "hybrid"]
#: What a search compares: words spoken, their weights, their meaning, what is seen, text on screen, who is there.
SearchRetriever = Literal["text", "vision", "lexical", "keyword", "screen", "people"]


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


def _check_name(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("must be one printable line without blanks around it")
    return value


Id = Annotated[str, AfterValidator(_check_id)]
Text = Annotated[str, AfterValidator(_check_text)]
PersonName = Annotated[Text, AfterValidator(_check_name), Field(min_length=1, max_length=MAX_NAME_CHARS)]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
#: Kinds of models whose vectors are searched.
SearchedKind = Literal["text", "vision"]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

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
    """Process again: all stages, or the named ones and those downstream of them, or what the published run lacks."""

    stages: tuple[Text, ...] = Field((), max_length=len(PIPELINE_NAMES))
    #: Only stages that were off, failed or out of date; nothing happens when there is none.
    missing: bool = False


class ListScenes(VideoRef):
    """A page of a video's published scenes, from ``after_idx`` (exclusive) on."""

    after_idx: int = Field(-1, ge=-1, le=2**31 - 1)
    limit: int = Field(200, ge=1, le=1000)


class MakeSubtitles(VideoRef):
    """The words of a video's published scenes as a subtitle file."""

    format: SubtitleFormat = "srt"


class EmbedTexts(Contract):
    """Some texts to embed; short ones: the batch queue takes whole videos."""

    max_bytes: ClassVar[int] = 16 * MAX_MESSAGE_BYTES

    texts: tuple[Text, ...] = Field(max_length=64)
    #: None: the active model.
    model: ModelName | None = None


class EncodeTexts(EmbedTexts):
    """Some texts to embed; with ``lexical`` also the weights of their words, from a model that has them."""

    lexical: bool = False


class TextVectors(Contract):
    """The answer to ``EmbedTexts``: one unit vector [dim] per text."""

    max_bytes: ClassVar[int] = 4 * 2**20

    model: Text
    revision: Text
    dim: int = Field(ge=1)
    vectors: tuple[tuple[float, ...], ...] = Field(max_length=64)
    #: Per text: token id of the model's vocabulary -> weight above 0. Only where ``EncodeTexts`` asked for it.
    lexical: tuple[dict[TokenId, float], ...] | None = Field(None, max_length=64)


class RerankDocuments(Contract):
    """A query, and documents to be scored by how well they answer it; short ones, such as search hits."""

    max_bytes: ClassVar[int] = 16 * MAX_MESSAGE_BYTES

    query: Text = Field(min_length=1, max_length=MAX_QUERY_CHARS)
    documents: tuple[Text, ...] = Field(max_length=64)


class RerankScores(Contract):
    """The answer to ``RerankDocuments``: one score per document, 0..1, higher is better."""

    model: Text
    revision: Text
    scores: tuple[float, ...] = Field(max_length=64)


class EmbedImages(Contract):
    """Some stored pictures of one user to embed: JPEG, PNG or WebP.

    Each key lies under ``uploads/{user_id}/``, or is that of a keyframe, under ``keyframes/{user_id}/``.
    """

    max_bytes: ClassVar[int] = 3 * MAX_MESSAGE_BYTES

    user_id: Id
    storage_keys: tuple[Annotated[Text, Field(max_length=512)], ...] = Field(max_length=16)
    #: None: the active model.
    model: ModelName | None = None


class ImageVectors(TextVectors):
    """The answer to ``EmbedImages``: one unit vector [dim] per picture."""


class TranscribeAudio(Contract):
    """A stretch of a stored file of one user to be written down: sound or video, at most a minute.

    The key lies under ``uploads/{user_id}/``.
    """

    user_id: Id
    storage_key: Text = Field(max_length=512)
    #: Seconds from the file's start.
    start_s: float = Field(0.0, ge=0, le=1e6)
    #: None: to its end.
    end_s: float | None = Field(None, gt=0, le=1e6)


class SpokenWord(BaseModel):
    model_config = Contract.model_config

    #: Seconds from the file's start.
    start_s: float
    end_s: float
    text: str
    #: 0..1, the model's own confidence.
    probability: float


class SpokenSegment(BaseModel):
    """Words spoken without a long pause."""

    model_config = Contract.model_config

    start_s: float
    end_s: float
    text: str
    words: tuple[SpokenWord, ...]
    #: Why it is not believed, and not part of the text: no speech, repetition, low confidence. None: it is.
    rejected: str | None


class TranscribedAudio(Contract):
    """The answer to ``TranscribeAudio``."""

    model: str
    revision: str
    #: ISO 639-1 code of the language most of it is spoken in; None when nothing is said.
    language: str | None
    text: str
    segments: tuple[SpokenSegment, ...]


class DetectFaces(Contract):
    """Some stored pictures of one user to look for faces in: JPEG, PNG or WebP.

    Each key lies under ``uploads/{user_id}/`` or ``faces/{user_id}/``, in the bucket of uploads.
    """

    max_bytes: ClassVar[int] = 3 * MAX_MESSAGE_BYTES

    user_id: Id
    storage_keys: tuple[Annotated[Text, Field(max_length=512)], ...] = Field(max_length=16)
    #: Whether the answer holds each face's vector; it is much the largest part.
    vectors: bool = False


class FoundFace(Contract):
    #: x, y, width, height in pixels of the picture turned upright, inside it.
    box: tuple[float, float, float, float]
    #: The detector's own; higher is surer. Comparable only within one model.
    score: float
    #: x, y in pixels, in the order of ``DetectedFaces.landmark_names``.
    landmarks: tuple[tuple[float, float], ...]
    #: How well the face shows who it is, higher is better; None from a model that can't tell.
    quality: float | None
    #: [dim], to be compared by ``DetectedFaces.metric``; None when it was not asked for.
    vec: tuple[float, ...] | None


class PictureFaces(Contract):
    """What was found in one picture, the surest face first."""

    storage_key: str
    width_px: int
    height_px: int
    faces: tuple[FoundFace, ...]


class DetectedFaces(Contract):
    """The answer to ``DetectFaces``: the pictures in the order they were named."""

    model: str
    revision: str
    dim: int
    #: cosine or l2
    metric: str
    landmark_names: tuple[str, ...]
    pictures: tuple[PictureFaces, ...]


class SearchWeights(BaseModel):
    """How much each retriever counts in this search; one left out has its setting's weight."""

    model_config = Contract.model_config

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


class ListVideos(Contract):
    """A user's videos, newest first, from ``after`` (a video's id, exclusive) on."""

    user_id: Id
    #: Only videos in one of these states; none named: in any. Deleted videos are never listed.
    states: tuple[ListedState, ...] = Field((), max_length=6)
    after: Id | None = None
    limit: int = Field(50, ge=1, le=200)


class ListFailures(Contract):
    """The failed jobs of the newest runs of a user's videos, newest first, from ``after`` (a job's id, exclusive) on."""

    user_id: Id
    #: None: of all videos.
    video_id: Id | None = None
    after: int | None = Field(None, ge=1, le=2**63 - 1)
    limit: int = Field(100, ge=1, le=1000)


class UploadVideo(Contract):
    """Ask where to store a video; then send ``tasks.video.process`` with the key of the answer. Stores nothing."""

    user_id: Id
    #: Of the video to be; one that the user has already is refused.
    video_id: Id
    #: The file's name; what a storage key can't hold is replaced.
    filename: Text = Field("video", min_length=1, max_length=1000)
    #: Of the URL, seconds: within it the upload has to begin.
    expires_s: int = Field(900, ge=1, le=604_800)


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
    #: pending, queued, running, done, reused, failed, cancelled, skipped
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


class VideoPage(Contract):
    videos: tuple[VideoStatus, ...]
    #: Pass as ``after`` for the next page; None at the end.
    next_after: str | None


class FailureView(Contract):
    """A job that failed for good; ``tasks.video.retry`` tries it again."""

    job_id: int
    video_id: str
    run: int
    stage: str
    #: Which piece of the stage, from 0.
    part: int
    error_class: str | None
    error: str | None
    #: How often it was begun.
    attempts: int
    failed_at: datetime | None


class FailurePage(Contract):
    failures: tuple[FailureView, ...]
    #: Pass as ``after`` for the next page; None at the end.
    next_after: int | None


class UploadSlot(Contract):
    """The answer to ``UploadVideo``."""

    video_id: str
    storage_key: str
    #: Where to PUT the file; None where storage has no URLs: store it under the key.
    upload_url: str | None
    #: When the URL ends.
    expires_at: datetime | None


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
    #: People whose faces it shows, however many keyframes show them.
    faces: int
    #: The text it shows, a line each.
    screen_text: str = ""


class ScenePage(Contract):
    video_id: str
    scenes: tuple[SceneView, ...]
    #: Pass as ``after_idx`` for the next page; None at the end.
    next_after_idx: int | None


class Subtitles(Contract):
    """The answer to ``MakeSubtitles``; some MB for many hours of speech."""

    video_id: str
    format: SubtitleFormat
    #: The language most of it is spoken in; None when nothing is said.
    language: str | None
    #: The file's content, to be written as UTF-8.
    text: str


class WordSpan(BaseModel):
    """Where a searched word stands in a transcript: characters from ``start`` (inclusive) to ``end`` (exclusive)."""

    model_config = Contract.model_config

    start: int
    end: int


class KeyframeMatch(BaseModel):
    """The keyframe that fits best."""

    model_config = Contract.model_config

    ordinal: int
    key: str
    url: str | None
    #: 0..1
    similarity: float


class ScreenMatch(BaseModel):
    """A line on screen that holds a searched word, and where a keyframe shows it."""

    model_config = Contract.model_config

    text: str
    ordinal: int
    #: x, y, width, height in the keyframe's pixels.
    box: tuple[float, float, float, float]


class PersonMatch(BaseModel):
    """A person who was asked for, and the best face."""

    model_config = Contract.model_config

    person_id: str
    name: str
    #: 0..1
    confidence: float
    frame_count: int
    #: The keyframe and x, y, width, height in its pixels; None: no face is kept.
    ordinal: int | None
    box: tuple[float, float, float, float] | None


class Highlights(BaseModel):
    """Why a scene was found."""

    model_config = Contract.model_config

    words: tuple[WordSpan, ...] = ()
    keyframe: KeyframeMatch | None = None
    screen: tuple[ScreenMatch, ...] = ()
    people: tuple[PersonMatch, ...] = ()


class SearchHit(Contract):
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
    similarities: dict[SearchRetriever, float] = {}
    #: The reranker's score, 0..1; None: it did not read this one.
    rerank_score: float | None = None
    highlights: Highlights = Highlights()
    #: Presigned, as many as ``keyframe_keys``; None: this storage has none.
    keyframe_urls: tuple[str, ...] | None = None


class RetrieverCoverage(BaseModel):
    """What one retriever could look at."""

    model_config = Contract.model_config

    retriever: SearchRetriever
    used: bool
    #: Why it was not used.
    reason: str | None
    model: str | None
    #: Scenes of the scope that it has something to compare of; None: it can't be told.
    scenes: int | None
    weight: float


class Coverage(Contract):
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
    degraded: dict[str, str] = {}
    #: Pass as ``cursor`` for the next page; None at the end.
    next_cursor: str | None = None


class CreatePerson(Contract):
    """Make a person to be found in the user's videos. Sending it again with the same id or name changes nothing."""

    user_id: Id
    name: PersonName
    #: None: the fleet makes one.
    person_id: Id | None = None


class PersonRef(Contract):
    """Names a person of a user."""

    user_id: Id
    person_id: Id


class RenamePerson(PersonRef):
    """Give a person another name; an unknown one becomes somebody by it."""

    name: PersonName


class ListPeople(Contract):
    """The user's people, by name, from ``after`` (exclusive) on."""

    user_id: Id
    kind: Literal["named", "unknown"] | None = None
    after: Text | None = Field(None, max_length=MAX_NAME_CHARS)
    limit: int = Field(200, ge=1, le=1000)


class AddPhoto(PersonRef):
    """Make room for a photo: the answer says under which key to store it, and where to PUT it if there is a URL."""

    extension: Literal["jpg", "jpeg", "png", "webp"] = "jpg"
    #: Of the URL, seconds; None: ``UPLOAD_LINK_S``.
    expires_s: int | None = Field(None, ge=1, le=604_800)


class PhotoRef(PersonRef):
    photo_id: Id


class ListFaces(PersonRef):
    """Where a person is seen, track by track, from ``after`` (a track's id, exclusive) on."""

    after: Id | None = None
    limit: int = Field(200, ge=1, le=1000)


class JudgeFaces(PersonRef):
    """What a human says about tracks: they are this person's, or not. It holds for ever, also in later runs."""

    track_ids: tuple[Id, ...] = Field(min_length=1, max_length=64)
    is_person: bool


class MergePeople(PersonRef):
    """Say that a person is another one: all its photos and tracks become the other's."""

    into: Id


class SplitPerson(PersonRef):
    """Say that some tracks of a person are somebody else: they become a person of their own."""

    track_ids: tuple[Id, ...] = Field(min_length=1, max_length=64)
    #: None: the next free "unknown N".
    name: PersonName | None = None


class UndoEvent(Contract):
    user_id: Id
    event_id: int = Field(ge=1, le=2**63 - 1)


class ListEvents(Contract):
    """What was done to the user's people, newest first, before ``before`` (exclusive)."""

    user_id: Id
    before: int | None = Field(None, ge=1, le=2**63 - 1)
    limit: int = Field(100, ge=1, le=1000)


class PhotoView(Contract):
    photo_id: str
    person_id: str
    storage_key: str
    #: waiting (for its upload), pending, good, refused (for what it shows), failed (the fleet's fault)
    state: str
    error_class: str | None
    error: str | None
    #: x, y, width, height of the face in the photo's pixels.
    box: tuple[float, float, float, float] | None
    quality: float | None
    #: Where to PUT it; None where storage has no URLs, and for a photo that is there.
    upload_url: str | None = None


class PersonView(Contract):
    person_id: str
    user_id: str
    name: str
    kind: Literal["named", "unknown"]
    #: empty (nothing to know the person by), working (photos or videos are looked at), ready, erasing, erased
    state: Literal["empty", "working", "ready", "erasing", "erased"]
    #: 0..1, of the work that goes on.
    progress: float
    photos: int
    good_photos: int
    scenes: int
    videos: int
    created_at: datetime
    #: After an erasure: what was removed and what a sweep found afterwards.
    receipt: dict[str, Any] | None = None
    #: Of a change: the event that undoes it.
    event_id: int | None = None
    #: Of a creation: False when the person had been there before.
    accepted: bool = True


class PeoplePage(Contract):
    people: tuple[PersonView, ...]
    #: Pass as ``after`` for the next page; None at the end.
    next_after: str | None


class PhotoList(Contract):
    person_id: str
    photos: tuple[PhotoView, ...]


class FaceView(Contract):
    """One face through one scene."""

    track_id: str
    video_id: str
    scene_id: str
    #: The scene's number in its video.
    idx: int
    #: Of its best keyframe, seconds from the video's start.
    ts_s: float
    keyframe_key: str
    box: tuple[float, float, float, float]
    faces: int
    similarity: float | None
    decided_by: Literal["machine", "human"] | None


class FacePage(Contract):
    person_id: str
    faces: tuple[FaceView, ...]
    next_after: str | None


class EventView(Contract):
    event_id: int
    #: create, rename, confirm (these faces are the person's), reject (they are not), merge, split, undo, erase
    kind: str
    person_id: str | None
    #: Of the person, as it is now; None once erased.
    name: str | None
    #: Into whom the person was merged, or who was split off, and what that one is called now.
    other_id: str | None
    other: str | None
    #: Of a renaming: the name before, and the one given.
    old_name: str | None
    new_name: str | None
    #: How many faces it was about, where it was about faces, and in which videos when a human picked them.
    faces: int | None
    video_ids: tuple[str, ...]
    undoes: int | None
    undone_by: int | None
    created_at: datetime


class EventList(Contract):
    events: tuple[EventView, ...]


class ModelKind(Contract):
    """Names what a switch is about."""

    kind: SearchedKind


class SwitchModel(ModelKind):
    """Give the archive vectors of another model of the catalogue, beside the present ones."""

    to: ModelName
    #: Only say what it would take.
    dry_run: bool = False


class DiscardModel(ModelKind):
    """Remove the vectors of the model of an open switch that is not active."""

    #: Also while searches from before the last activation may still turn pages.
    now: bool = False


class SampleScenes(ModelKind):
    """Some scenes of a user, to try a model on; always the same ones."""

    user_id: Id
    count: int = Field(20, ge=1, le=64)


class ModelSamples(Contract):
    """The answer to ``SampleScenes``."""

    #: What is said in them, where something is; the beginning of it.
    texts: tuple[str, ...]
    #: Of ``scenes`` scenes.
    keyframe_keys: tuple[str, ...]
    scenes: int


class SwitchView(BaseModel):
    """A switch from one model's vectors to another's."""

    model_config = Contract.model_config

    from_model: str
    to_model: str
    #: building, ready (both complete, the old one is active), activated (the new one is), discarding
    state: Literal["building", "ready", "activated", "discarding"]
    #: Scenes that had a vector of the old model at the beginning; scenes given one of the new model.
    total: int
    done: int
    #: Jobs given up, and the first one's error.
    failed: int
    error: str | None
    #: Lately; None: nothing was done lately.
    scenes_per_s: float | None
    #: Seconds until it is built, at that speed.
    eta_s: float | None
    created_at: datetime
    ready_at: datetime | None
    activated_at: datetime | None


class ModelsState(Contract):
    """The active model of a kind, and the open switch, if there is one."""

    kind: SearchedKind
    active: str | None
    #: Scenes with a vector of it; while a switch is open, as counted when it began and as made since.
    scenes: int
    switch: SwitchView | None


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
