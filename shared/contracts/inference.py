"""Requests to a single model: vectors, scores, transcripts, faces."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from .base import MAX_MESSAGE_BYTES, MAX_QUERY_CHARS, Box, Contract, Id, ModelName, Part, Text
from .speech import Segment

TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class EmbedTexts(Contract):
    """Embed short texts."""

    max_bytes: ClassVar[int] = 16 * MAX_MESSAGE_BYTES

    texts: tuple[Text, ...] = Field(max_length=64)
    #: None: the active model.
    model: ModelName | None = None


class EncodeTexts(EmbedTexts):
    """Embed short texts; ``lexical``: also return lexical weights, if the model produces them."""

    lexical: bool = False


class TextVectors(Contract):
    """The answer to ``EmbedTexts``: one unit vector [dim] per text."""

    max_bytes: ClassVar[int] = 4 * 2**20

    model: Text
    revision: Text
    dim: int = Field(ge=1)
    vectors: tuple[tuple[float, ...], ...] = Field(max_length=64)
    #: Tokens of each text that the model has read, special ones included; None: the model does not tell.
    tokens: tuple[int | None, ...] | None = Field(None, max_length=1000)
    #: Per text: token id of the model's vocabulary -> weight above 0. Only if ``EncodeTexts`` requests it.
    lexical: tuple[dict[TokenId, float], ...] | None = Field(None, max_length=64)


class RerankDocuments(Contract):
    """Score short documents, such as search hits, by how well they answer a query."""

    max_bytes: ClassVar[int] = 16 * MAX_MESSAGE_BYTES

    query: Text = Field(min_length=1, max_length=MAX_QUERY_CHARS)
    documents: tuple[Text, ...] = Field(max_length=64)


class RerankScores(Contract):
    """The answer to ``RerankDocuments``: one score per document, 0..1, higher is better."""

    model: Text
    revision: Text
    scores: tuple[float, ...] = Field(max_length=64)


class EmbedImages(Contract):
    """Embed stored pictures of a user: JPEG, PNG or WebP.

    Each key is under ``uploads/{user_id}/``, or that of a keyframe under ``keyframes/{user_id}/``.
    """

    max_bytes: ClassVar[int] = 3 * MAX_MESSAGE_BYTES

    user_id: Id
    storage_keys: tuple[Annotated[Text, Field(max_length=512)], ...] = Field(max_length=16)
    #: None: the active model.
    model: ModelName | None = None


class ImageVectors(TextVectors):
    """The answer to ``EmbedImages``: one unit vector [dim] per picture."""


class TranscribeAudio(Contract):
    """Transcribe at most a minute of a stored audio or video file of a user.

    The key is under ``uploads/{user_id}/``.
    """

    user_id: Id
    storage_key: Text = Field(max_length=512)
    #: Seconds from the file's start.
    start_s: float = Field(0.0, ge=0, le=1e6)
    #: None: the end of the file.
    end_s: float | None = Field(None, gt=0, le=1e6)


class TranscribedAudio(Contract):
    """The answer to ``TranscribeAudio``."""

    model: str
    revision: str
    #: ISO 639-1 code of the main language; None: no speech.
    language: str | None
    text: str
    segments: tuple[Segment, ...]
    #: Length of the sound that was read, seconds: less than was asked for where the file ends.
    duration_s: float | None = None


class DetectFaces(Contract):
    """Find faces in stored pictures of a user: JPEG, PNG or WebP.

    Each key is under ``uploads/{user_id}/`` or ``faces/{user_id}/``, in the bucket of uploads.
    """

    max_bytes: ClassVar[int] = 3 * MAX_MESSAGE_BYTES

    user_id: Id
    storage_keys: tuple[Annotated[Text, Field(max_length=512)], ...] = Field(max_length=16)
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

    storage_key: str
    width_px: int
    height_px: int
    faces: tuple[FoundFace, ...]


class DetectedFaces(Contract):
    """The answer to ``DetectFaces``: the pictures in the order of the request."""

    model: str
    revision: str
    dim: int
    #: cosine or l2
    metric: str
    landmark_names: tuple[str, ...]
    pictures: tuple[PictureFaces, ...]
