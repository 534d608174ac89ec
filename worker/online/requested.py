"""The model that a request names, if the operator allows it."""

from __future__ import annotations

from typing import Any, get_args

from shared.contracts import SearchedKind
from shared.errors import ModelUnavailable
from worker.models.base import Model
from worker.models.spec import Kind
from worker.online.operations import Used
from worker.runtime import Runtime


def requested_model(runtime: Runtime, kind: Kind, name: str | None) -> Model:
    """The active model of a kind, or the one that a request names: in REQUEST_MODELS, or part of an open switch.

    Raises:
        ModelUnavailable: there is no such model here, or requests may not name it.
    """
    if name is None:
        return runtime.model(kind)
    active = runtime.active.models().get(kind)
    if active is None or name != active.name:
        allowed = {part.strip() for part in runtime.settings.request_models.split(",")}
        if name not in allowed and not _is_in_switch(runtime, kind, name):
            raise ModelUnavailable(
                f"Model {name} is not open to requests: name {active.name if active else 'none'}, or let the operator add"
                " it to REQUEST_MODELS"
            )
    return runtime.model(kind, name)


def used_by(model: Any, dim: int | None = None) -> Used:
    """What an answer says about a loaded model; ``dim``: the length of its vectors."""
    return Used(model.spec.name, model.spec.revision, model.placement.device, dim)


def _is_in_switch(runtime: Runtime, kind: Kind, name: str) -> bool:
    searched = {known: known for known in get_args(SearchedKind)}.get(kind)
    return searched is not None and any(spec.name == name for spec in runtime.active.written(searched))
