"""Operators' requests about the searched models."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from .base import Contract, Id, ModelName, SearchedKind


class ModelKind(Contract):
    """Names a kind of model."""

    kind: SearchedKind


class SwitchModel(ModelKind):
    """Start a switch: create vectors of another model of the catalogue for the archive."""

    to: ModelName
    #: Only estimate the work.
    dry_run: bool = False


class DiscardModel(ModelKind):
    """Delete the vectors of the model of an open switch that is not active."""

    #: Also while searches from before the last activation may still request pages.
    now: bool = False


class SampleScenes(ModelKind):
    """Choose scenes of a user to test a model with; always the same ones."""

    user_id: Id
    count: int = Field(20, ge=1, le=64)


class ModelSamples(Contract):
    """The answer to ``SampleScenes``."""

    #: The beginnings of their transcripts.
    texts: tuple[str, ...]
    #: Keyframes of ``scenes`` scenes.
    keyframe_keys: tuple[str, ...]
    scenes: int


class SwitchView(BaseModel):
    """A switch from one model's vectors to another's."""

    model_config = Contract.model_config

    from_model: str
    to_model: str
    #: building, ready (both complete, the old one is active), activated (the new one is), discarding
    state: Literal["building", "ready", "activated", "discarding"]
    #: Scenes that had a vector of the old model at the start; ``done``: scenes with one of the new model.
    total: int
    done: int
    #: Jobs that failed for good; ``error``: of the first one.
    failed: int
    error: str | None
    #: Recent speed; None: no recent work.
    scenes_per_s: float | None
    #: Seconds until the vectors are complete, at this speed.
    eta_s: float | None
    created_at: datetime
    ready_at: datetime | None
    activated_at: datetime | None


class ModelsState(Contract):
    """The active model of a kind, and the open switch, if there is one."""

    kind: SearchedKind
    active: str | None
    #: Scenes with a vector of it; while a switch is open: the count at its start plus new ones.
    scenes: int
    switch: SwitchView | None
