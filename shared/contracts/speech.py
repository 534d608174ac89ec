"""What is said: the words and segments of transcripts and sidecars. Times are seconds from the file's start."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Word(BaseModel):
    """A spoken word."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    start_s: float
    end_s: float
    text: str
    probability: float = Field(description="The model's confidence, 0..1.")


class Segment(BaseModel):
    """Words spoken without a long pause."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...]
    rejected: str | None = Field(
        None,
        description="Why it is not part of the text: no speech, repetition, low confidence; null: it is part of it.",
    )
