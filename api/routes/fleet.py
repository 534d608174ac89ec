"""The fleet, for operators: its state, and another try of what has failed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from api.asking import Asking, asking
from api.callers import Caller, operator
from shared import routing
from shared.contracts import FleetQuery, FleetState, Retried, RetryFailures

router = APIRouter(prefix="/fleet", tags=["fleet"])


class RetryBody(BaseModel):
    """Which failures to try again."""

    error_class: str


@router.get("")
async def state(
    who: Annotated[Caller, Depends(operator)], ask: Annotated[Asking, Depends(asking)]
) -> FleetState:
    """Return nodes, queues, failures by class of error, and switches of models, of all users."""
    return await ask.ask(routing.FLEET_STATE, FleetQuery, {}, FleetState)


@router.post("/failures/retry", status_code=202)
async def retry(
    body: RetryBody, who: Annotated[Caller, Depends(operator)], ask: Annotated[Asking, Depends(asking)]
) -> Retried:
    """Run the failed jobs of all users' videos again that failed with this class of error."""
    return await ask.ask(routing.FLEET_RETRY, RetryFailures, {"error_class": body.error_class}, Retried)
