"""The searched models: which is active, and operators' switches to another one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api import problems
from api.bodies import json_body
from api.parameters import Ask, Operator, Who
from shared import routing
from shared.contracts import DiscardModel, ModelKind, ModelsState, SearchedKind, SwitchModel

router = APIRouter(prefix="/models", tags=["models"], responses=problems.responses())
Switch = json_body(SwitchModel, "kind", name="Switch")
Discard = json_body(DiscardModel, "kind", name="Discard")
CHANGED = problems.responses(404, 409, 413, 415)


@router.get("/{kind}")
async def get_models(kind: SearchedKind, who: Who, ask: Ask) -> ModelsState:
    """Return the active model of a kind and the progress of an open switch."""
    return await ask.ask(routing.MODELS_STATE, ModelKind, {"kind": kind}, ModelsState)


@router.post("/{kind}/switch", status_code=202, responses=CHANGED, openapi_extra=Switch.extra)
async def switch_model(
    kind: SearchedKind, who: Operator, ask: Ask, body: Annotated[dict[str, Any], Depends(Switch.read)]
) -> ModelsState:
    """Start a switch to another model; repeating it changes nothing. `dry_run`: only estimate the work."""
    return await ask.ask(routing.MODELS_SWITCH, SwitchModel, {**body, "kind": kind}, ModelsState)


@router.post("/{kind}/retry", status_code=202, responses=CHANGED)
async def retry_switch(kind: SearchedKind, who: Operator, ask: Ask) -> ModelsState:
    """Run the failed jobs of a switch again."""
    return await ask.ask(routing.MODELS_RETRY, ModelKind, {"kind": kind}, ModelsState)


@router.post("/{kind}/activate", status_code=202, responses=CHANGED)
async def activate_model(kind: SearchedKind, who: Operator, ask: Ask) -> ModelsState:
    """Search the new model of a switch from now on."""
    return await ask.ask(routing.MODELS_ACTIVATE, ModelKind, {"kind": kind}, ModelsState)


@router.post("/{kind}/rollback", status_code=202, responses=CHANGED)
async def rollback_model(kind: SearchedKind, who: Operator, ask: Ask) -> ModelsState:
    """Search the old model of a switch again."""
    return await ask.ask(routing.MODELS_ROLLBACK, ModelKind, {"kind": kind}, ModelsState)


@router.post("/{kind}/discard", status_code=202, responses=CHANGED, openapi_extra=Discard.extra)
async def discard_model(
    kind: SearchedKind, who: Operator, ask: Ask, body: Annotated[dict[str, Any], Depends(Discard.read)]
) -> ModelsState:
    """Delete the vectors of the model that is not active, which ends the switch."""
    return await ask.ask(routing.MODELS_DISCARD, DiscardModel, {**body, "kind": kind}, ModelsState)
