"""Requests that one model answers: vectors, scores, transcripts, faces."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from .base import MAX_MESSAGE_BYTES, MAX_QUERY_CHARS, Box, Contract, Id, ModelName, Part, Text
from .speech import Segment

TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


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


class TranscribedAudio(Contract):
    """The answer to ``TranscribeAudio``."""

    model: str
    revision: str
    #: ISO 639-1 code of the language most of it is spoken in; None when nothing is said.
    language: str | None
    text: str
    segments: tuple[Segment, ...]


class DetectFaces(Contract):
    """Some stored pictures of one user to look for faces in: JPEG, PNG or WebP.

    Each key lies under ``uploads/{user_id}/`` or ``faces/{user_id}/``, in the bucket of uploads.
    """

    max_bytes: ClassVar[int] = 3 * MAX_MESSAGE_BYTES

    user_id: Id
    storage_keys: tuple[Annotated[Text, Field(max_length=512)], ...] = Field(max_length=16)
    #: Whether the answer holds each face's vector; it is much the largest part.
    vectors: bool = False


class FoundFace(Part):
    #: x, y, width, height in pixels of the picture turned upright, inside it.
    box: Box
    #: The detector's own; higher is surer. Comparable only within one model.
    score: float
    #: x, y in pixels, in the order of ``DetectedFaces.landmark_names``.
    landmarks: tuple[tuple[float, float], ...]
    #: How well the face shows who it is, higher is better; None from a model that can't tell.
    quality: float | None
    #: [dim], to be compared by ``DetectedFaces.metric``; None when it was not asked for.
    vec: tuple[float, ...] | None


class PictureFaces(Part):
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
