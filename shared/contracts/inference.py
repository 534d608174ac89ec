"""Requests to a single model: vectors, scores, transcripts, faces."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from .base import MAX_QUERY_CHARS, Box, Contract, Id, ModelName, Part, Text
from .speech import Segment

TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]

#: Maximum number of items of a request, and its size: they are computed in parts, between other callers' requests.
MAX_ITEMS = 1000
MAX_REQUEST_BYTES = 2 * 2**20

StorageKey = Annotated[Text, Field(max_length=512)]


class Timings(Part):
    """Where the time of a request went in its node."""

    #: From the arrival at the node to the first batch.
    queued_s: float
    #: Of all batches that had a part of it.
    run_s: float


class ItemError(Part):
    """Why an item has no result; ``class`` is the name of a class of ``shared.errors``."""

    error_class: str = Field(alias="class")
    message: str


class Several(Contract):
    """A request with a list of items."""

    #: Answer also if some items fail: each has null in its place, and an entry in ``errors``.
    partial: bool = False


class ComputedAnswer(Contract):
    """What every answer of a model says about how it was made; absent in answers of older nodes."""

    #: cpu or cuda
    device: str | None = None
    node: str | None = None
    timings: Timings | None = None
    #: Number of items for which the model was not called.
    cached: int = 0
    #: Place of a failed item in the request -> why; only if the request says ``partial``.
    errors: dict[str, ItemError] = Field(default_factory=dict)


class EmbedTexts(Several):
    """Embed short texts."""

    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    #: Each is checked where it is computed.
    texts: tuple[str, ...] = Field(max_length=MAX_ITEMS)
    #: None: the active model; another one of the catalogue by its name.
    model: ModelName | None = None
    #: floats: numbers in ``vectors``; base64: little-endian float32 in ``packed``, a quarter of the size.
    encoding: Literal["floats", "base64"] = "floats"


class EncodeTexts(EmbedTexts):
    """Embed short texts; ``lexical``: also return lexical weights, if the model produces them."""

    lexical: bool = False


class TextVectors(ComputedAnswer):
    """The answer to ``EmbedTexts``: one unit vector [dim] per text; null: the item failed."""

    max_bytes: ClassVar[int] = 32 * 2**20

    model: Text
    revision: Text
    dim: int = Field(ge=1)
    vectors: tuple[tuple[float, ...] | None, ...] = Field(max_length=MAX_ITEMS)
    #: The vectors in base64, if the request says so; then ``vectors`` is empty.
    packed: tuple[str | None, ...] | None = Field(None, max_length=MAX_ITEMS)
    #: Per text: token id of the model's vocabulary -> weight above 0. Only if ``EncodeTexts`` requests it.
    lexical: tuple[dict[TokenId, float] | None, ...] | None = Field(None, max_length=MAX_ITEMS)
    #: Tokens of each text that the model has read, special ones included; None: the model does not tell.
    tokens: tuple[int | None, ...] | None = Field(None, max_length=MAX_ITEMS)


class UnpackedVectors(TextVectors):
    """``TextVectors`` whose ``vectors`` are read from ``packed``, if that is what the answer has; for callers in Python."""

    @model_validator(mode="before")
    @classmethod
    def _unpack(cls, answer: Any) -> Any:
        if not isinstance(answer, dict) or not isinstance(answer.get("packed"), list):
            return answer
        vectors = [packed and _floats(packed) for packed in answer["packed"]]
        return {**answer, "vectors": vectors, "packed": None}


def _floats(packed: str) -> list[float]:
    """Little-endian float32 in base64. Raises ValueError."""
    found = array("f", b64decode(packed, validate=True))
    if sys.byteorder == "big":
        found.byteswap()
    return found.tolist()


class RerankDocuments(Several):
    """Score short documents, such as search hits, by how well they answer a query."""

    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    query: Text = Field(min_length=1, max_length=MAX_QUERY_CHARS)
    documents: tuple[str, ...] = Field(max_length=MAX_ITEMS)


class RerankScores(ComputedAnswer):
    """The answer to ``RerankDocuments``: one score per document, 0..1, higher is better."""

    model: Text
    revision: Text
    scores: tuple[float | None, ...] = Field(max_length=MAX_ITEMS)


class Pictures(Several):
    """Stored pictures of a user, or small ones in the request itself: JPEG, PNG or WebP."""

    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    user_id: Id
    storage_keys: tuple[StorageKey, ...] = Field((), max_length=MAX_ITEMS)
    #: Instead of ``storage_keys``: the pictures themselves, in base64.
    inline: tuple[str, ...] = Field((), max_length=64)


class EmbedImages(Pictures):
    """Embed pictures of a user: JPEG, PNG or WebP.

    Each key is under ``uploads/{user_id}/``, or that of a keyframe under ``keyframes/{user_id}/``.
    """

    #: As in ``EmbedTexts``.
    model: ModelName | None = None
    encoding: Literal["floats", "base64"] = "floats"


class ImageVectors(TextVectors):
    """The answer to ``EmbedImages``: one unit vector [dim] per picture."""


class Sound(Part):
    """At most a minute of a stored audio or video file."""

    storage_key: StorageKey
    #: Seconds from the file's start.
    start_s: float = Field(0.0, ge=0, le=1e6)
    #: None: the end of the file.
    end_s: float | None = Field(None, gt=0, le=1e6)


class TranscribeAudio(Several):
    """Transcribe at most a minute of a stored audio or video file of a user, or several such ``sounds``.

    The keys are under ``uploads/{user_id}/``.
    """

    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES

    user_id: Id
    storage_key: StorageKey | None = None
    #: As in ``Sound``.
    start_s: float = Field(0.0, ge=0, le=1e6)
    end_s: float | None = Field(None, gt=0, le=1e6)
    #: Instead of ``storage_key``.
    sounds: tuple[Sound, ...] | None = Field(None, min_length=1, max_length=MAX_ITEMS)


class TranscribedSound(Part):
    #: ISO 639-1 code of the main language; None: no speech.
    language: str | None
    text: str
    segments: tuple[Segment, ...]
    #: Length of the sound that was read, seconds: less than was asked for where the file ends.
    duration_s: float | None = None


class TranscribedAudio(ComputedAnswer):
    """The answer to ``TranscribeAudio``."""

    model: str
    revision: str
    #: As in ``TranscribedSound``; empty if the request has several sounds.
    language: str | None
    text: str
    segments: tuple[Segment, ...]
    #: As in ``TranscribedSound``.
    duration_s: float | None = None
    #: One per sound of the request, in its order; null: the sound failed.
    sounds: tuple[TranscribedSound | None, ...] | None = None


class DetectFaces(Pictures):
    """Find faces in pictures of a user: JPEG, PNG or WebP.

    Each key is under ``uploads/{user_id}/`` or ``faces/{user_id}/``, in the bucket of uploads.
    """

    #: Whether the answer contains each face's vector, by far its largest part.
    vectors: bool = False


class FoundFace(Part):
    #: x, y, width, height in pixels of the upright picture, inside it.
    box: Box
    #: The detector's confidence; comparable within one model only.
    score: float
    #: x, y in pixels, in the order of ``DetectedFaces.landmark_names``.
    landmarks: tuple[tuple[float, float], ...]
    #: Quality of the face, higher is better; None: the model does not measure it.
    quality: float | None
    #: [dim], compared by ``DetectedFaces.metric``; None: not requested.
    vec: tuple[float, ...] | None


class PictureFaces(Part):
    """The faces in one picture, the most confident first."""

    #: ``inline/0`` for the first picture in the request itself.
    storage_key: str
    width_px: int
    height_px: int
    faces: tuple[FoundFace, ...]


class DetectedFaces(ComputedAnswer):
    """The answer to ``DetectFaces``: the pictures in the order of the request; null: the item failed."""

    model: str
    revision: str
    dim: int
    #: cosine or l2
    metric: str
    landmark_names: tuple[str, ...]
    pictures: tuple[PictureFaces | None, ...]
