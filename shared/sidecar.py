"""The sidecar: one JSON document per scene and run, with deterministic bytes.

``docs/sidecar.schema.json`` is generated from these models (``python -m shared.sidecar``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .contracts.base import Box
from .contracts.speech import Segment
from .contracts.videos import NotLookedAt

#: Increases when a field changes its meaning or is removed; new fields don't change it.
SCHEMA_VERSION = 1


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(Part):
    """A model by name and revision."""

    name: str
    revision: str


class Transcript(Part):
    text: str
    segments: list[Segment]
    language: str | None
    model: ModelRef | None


class EmbeddingRef(Part):
    """Whether the scene has a vector; the vectors are in Postgres."""

    model: str | None
    revision: str | None
    dimensions: int | None
    has_embedding: bool
    #: Why there is none, when a stage did not run.
    reason: str | None = None


class Embeddings(Part):
    text: EmbeddingRef
    vision: EmbeddingRef


class Keyframe(Part):
    ordinal: int
    key: str
    ts_s: float
    width: int
    height: int


class Face(Part):
    face_id: str
    keyframe: int = Field(description="Ordinal of the keyframe it was found in.")
    ts_s: float
    box: Box = Field(description="x, y, width, height in the keyframe's pixels.")
    landmarks: list[list[float]]
    det_score: float
    quality: float | None = Field(
        None, description="Quality of the face; null: the model does not measure it."
    )
    track: int | None = Field(
        None, description="Faces of this scene with the same number are the same person."
    )
    model: str


class Sighting(Part):
    keyframe: int = Field(description="Ordinal of the keyframe that shows it.")
    ts_s: float
    box: Box = Field(description="x, y, width, height in the keyframe's pixels.")


class ScreenText(Part):
    """A line of on-screen text, stored once however many keyframes show it."""

    text: str
    score: float = Field(description="Confidence of the best sighting, 0..1.")
    sightings: list[Sighting]
    model: str


class Person(Part):
    person_id: str
    name: str
    confidence: float
    frame_count: int


class Metadata(Part):
    created_at: str = Field(description="Database time of the run, ISO 8601, UTC.")
    version: int
    processing_info: dict[str, Any]


class Sidecar(Part):
    """Everything known about one scene."""

    video_id: str
    scene_id: str
    idx: int
    start_s: float
    end_s: float
    duration_s: float
    kind: str = Field(description="What began the scene: start, cut or gradual.")
    cut_confidence: float | None = Field(
        default=None, description="Probability that the scene begins there, 0..1; null: not known."
    )
    transcript: Transcript
    embeddings: Embeddings
    keyframes: list[Keyframe]
    vision_tags: dict[str, float]
    faces: list[Face]
    people: list[Person]
    screen_texts: list[ScreenText] = Field(default_factory=list)
    plugins: dict[str, Any] = Field(
        default_factory=dict, description="What plug-ins say about the scene, by the plug-in's name."
    )
    not_looked_at: list[NotLookedAt] = Field(
        default_factory=list, description="What stages have left out, as the process died each time on it."
    )
    metadata: Metadata


def to_bytes(sidecar: Sidecar) -> bytes:
    """The document: UTF-8, keys sorted, one trailing newline; the same sidecar gives the same bytes."""
    return (
        json.dumps(sidecar.model_dump(mode="json"), ensure_ascii=False, sort_keys=True, indent=1) + "\n"
    ).encode()


def main() -> None:
    """Write ``docs/sidecar.schema.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Sidecar.model_json_schema()}
    Path("docs/sidecar.schema.json").write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main()
