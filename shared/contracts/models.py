"""Requests of an operator about the searched models."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from .base import Contract, Id, ModelName, Part, SearchedKind


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


class SwitchView(Part):
    """A switch from one model's vectors to another's."""

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
