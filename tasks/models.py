"""Operators' requests about the searched models: switch to another one while searches continue."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy.orm import Session

from db import switches
from db.active_models import active_models, models_of
from db.engine import reading
from db.ledger import switch_runs
from db.precedence import admit
from db.tables import ModelSwitch
from db.vectors import find_model
from shared import nodes, routing
from shared.contracts import (
    DiscardModel,
    ModelKind,
    ModelSamples,
    ModelsState,
    SampleScenes,
    SearchedKind,
    SwitchModel,
    SwitchView,
)
from shared.errors import InvalidRequest, ModelUnavailable
from tasks.requests import Changed, arrival, change_task, read_task, request_task
from worker.runtime import get_runtime
from worker.search.queues import PAGES_S
from worker.stages.context import model_row


@request_task(routing.MODELS_STATE, ModelKind)
def state(request: ModelKind) -> ModelsState:
    """Return the active model of a kind and its open switch."""
    with reading() as session:
        return read_state(session, request.kind)


@change_task(routing.MODELS_SWITCH, SwitchModel)
def switch(session: Session, request: SwitchModel) -> Changed:
    """Begin a switch; repeating it changes nothing. Its jobs create the new vectors."""
    runtime = get_runtime()
    active = runtime.active.models().get(request.kind)
    if active is None:
        raise ModelUnavailable(
            f"profile {runtime.settings.profile} has no {request.kind} model: there is nothing to switch from"
        )
    spec = runtime.catalog.get(request.to)
    if spec.kind != request.kind:
        raise InvalidRequest(
            f"to={spec.name!r} is a model of kind {spec.kind}: name one of kind {request.kind}"
        )
    if spec.metric != "cosine":
        raise InvalidRequest(f"to={spec.name!r} is compared by {spec.metric}: only cosine is searched")
    _require_a_node(request.kind, spec.name)
    newest = switches.newest(session, request.kind)
    if newest is not None and not request.dry_run:
        _admit(session, newest)
    with session.begin_nested() as tried:
        old, new = model_row(session, active), model_row(session, spec)
        wake_ups = switches.begin(session, request.kind, old, new, runtime.policy, dry_run=request.dry_run)
        opened = switches.newest(session, request.kind)
        if opened is not None and opened is not newest:
            _admit(session, opened)
        shown = read_state(session, request.kind)
        if request.dry_run:
            # A model is known from its first vector on, not from a question.
            tried.rollback()
    return shown, wake_ups


def _require_a_node(family: str, model: str) -> None:
    """Ask the nodes whether they could work on a switch to this model.

    Raises:
        ModelUnavailable: none of those that run could.
    """
    records = nodes.read_nodes(get_runtime().settings.redis_url).values()
    running = [record for record in records if record.family == family]
    reasons = [record.lacks[model] for record in running if model in record.lacks]
    if running and len(reasons) == len(running):
        raise ModelUnavailable(f"no {family} node has model {model}, on {running[0].name}: {reasons[0]}")


def _require(session: Session, kind: str) -> ModelSwitch:
    found = switches.require(session, kind)
    _admit(session, found)
    return found


def _admit(session: Session, switch: ModelSwitch) -> None:
    """Raises:
    Conflict: a request about the switch that was sent later has been done.
    """
    admit(session, switch, arrival(), f"the switch of the {switch.kind} model")


@read_task(routing.MODELS_SAMPLES, SampleScenes)
def samples(session: Session, request: SampleScenes) -> ModelSamples:
    """Choose scenes of a user to test a model with."""
    texts, keys, scenes = switches.samples(session, request.user_id, request.kind, request.count)
    return ModelSamples(texts=tuple(texts), keyframe_keys=tuple(keys), scenes=scenes)


@change_task(routing.MODELS_RETRY, ModelKind)
def retry(session: Session, request: ModelKind) -> Changed:
    """Try the jobs of the open switch again that were given up."""
    wake_ups = switch_runs.retry(session, _require(session, request.kind))
    return read_state(session, request.kind), wake_ups


@change_task(routing.MODELS_ACTIVATE, ModelKind)
def activate(session: Session, request: ModelKind) -> Changed:
    """Activate the new model."""
    switches.point(session, _require(session, request.kind), "new")
    return read_state(session, request.kind), []


@change_task(routing.MODELS_ROLLBACK, ModelKind)
def rollback(session: Session, request: ModelKind) -> Changed:
    """Activate the old model again."""
    switches.point(session, _require(session, request.kind), "old")
    return read_state(session, request.kind), []


@change_task(routing.MODELS_DISCARD, DiscardModel)
def discard(session: Session, request: DiscardModel) -> Changed:
    """Delete the vectors of the model that is not active, and end the switch."""
    runtime = get_runtime()
    pages_s = 0.0 if request.now else PAGES_S + runtime.settings.search_deadline_s
    found = _require(session, request.kind)
    wake_ups = switches.discard(session, found, runtime.policy, pages_s=pages_s)
    return read_state(session, request.kind), wake_ups


def read_state(session: Session, kind: SearchedKind) -> ModelsState:
    active = active_models(session).get(kind)
    name = None if active is None else active.name
    if active is None and (spec := get_runtime().active.models().get(kind)) is not None:
        name, active = spec.name, find_model(session, spec.name, spec.revision)
    found = _open_switch(session, kind)
    scenes = 0
    if found is not None:
        # Not counted again: this is asked every second, and while the switch is locked.
        scenes = max(found.total, found.done)
    elif active is not None:
        scenes = switch_runs.count(session, kind, active)
    return ModelsState(
        kind=kind, active=name, scenes=scenes, switch=None if found is None else _view(session, found)
    )


def _open_switch(session: Session, kind: SearchedKind) -> ModelSwitch | None:
    """The switch as it is now: its last job may have ended it since the session read it first."""
    if (found := switches.find(session, kind)) is None:
        return None
    session.refresh(found)
    return None if found.state == "ended" else found


def _view(session: Session, found: ModelSwitch) -> SwitchView:
    old, new = models_of(session, found)
    progress = switch_runs.progress(session, found)
    left = max(0, found.total - found.done) if found.state == "building" else 0
    return SwitchView(
        from_model=old.name,
        to_model=new.name,
        state=cast(Any, found.state),
        total=found.total,
        done=found.done,
        failed=progress.failed,
        error=progress.error,
        scenes_per_s=progress.scenes_per_s,
        eta_s=left / progress.scenes_per_s if progress.scenes_per_s else None if left else 0.0,
        created_at=found.created_at,
        ready_at=found.ready_at,
        activated_at=found.activated_at,
    )
