"""The fleet, for operators: its state, and another try of what has failed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api import problems
from api.bodies import json_body
from api.parameters import Ask, Operator
from shared import routing
from shared.contracts import FleetQuery, FleetState, Retried, RetryFailures

router = APIRouter(prefix="/fleet", tags=["fleet"], responses=problems.responses())
Retry = json_body(RetryFailures)


@router.get("")
async def get_fleet(who: Operator, ask: Ask) -> FleetState:
    """Return nodes, queues, failures by class of error, and switches of models, of all users."""
    return await ask.ask(routing.FLEET_STATE, FleetQuery, {}, FleetState)


@router.post(
    "/failures/retry", status_code=202, responses=problems.responses(413, 415), openapi_extra=Retry.extra
)
async def retry_failures(
    who: Operator, ask: Ask, body: Annotated[dict[str, Any], Depends(Retry.read)]
) -> Retried:
    """Run the failed jobs of all users' videos again that failed with this class of error."""
    return await ask.ask(routing.FLEET_RETRY, RetryFailures, body, Retried)
